"""Every recipe that ships loads, builds, and comes to the steps that arithmetic on paper gives."""

from pathlib import Path

import pytest
import torch

from vitscale import recipe
from vitscale.config import grad_accum, micro_batch
from vitscale.duration import Duration
from vitscale.model.build import build

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(path for path in RECIPES.rglob("*.yaml") if path.name != "base.yaml" and path.parent.name != "clusters")

# Recipe -> (training images, global batch, steps of the whole run), the last by hand.
EXPECTED = {
    "demo/finetune.yaml": (1_438, 64, 360),  # 16 epochs: 359.5, to even
    "demo/pretrain.yaml": (1_438, 128, 899),  # 80 epochs: 898.75
    "finetune/vit-l16-in1k-384.yaml": (1_281_167, 512, 20_000),
    "pretrain/vit-l16-in21k.yaml": (14_197_122, 4096, 311_948),  # 90 epochs: 311,948.48
}


@pytest.fixture(params=FILES, ids=lambda path: str(path.relative_to(RECIPES)))
def path(request):
    return request.param


def test_no_recipe_is_forgotten():
    assert [str(path.relative_to(RECIPES)) for path in FILES] == sorted(EXPECTED)


def test_it_comes_to_the_expected_steps(path):
    samples, batch, by_hand = EXPECTED[str(path.relative_to(RECIPES))]
    cfg = recipe.load(path)
    assert cfg.train.global_batch == batch
    assert cfg.data.train[0].samples in (samples, None)
    steps = cfg.train.total.to_steps(batch, samples)
    assert steps == by_hand
    assert 0 < cfg.optim.schedule.warmup.to_steps(batch, samples) < steps / 2
    assert 0 < cfg.checkpoint.every.to_steps(batch, samples) <= steps
    assert 0 < cfg.eval.every.to_steps(batch, samples) <= steps


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_it_can_be_laid_out(path, ranks):
    cfg = recipe.load(path)
    assert ranks * micro_batch(cfg, ranks) * grad_accum(cfg, ranks) == cfg.train.global_batch


def test_its_model_maps_its_images_to_its_classes(path):
    cfg = recipe.load(path)
    with torch.device("meta"):
        logits = build(cfg.model)(torch.empty(2, 3, cfg.model.image_size, cfg.model.image_size))
    assert logits.shape == (2, cfg.model.num_classes)


def test_its_header_says_what_it_is_and_how_to_run_it(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert not header[0].startswith("# Run:")
    run = [line for line in header if line.startswith("# Run:")]
    assert len(run) == 1
    assert "vitscale train" in run[0]
    assert f"recipes/{path.relative_to(RECIPES)}" in run[0]


def test_its_run_and_published_names_are_its_own():
    names = [recipe.load(path).name for path in FILES]
    assert len(set(names)) == len(names)


def test_it_can_be_dumped_and_loaded(path, tmp_path):
    cfg = recipe.load(path)
    (tmp_path / "resolved.yaml").write_text(recipe.dump(cfg))
    assert recipe.load(tmp_path / "resolved.yaml") == cfg


def test_a_fine_tuning_fits_the_pretraining_that_it_names():
    by_alias = {}
    for path in FILES:
        cfg = recipe.load(path)
        if cfg.publish:
            by_alias[f"models:/{cfg.publish.name}@{cfg.publish.alias}"] = cfg
    starts = [cfg for cfg in map(recipe.load, FILES) if cfg.init]
    assert starts
    for cfg in starts:
        assert by_alias[cfg.init.source].model.architecture_differences(cfg.model) == []


def test_the_papers_numbers_are_in_the_recipes():
    """ViT paper, Tables 3 and 4."""
    pretrain, finetune = (
        recipe.load(RECIPES / name) for name in ("pretrain/vit-l16-in21k.yaml", "finetune/vit-l16-in1k-384.yaml")
    )
    o = pretrain.optim
    assert (o.name, o.lr, o.betas, o.weight_decay, o.schedule.name) == ("adamw", 1e-3, (0.9, 0.999), 0.03, "linear")
    assert (o.schedule.warmup, pretrain.model.dropout, pretrain.model.image_size) == (Duration(steps=10_000), 0.1, 224)
    assert (pretrain.train.loss, pretrain.model.head_bias, pretrain.model.representation_size) == ("sigmoid", -10.0, 1024)
    o = finetune.optim
    assert (o.name, o.momentum, o.weight_decay, o.clip_norm, o.schedule.name) == ("sgd", 0.9, 0.0, 1.0, "cosine")
    assert o.lr in (0.003, 0.01, 0.03)
    assert (finetune.model.image_size, finetune.model.representation_size) == (384, None)
