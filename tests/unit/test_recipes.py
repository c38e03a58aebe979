"""Every recipe that ships against its paper's table, which stands here a second time, and the arithmetic that follows."""

import functools
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import recipe_costs
import torch
import yaml

from vitscale import recipe, show
from vitscale.cadence import Cadence
from vitscale.config import grad_accum, micro_batch
from vitscale.model.build import build
from vitscale.optim import param_groups

RECIPES = Path(__file__).parents[2] / "recipes"
PARENTS = ("models", "aug", "data", "optim", "clusters", "proof")
FILES = sorted(path for path in RECIPES.rglob("*.yaml") if path.name != "base.yaml" and path.parent.name not in PARENTS)
DEMO = {"demo/pretrain": (1_438, 128, 899), "demo/finetune": (1_438, 64, 360)}  # 80 and 16 epochs: 898.75, and 359.5 to even

# Images: image-net.org, of ImageNet-1k also 99 %, of ImageNet-21k less the 51,200 of vit_i21k.py; the papers of the others.
IN1K, IN1K_99, IN21K, JFT, CIFAR, PETS, FLOWERS = 1_281_167, 1_268_355, 14_145_922, 303_000_000, 50_000, 3_680, 2_040
# ViT paper, Table 1, and AugReg, Table 2: width, depth, MLP.
SIZES = {"s": (384, 12, 1536), "b": (768, 12, 3072), "l": (1024, 24, 4096), "h": (1280, 32, 5120)}
# Units per stage: ViT paper, section 3.1, and He et al. 2016.
RESNETS = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3), "r152": (3, 8, 36, 3)}
IN_THREE_STAGES = (3, 4, 9)
CLASSES = {IN1K: 1000, IN1K_99: 1000, IN21K: 21_843, JFT: 18_291, PETS: 37, FLOWERS: 102}


class Row(NamedTuple):
    """A row of a paper's table: how long, how fast, on what."""

    images: int
    epochs: float | None
    batch: int
    lr: float
    decay: float
    shape: str
    steps: int = 0  # where no epochs are stated
    warmup: int = 0
    warmup_epochs: float = 0
    end: float = 0.0
    layer_decay: float = 1.0
    px: int = 224
    hidden: bool = False  # layer in the head
    scales: bool = False  # LayerScale
    learned: bool = True  # position embedding
    token: bool = True
    classes: int = 0
    micro: int = 0  # where less than a rank's share at 8 GPUs

    @property
    def total(self) -> int:
        return self.steps or round(self.epochs * self.images / self.batch)

    @property
    def rise(self) -> int:
        return self.warmup or round(self.warmup_epochs * self.images / self.batch)


def vit_large(epochs, lr, micro=0, hidden=True):
    return Row(JFT, epochs, 4096, lr, 0.1, "linear", warmup=10_000, end=1e-5, hidden=hidden, micro=micro)


VIT_IN21K = Row(IN21K, 90, 4096, 1e-3, 0.03, "linear", warmup=10_000, end=1e-5, hidden=True)
VIT_IN1K = Row(IN1K, 300, 4096, 3e-3, 0.3, "cosine", warmup=10_000, hidden=True)
VIT_FINETUNE = Row(IN1K, None, 512, 0.01, 0.0, "cosine", steps=20_000, warmup=500, px=384)
AUGREG_IN1K = Row(IN1K_99, 300, 4096, 1e-3, 0.1, "cosine", warmup=10_000, hidden=True)
AUGREG_IN21K = Row(IN21K, 300, 4096, 1e-3, 0.1, "cosine", warmup=10_000)
AUGREG_FINETUNE = Row(IN1K_99, None, 512, 0.03, 0.0, "cosine", steps=20_000, warmup=500)
PLAIN_S16 = Row(IN1K_99, 90, 1024, 1e-3, 0.1, "cosine", warmup=10_000, hidden=True, learned=False, token=False)
DEIT3 = Row(IN1K, 800, 2048, 3e-3, 0.05, "cosine", warmup_epochs=5, end=1e-5, scales=True, px=192)
DEIT3_20 = DEIT3._replace(epochs=20, batch=512, lr=1e-5, decay=0.1, px=224)
DEIT3_IN21K = DEIT3._replace(images=IN21K, epochs=240, lr=1e-3, decay=0.02, px=224)
DEIT3_50 = DEIT3._replace(epochs=50, lr=3e-4, decay=0.02, px=224)
MAE_SCRATCH = Row(IN1K, 200, 4096, 1e-4 * 4096 / 256, 0.3, "cosine", warmup_epochs=20)
MAE_FINETUNE = Row(IN1K, 50, 1024, 1e-3 * 1024 / 256, 0.05, "cosine", warmup_epochs=5, end=1e-6, layer_decay=0.75)
SETTINGS = ("light1", "light2", "medium1", "medium2", "strong1", "strong2")

