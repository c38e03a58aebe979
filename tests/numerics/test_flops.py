"""FLOPs and parameters: the papers' and timm's numbers, closed forms, and what torch counts."""

import pytest
import torch
from tiny_models import ON_RESNET, PLACES, POS_EMBEDS, bit, vit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitscale.model.build import build, parameter_shapes
from vitscale.model.config import ModelConfig, ViTConfig
from vitscale.model.flops import forward_macs, train_flops
from vitscale.model.zoo import BIT, EXPANSION, HYBRIDS, ROOT_WIDTH, VIT


def named(name, **changes):
    return ModelConfig.model_validate({"name": name, **changes})


def num_parameters(config):
    return sum(shape.numel() for shape in parameter_shapes(config).values())


# Parameters, with a head of 1,000 classes at 224 pixels


@pytest.mark.parametrize(
    ("name", "image_size", "parameters"),
    [
        ("vit-ti16", 224, 5_717_416),
        ("vit-s16", 224, 22_050_664),
        ("vit-s32", 224, 22_878_952),
        ("vit-b8", 224, 86_576_872),
        ("vit-b16", 224, 86_567_656),
        ("vit-b32", 224, 88_224_232),
        ("vit-l16", 224, 304_326_632),
        ("vit-l32", 224, 306_535_400),
        ("vit-h14", 224, 632_045_800),
        ("vit-g14", 224, 1_012_611_432),
        ("r50-b16", 224, 98_659_112),
        ("r50-b16", 384, 98_950_952),
        ("r50-l32", 224, 328_994_856),
        ("r26-s32", 224, 36_431_912),
        ("r-ti16", 224, 6_337_704),
        ("bit-r50x1", 224, 25_549_352),
        ("bit-r50x3", 224, 217_319_080),
        ("bit-r101x1", 224, 44_541_480),
        ("bit-r101x3", 448, 387_934_888),
        ("bit-r152x2", 224, 236_335_208),
        ("bit-r152x4", 480, 936_533_224),
    ],
)
def test_parameters_are_those_of_timms_model(name, image_size, parameters):
    """timm 1.0: vit_*_patch*, vit_base_r50_s16, ..., resnetv2_*x*_bit."""
    assert num_parameters(named(name, image_size=image_size)) == parameters


def resnet_parameters(blocks, width, shortcut_norms):
    """Three filters and three norms a unit, another filter where the channels change; without root and last norm."""
    total, channels = 0, width
    for stage, units in enumerate(blocks):
        inner = width * 2**stage
        out = 4 * inner
        for unit in range(units):
            total += channels * inner + 9 * inner**2 + inner * out
            total += 2 * (inner + inner + (out if shortcut_norms else channels))
            total += (channels * out + (2 * out if shortcut_norms else 0)) if unit == 0 else 0
            channels = out
    return total, channels


def encoder_parameters(size, tokens):
    d, hidden = size["width"], size["mlp_dim"]
    block = 4 * d * d + 4 * d + 2 * d * hidden + hidden + d + 4 * d
    return size["depth"] * block + 2 * d + tokens * d + d + 1000 * (d + 1)  # blocks, norm, positions, class token, head