ROWS = {
    # ViT paper, Table 3
    "pretrain/vit-b32-large": vit_large(7, 8e-4),
    "pretrain/vit-b16-large": vit_large(7, 8e-4),
    "pretrain/vit-l32-large": vit_large(7, 6e-4),
    "pretrain/vit-l16-large": vit_large(14, 4e-4),
    "pretrain/vit-h14-large": vit_large(14, 3e-4, micro=64),
    "pretrain/r50-b32-large": vit_large(7, 8e-4),
    "pretrain/r50-b16-large": vit_large(7, 8e-4),
    "pretrain/r50-l32-large": vit_large(7, 2e-4),
    "pretrain/r50-l16-large": vit_large(14, 4e-4, micro=64),
    "pretrain/bit-r50x1-large": vit_large(7, 1e-3, hidden=False),
    "pretrain/bit-r50x2-large": vit_large(7, 1e-3, hidden=False),
    "pretrain/bit-r101x1-large": vit_large(7, 8e-4, hidden=False),
    "pretrain/bit-r152x1-large": vit_large(7, 6e-4, hidden=False),
    "pretrain/bit-r152x2-large": vit_large(7, 6e-4, hidden=False),
    **{f"pretrain/vit-{model}-in21k": VIT_IN21K for model in ("b32", "b16", "l32", "l16")},
    **{f"pretrain/vit-{model}-in1k": VIT_IN1K for model in ("b32", "b16", "l32", "l16")},
    # ViT paper, Table 4
    "finetune/vit-l16-in1k-384": VIT_FINETUNE,
    "finetune/vit-l16-in1k-512": VIT_FINETUNE._replace(px=512),
    "finetune/vit-h14-in1k-518": VIT_FINETUNE._replace(px=518, micro=8),
    "finetune/vit-l16-cifar10": VIT_FINETUNE._replace(images=CIFAR, steps=10_000, classes=10),
    "finetune/vit-l16-cifar100": VIT_FINETUNE._replace(images=CIFAR, steps=10_000, classes=100),
    "finetune/vit-l16-pets": VIT_FINETUNE._replace(images=PETS, steps=500, warmup=100),
    "finetune/vit-l16-flowers": VIT_FINETUNE._replace(images=FLOWERS, steps=500, warmup=100),
    "finetune/vit-l16-vtab": VIT_FINETUNE._replace(images=1_000, steps=2_500, warmup=200, classes=102),
    # AugReg, section 3
    **{f"pretrain/augreg-b16-in1k-{setting}": AUGREG_IN1K for setting in SETTINGS},
    **{f"pretrain/augreg-b16-in21k-{setting}": AUGREG_IN21K for setting in SETTINGS},
    "finetune/augreg-b16-in1k-224": AUGREG_FINETUNE,
    "finetune/augreg-b16-in1k-384": AUGREG_FINETUNE._replace(px=384),
    # big_vision
    "pretrain/big-vision-s16-in1k-90": PLAIN_S16,
    "pretrain/big-vision-s16-in1k-300": PLAIN_S16._replace(epochs=300),
    "pretrain/big-vision-s16-in21k": AUGREG_IN21K._replace(token=False),
    # DeiT III, README_revenge.md
    "pretrain/deit3-b16-in1k": DEIT3,
    "pretrain/deit3-l16-in1k": DEIT3,
    "pretrain/deit3-h14-in1k": DEIT3._replace(px=160 // 14 * 14),
    **{f"finetune/deit3-{model}-in1k-224": DEIT3_20 for model in ("b16", "l16", "h14")},
    **{f"finetune/deit3-{model}-in1k-384": DEIT3_20._replace(px=384) for model in ("b16", "l16")},
    "pretrain/deit3-b16-in21k": DEIT3_IN21K,
    "pretrain/deit3-l16-in21k": DEIT3_IN21K,
    "pretrain/deit3-h14-in21k": DEIT3_IN21K._replace(epochs=90, px=128 // 14 * 14),
    **{f"finetune/deit3-{model}-in21k-in1k": DEIT3_50 for model in ("b16", "l16", "h14")},
    # MAE, Table 11 and FINETUNE.md
    "pretrain/mae-scratch-b16-in1k": MAE_SCRATCH._replace(epochs=300),
    "pretrain/mae-scratch-l16-in1k": MAE_SCRATCH,
    "pretrain/mae-scratch-h14-in1k": MAE_SCRATCH._replace(micro=64),
    "finetune/mae-b16-in1k": MAE_FINETUNE._replace(epochs=100, lr=5e-4 * 1024 / 256, layer_decay=0.65),
    "finetune/mae-l16-in1k": MAE_FINETUNE,
    "finetune/mae-h14-in1k": MAE_FINETUNE,
}
# RandAugment's operations and magnitude, mixup, cutmix: AugReg, Figure 4, and the sources named above.
AUGMENT = {
    "pretrain/augreg-.*-light1": (2, 0, 0, 0),
    "pretrain/augreg-.*-light2": (2, 10, 0.2, 0),
    "pretrain/augreg-.*-medium1": (2, 15, 0.2, 0),
    "pretrain/augreg-.*-medium2": (2, 15, 0.5, 0),
    "pretrain/augreg-.*-strong1": (2, 20, 0.5, 0),
    "pretrain/augreg-.*-strong2": (2, 20, 0.8, 0),
    "pretrain/big-vision-s16-in1k-.*": (2, 10, 0.2, 0),
    "pretrain/big-vision-s16-in21k": (2, 0, 0, 0),
    "pretrain/deit3-...-in1k": (0, None, 0.8, 1),
    ".*/deit3-...-in21k.*": (0, None, 0, 1),
    "finetune/deit3-...-in1k-.*": (2, 9, 0.8, 1),
    ".*/mae-.*": (2, 9, 0.8, 1),
    "(pretrain/(vit|bit|r50)|finetune/(vit|augreg))-.*": (0, None, 0, 0),
}
# Stochastic depth of B, L and H.
DROP_PATH = {
    "deit3-...-in1k": (0.2, 0.45, 0.6),
    "deit3-...-in1k-224": (0.2, 0.45, 0.55),
    "deit3-...-in1k-384": (0.15, 0.4),
    "deit3-...-in21k": (0.1, 0.3, 0.5),
    "deit3-...-in21k-in1k": (0.15, 0.4, 0.45),
    "mae-scratch-...-in1k": (0.1, 0.2, 0.2),
    "mae-...-in1k": (0.1, 0.2, 0.3),
}


def name_of(path):
    return str(path.relative_to(RECIPES).with_suffix(""))


def also(path):
    """Other models of a leaf's row: name and overrides, as its header gives them."""
    told = recipe_costs.header(path).get("Also", "")
    for words in re.findall(r"(?:\S+=\S+ ?)+", told):
        overrides = words.split()
        (other,) = (word.removeprefix("name=") for word in overrides if word.startswith("name="))
        yield f"{path.parent.name}/{other}", (path, overrides)


ALSO = dict(pair for path in recipe_costs.LEAVES for pair in also(path))


@functools.cache
def loaded(name):
    return recipe.load(*ALSO.get(name, (RECIPES / f"{name}.yaml", [])))


@functools.cache
def built(name):
    with torch.device("meta"):
        return build(loaded(name).model)


@pytest.fixture(params=[*DEMO, *ROWS])
def name(request):
    return request.param


@pytest.fixture(params=ROWS)
def leaf(request):
    return request.param


def test_no_recipe_is_forgotten():
    assert sorted([*map(name_of, FILES), *ALSO]) == sorted([*DEMO, *ROWS])
    assert (len(FILES), len(ALSO)) == (60, 9)


# Length, rate and layout


def expected_rate(row, step):
    if step < row.rise:
        return row.lr * step / row.rise
    done = (step - row.rise) / (row.total - row.rise)
    return row.end + (row.lr - row.end) * ((1 + math.cos(math.pi * done)) / 2 if row.shape == "cosine" else 1 - done)


def test_steps_and_learning_rates_are_the_tables(leaf):
    cfg, row = loaded(leaf), ROWS[leaf]
    cadence = Cadence.of(cfg, cfg.data.train[0].samples)
    cadence.check(cfg)
    assert (cfg.data.train[0].samples, cfg.train.global_batch, cadence.total) == (row.images, row.batch, row.total)
    assert (cadence.schedule.warmup, cadence.schedule.cooldown) == (row.rise, 0)
    steps = (1, row.rise // 2, row.rise, (row.rise + row.total) // 2, row.total - 1)
    assert [cadence.learning_rate(step, cfg.optim) for step in steps] == pytest.approx([expected_rate(row, s) for s in steps])
    assert 0 < cadence.save <= cadence.total and 0 < cadence.eval <= cadence.total


def test_published_step_counts_are_met():
    """ImageNet's first 99 %: 90 epochs of 1,024 and 300 of 4,096, as big_vision logs them."""
    counts = [ROWS[f"pretrain/{leaf}"].total for leaf in ("big-vision-s16-in1k-90", "augreg-b16-in1k-light1")]
    assert counts == [111_477, 92_897]


@pytest.mark.parametrize(("name", "known"), DEMO.items())
def test_the_demo_comes_to_its_steps(name, known):
    cfg = loaded(name)
    samples, batch, steps = known
    assert (cfg.data.train[0].samples, cfg.train.global_batch) == (samples, batch)
    assert cfg.train.total.to_steps(batch, samples) == steps


@pytest.mark.parametrize("ranks", [8, 64])
def test_accumulation_on_8_and_64_gpus(leaf, ranks):
    cfg, row = loaded(leaf), ROWS[leaf]
    share = row.batch // ranks
    assert micro_batch(cfg, ranks) == (row.micro or share)
    assert grad_accum(cfg, ranks) == share // (row.micro or share)


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_can_be_laid_out(name, ranks):
    cfg = loaded(name)
    assert ranks * micro_batch(cfg, ranks) * grad_accum(cfg, ranks) == cfg.train.global_batch


def test_show_needs_no_data(leaf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert show.derived(loaded(leaf), ranks=8)["steps"] == ROWS[leaf].total


# Models and parameter groups


class Tensors(NamedTuple):
    """How many tensors, and how many numbers in them."""

    count: int = 0
    size: int = 0

    def __add__(self, other):
        return Tensors(self.count + other.count, self.size + other.size)


def resnet(units, width, norms_before):
    """(filters, norms) of root and stages; a v1 (hybrids) has norms behind its convolutions, a v2 (BiT) before them."""
    filters, channels = Tensors(1, 7 * 7 * 3 * width), width
    norms = Tensors() if norms_before else Tensors(2, 2 * width)
    for stage, count in enumerate(units):
        inner = width * 2**stage
        outer = 4 * inner
        for number in range(count):
            filters += Tensors(3, channels * inner + 9 * inner * inner + inner * outer)
            norms += Tensors(6, 2 * inner + 2 * inner + 2 * (channels if norms_before else outer))
            if number == 0:
                filters += Tensors(1, channels * outer)
                norms += Tensors() if norms_before else Tensors(2, 2 * outer)
            channels = outer
    return filters, norms + (Tensors(2, 2 * channels) if norms_before else Tensors()), channels


def vit_layers(name, row):
    """(matrices, others) of what makes tokens, of each block, of what follows."""
    stem, size, patch = re.search(r"(r50|vit|augreg|vision|deit3|scratch|mae)-([sblh])(\d+)", name).groups()
    width, depth, mlp = SIZES[size]
    side = row.px // int(patch)
    first, others = Tensors(1, int(patch) ** 2 * 3 * width), Tensors(1, width)
    if stem == "r50":
        filters, norms, channels = resnet(IN_THREE_STAGES if patch == "16" else RESNETS["r50"], 64, norms_before=False)
        first, others = Tensors(1, channels * width) + filters, others + norms
    others += Tensors(row.token, row.token * width)
    others += Tensors(row.learned, row.learned * (side * side + row.token) * width)
    block = Tensors(4, 4 * width * width + 2 * width * mlp), Tensors(8 + 2 * row.scales, (9 + 2 * row.scales) * width + mlp)
    classes = row.classes or CLASSES[row.images]
    head = Tensors(1 + row.hidden, (classes + row.hidden * width) * width)
    rest = Tensors(3 + row.hidden, 2 * width + classes + row.hidden * width)
    return [(first, others), *[block] * depth, (head, rest)]


def bit_layers(name, row):
    depth, factor = re.search(r"bit-(r\d+)x(\d)", name).groups()
    filters, norms, channels = resnet(RESNETS[depth], 64 * int(factor), norms_before=True)
    return [(filters + Tensors(1, channels * CLASSES[row.images]), norms + Tensors(1, CLASSES[row.images]))]


def test_parameter_groups_are_the_tables(leaf):
    row, optim = ROWS[leaf], loaded(leaf).optim
    layers = (bit_layers if "/bit-" in leaf else vit_layers)(leaf, row)
    expected = Counter()
    for from_top, (matrices, others) in enumerate(reversed(layers)):
        for tensors, decay in ((matrices, row.decay), (others, 0.0)):
            expected[decay, round(row.layer_decay**from_top, 9), "count"] += tensors.count
            expected[decay, round(row.layer_decay**from_top, 9), "size"] += tensors.size
    found = Counter()
    for group in param_groups(built(leaf), optim.weight_decay, optim.layer_decay):
        key = group["weight_decay"], round(group["lr_scale"], 9)
        found[(*key, "count")] += len(group["params"])
        found[(*key, "size")] += sum(parameter.numel() for parameter in group["params"])
    assert found == expected


def test_its_model_maps_its_images_to_its_classes(name):
    cfg = loaded(name)
    with torch.device("meta"):
        logits = built(name)(torch.empty(2, 3, cfg.model.image_size, cfg.model.image_size))
    assert logits.shape == (2, cfg.model.num_classes)
    if name in ROWS:
        assert cfg.model.image_size == ROWS[name].px


def test_gelu_layer_scale_and_positions_are_the_sources(leaf):
    """Google's code: GELU's tanh form; PyTorch's, of DeiT III and MAE: the exact one."""
    model = loaded(leaf).model
    if "/bit-" not in leaf:
        assert model.gelu == ("exact" if re.search("/deit3-|/mae-", leaf) else "tanh")
        assert model.layer_scale == (1e-4 if "/deit3-" in leaf else None)
        assert model.pos_embed == ("sincos2d" if "s16-in1k" in leaf else "learned1d")


def test_augmentation_and_stochastic_depth_are_the_tables(leaf):
    cfg, augment = loaded(leaf), loaded(leaf).data.augment
    ((layers, magnitude, mixup, cutmix),) = (row for pattern, row in AUGMENT.items() if re.fullmatch(pattern, leaf))
    assert (augment.randaugment_layers, augment.mixup, augment.cutmix) == (layers, mixup, cutmix)
    assert magnitude is None or augment.randaugment_magnitude == magnitude
    assert augment.randaugment == ("timm" if magnitude == 9 else "tf")
    size = "blh".find(re.sub(r".*-([blh])\d\d.*", r"\1", leaf))
    known = [rates[size] for pattern, rates in DROP_PATH.items() if re.fullmatch(f".*/{pattern}", leaf)]
    assert getattr(cfg.model, "drop_path", 0.0) == (known[0] if known else 0.0)
    assert not known or cfg.model.drop_path_schedule == ("constant" if "deit3" in leaf else "linear")
    three = bool(re.match("pretrain/deit3|.*deit3.*in21k", leaf))
    assert (augment.flip, augment.three_augment, augment.color_jitter) == (True, three, 0.3 * three)
    assert augment.crop == ("simple" if re.match(".*deit3.*in21k", leaf) else "inception")
    assert cfg.data.repeated == (3 if re.match("pretrain/deit3-...-in1k", leaf) else 1)
    assert augment.erase == (0.25 if leaf.startswith("finetune/mae") else 0)


def test_pixels_are_prepared_as_by_the_source(leaf):
    """Google's code: [-1, 1], bilinear, area from 0.05; timm's: ImageNet's mean and deviation, bicubic, area from 0.08."""
    data, of_timm = loaded(leaf).data, bool(re.search("/deit3-|/mae-", leaf))
    assert data.mean == ((0.485, 0.456, 0.406) if of_timm else (0.5, 0.5, 0.5))
    assert data.std == ((0.229, 0.224, 0.225) if of_timm else (0.5, 0.5, 0.5))
    assert data.interpolation == ("bicubic" if of_timm else "bilinear")
    assert data.augment.crop == "simple" or data.augment.crop_area == (0.08 if of_timm else 0.05, 1)
    assert data.eval_crop == (1.0 if re.search("/deit3-|finetune/(vit|augreg)-", leaf) else 0.875)


OPTIMISERS = {
    "finetune/vit-": ("sgd", None, 1.0, "softmax", 0.0),
    "finetune/augreg-": ("sgd", None, 1.0, "softmax", 0.0),
    "pretrain/big-vision-s16-in1k-": ("adamw", 0.999, 1.0, "softmax", 0.0),
    "pretrain/deit3-...-in1k": ("lamb", 0.999, 1000.0, "sigmoid", 0.0),  # gradients of a sum over 1,000 classes
    "finetune/deit3-...-in1k": ("adamw", 0.999, 0.0, "softmax", 0.1),
    ".*/deit3-...-in21k": ("lamb", 0.999, 1.0, "softmax", 0.1),
    "pretrain/mae-": ("adamw", 0.95, 0.0, "softmax", 0.1),
    "finetune/mae-": ("adamw", 0.999, 0.0, "softmax", 0.1),
    "pretrain/(vit|bit|r50|augreg|big-vision-s16-in21k)": ("adamw", 0.999, 1.0, "sigmoid", 0.0),
}


def test_optimiser_and_loss_are_the_tables(leaf):
    cfg = loaded(leaf)
    ((name, beta2, clip, loss, smoothing),) = (row for pattern, row in OPTIMISERS.items() if re.match(pattern, leaf))
    optim = cfg.optim
    assert (optim.name, optim.clip_norm, cfg.train.loss, cfg.train.label_smoothing) == (name, clip, loss, smoothing)
    assert optim.eps == (1e-5 if clip == 1000 else 1e-8)  # added to gradients 1,000 times as large
    assert optim.moment_dtype == ("bf16" if re.search("finetune/vit-|augreg-|big-vision-", leaf) else "fp32")
    assert optim.momentum == 0.9 if name == "sgd" else optim.betas == (0.9, beta2)
    assert optim.ema_decay == (0.9999 if re.search(r"512|518|scratch", leaf) else None)
    bias = 0.0 if loss == "softmax" or "deit3" in leaf else -6.9 if leaf.split("/")[1].count("in1k") else -10.0
    assert cfg.model.head_bias == bias
    assert (getattr(cfg.model, "dropout", 0.0) == 0.1) == bool(re.search(r"pretrain/vit-.*-in|finetune/vit-", leaf))


def test_a_fine_tuning_fits_the_pretraining_that_it_names():
    published = {f"models:/{cfg.publish.name}@{cfg.publish.alias}": cfg for cfg in map(loaded, [*DEMO, *ROWS])}
    starts = [cfg for cfg in map(loaded, [*DEMO, *ROWS]) if cfg.init]
    assert len(starts) == sum(name.startswith("finetune/") for name in ROWS) + 1
    for cfg in starts:
        if cfg.init.source.startswith("models:/"):
            pretrained = published[cfg.init.source].model
            assert pretrained.architecture_differences(cfg.model, with_head=cfg.init.head == "keep") == []
        else:
            assert cfg.init.source.startswith("models/mae-")


@pytest.mark.parametrize("leaf", [leaf for leaf in ROWS if leaf.startswith("finetune/")])
def test_a_fine_tuning_begins_and_is_judged_as_by_the_source(leaf):
    """DeiT III keeps the head for the same classes and judges the raw weights; the ViT paper averages at 512 and 518 px."""
    cfg = loaded(leaf)
    assert cfg.init.pos_embed == ("bicubic" if "/deit3-" in leaf else "linear")
    assert cfg.init.head == ("keep" if re.search("/deit3-...-in1k-", leaf) else "new")
    assert cfg.publish.champion == ("eval_ema/top1" if re.search("-512|-518", leaf) else "eval/top1")


# The files themselves


@pytest.mark.parametrize("leaf", [leaf for leaf in ROWS if leaf not in ALSO])
def test_its_header_says_what_it_is(leaf):
    said = recipe_costs.header(RECIPES / f"{leaf}.yaml")
    assert [*said] == ["title", *(field for field in recipe_costs.FIELDS if field not in ("Needs", "Also") or field in said)]
    assert all(text.strip() for text in said.values())
    assert said["Run"] == f"vitscale train recipes/{leaf}.yaml"
    lasts = r"\([\d.]+ (days|hours|minutes)\)"
    assert re.fullmatch(rf"[\d.,]+ GPU-hours {lasts} on 8 H200, [\d.,]+ {lasts} on 64, by `vitscale plan`", said["Cost"])
    if leaf.startswith("pretrain/") and "large" in leaf:
        assert "data.train.samples" in said["Needs"]


@pytest.mark.parametrize("leaf", ["pretrain/vit-l16-in21k", "pretrain/bit-r50x1-large", "finetune/deit3-b16-in1k-384"])
def test_its_cost_is_what_plan_says_now(leaf):
    path = RECIPES / f"{leaf}.yaml"
    stated, found = recipe_costs.header(path)["Cost"], recipe_costs.cost(loaded(leaf))
    numbers = [[float(number.replace(",", "")) for number in re.findall(r"\d[\d.,]*", text)] for text in (stated, found)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.05)


def test_a_leaf_holds_little_of_its_own():
    def count(value):
        return sum(map(count, value.values())) if isinstance(value, dict) else 1

    counts = [count(yaml.safe_load(path.read_text())) for path in FILES if path.parent.name != "demo"]
    assert max(counts) <= 20 and sum(counts) / len(counts) < 12


def test_the_page_lists_all_recipes_as_their_headers_say():
    page = (RECIPES / "README.md").read_text()
    assert recipe_costs.TABLE_BEGINS + recipe_costs.table() + recipe_costs.TABLE_ENDS in page


def test_names_are_those_of_the_files_and_no_two_equal():
    names = [loaded(name).name for name in [*DEMO, *ROWS]]
    assert len(set(names)) == len(names)
    for leaf in ROWS:
        assert loaded(leaf).name == loaded(leaf).publish.name == leaf.partition("/")[2]
        assert loaded(leaf).publish.alias == {"pretrain": "pretrained", "finetune": "finetuned"}[leaf.partition("/")[0]]


def test_it_can_be_dumped_and_loaded(name, tmp_path):
    (tmp_path / "resolved.yaml").write_text(recipe.dump(loaded(name)))
    assert recipe.load(tmp_path / "resolved.yaml") == loaded(name)