@pytest.mark.parametrize("name", VIT)
def test_parameters_of_every_vit(name):
    size = VIT[name]
    p, d = size["patch_size"], size["width"]
    assert num_parameters(named(name)) == encoder_parameters(size, (224 // p) ** 2 + 1) + 3 * p * p * d + d


@pytest.mark.parametrize("name", HYBRIDS)
def test_parameters_of_every_hybrid(name):
    size = HYBRIDS[name]
    stem, channels = resnet_parameters(size["stem_blocks"], 64, shortcut_norms=True)
    stride = 4 * 2 ** max(0, len(size["stem_blocks"]) - 1) * size["patch_size"]
    patches = channels * size["patch_size"] ** 2 * size["width"] + size["width"]
    root = 3 * 49 * 64 + 2 * 64
    assert num_parameters(named(name)) == root + stem + patches + encoder_parameters(size, (224 // stride) ** 2 + 1)
    assert stride == {"r-ti16": 32}.get(name, int(name[-2:]))


@pytest.mark.parametrize("name", BIT)
def test_parameters_of_every_bit(name):
    width = 64 * BIT[name]["width_factor"]
    stages, channels = resnet_parameters(BIT[name]["blocks"], width, shortcut_norms=False)
    assert num_parameters(named(name)) == 3 * 49 * width + stages + 2 * channels + 1000 * (channels + 1)


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_parameters_of_position_embeddings(pos_embed, at):
    tables = {"stem": 1, "shared": 1, "every": 2}[at]
    patches, width, head_width = 9, 24, 8
    expected = {
        "learned1d": tables * (patches + 1) * width,
        "learned2d": tables * 2 * 3 * width // 2,
        "relative": (1 if at == "shared" else 2) * (2 * patches - 1) * head_width,
    }
    without = num_parameters(vit(pos_embed="none"))
    assert num_parameters(vit(pos_embed=pos_embed, pos_embed_at=at)) - without == expected.get(pos_embed, 0)


def test_parameters_of_heads_and_layer_scale():
    d, hidden, classes = 24, 40, 5
    base = num_parameters(vit(pool="gap"))
    assert num_parameters(vit()) - base == 2 * d  # class token and its position
    pool = d + 4 * (d * d + d) + 2 * d + 2 * d * hidden + hidden + d
    assert num_parameters(vit(pool="map")) - base == pool
    assert num_parameters(vit(pool="gap", layer_scale=0.1)) - base == 2 * 2 * d
    narrower = (d - 7) * classes
    assert num_parameters(vit(pool="gap", representation_size=7)) - base == d * 7 + 7 - narrower


# FLOPs


@pytest.mark.parametrize(
    ("name", "image_size", "gflops"),
    [
        ("vit-b16", 224, 105.2),
        ("vit-b16", 384, 332.2),
        ("vit-l16", 224, 369.0),
        ("vit-l16", 384, 1145.5),
        ("vit-l16", 512, 2170.3),
        ("vit-h14", 224, 1003.4),
        ("vit-h14", 336, 2343.5),
        ("vit-h14", 378, 3019.8),
        ("vit-h14", 518, 6098.2),
    ],
)
def test_training_gflops_per_image(name, image_size, gflops):
    assert round(train_flops(named(name, image_size=image_size)) / 1e9, 1) == gflops


@pytest.mark.parametrize(("name", "gmacs"), [("vit-b16", 17.6), ("vit-l16", 61.6), ("vit-h14", 167.3)])
def test_forward_gmacs_at_224(name, gmacs):
    assert round(forward_macs(named(name)) / 1e9, 1) == gmacs


@pytest.mark.parametrize(
    ("name", "epochs", "exaflops"),
    [
        *[("vit-b32", 7, 55), ("vit-b16", 7, 224), ("vit-l32", 7, 196), ("vit-l16", 7, 783), ("vit-h14", 14, 4262)],
        *[("bit-r50x1", 7, 50), ("bit-r50x2", 7, 199), ("bit-r101x1", 7, 96), ("bit-r152x1", 7, 141)],
        *[("bit-r152x2", 7, 563), ("bit-r152x2", 14, 1126), ("bit-r200x3", 14, 3306)],
        *[("r50-b32", 7, 106), ("r50-b16", 7, 274), ("r50-l32", 7, 246), ("r50-l16", 7, 859), ("r50-l16", 14, 1668)],
    ],
)
def test_exaflops_of_the_papers_table_6(name, epochs, exaflops):
    """On JFT, 303 M images. The paper does not say how it counts; its R50x1 has 3.9 GMACs where the convolutions have 4.1."""
    assert 6 * forward_macs(named(name)) * 303e6 * epochs / 1e18 == pytest.approx(exaflops, rel=0.1)


def counted_macs(model, config):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.empty(1, 3, config.image_size, config.image_size, device="meta"))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    "config",
    [
        *(vit(pool=pool, pos_embed=name) for pool in ("token", "gap", "map") for name in ("learned1d", "relative")),
        vit(representation_size=7, layer_scale=0.1, pos_embed="learned2d", pos_embed_at="every"),
        *(vit(stem_blocks=stem, patch_size=p, image_size=96) for stem, p in (((), 2), ((2,), 1), ((1, 2, 1), 2))),
        vit(**ON_RESNET, pool="map", pos_embed="relative"),
        *(bit(1, 2, 1, 1, width_factor=factor, image_size=size) for factor in (1, 2) for size in (32, 47)),
        *(named(name) for name in ("vit-ti16", "r26-s32", "r-ti16", "bit-r50x1")),
    ],
    ids=lambda config: f"{config.name}-{type(config).__name__}",
)
def test_torch_counts_the_same(config):
    """Matrix products, convolutions and attention: all that torch.utils.flop_counter counts."""
    with torch.device("meta"):
        assert counted_macs(build(config).eval(), config) == forward_macs(config)


@pytest.mark.parametrize(
    "config", [vit(num_classes=7), vit(**ON_RESNET, pool="map"), bit(1, 2, 1, 1)], ids=["vit", "hybrid", "bit"]
)
def test_torch_counts_the_same_backward(config):
    """Twice the forward pass, less the gradient of the pixels."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        build(config)(torch.empty(1, 3, config.image_size, config.image_size)).sum().backward()
    assert counter.get_total_flops() == train_flops(config)


def test_every_matrix_product_is_counted():
    """A model small enough to count by hand: 4 patches and a class token, D = 8, one block, MLP 16, 3 classes."""
    model = ViTConfig(
        patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=16, image_size=4, num_classes=3, representation_size=5
    )
    patches = 4 * 12 * 8
    others = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16 + 8 * 5 + 5 * 3  # q, k, v, out; scores, mixing; MLP; head
    assert forward_macs(model) == patches + others
    assert train_flops(model) == 2 * (2 * patches + 3 * others)  # no gradient of the pixels


def test_the_count_without_torch_knows_the_resnets_numbers():
    from vitscale.model import flops

    assert (flops.ROOT_WIDTH, flops.EXPANSION) == (ROOT_WIDTH, EXPANSION)
