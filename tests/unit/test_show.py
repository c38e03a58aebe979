"""`show`: the arithmetic of a recipe, against numbers worked out by hand."""

from pathlib import Path

import pytest

from vitscale import recipe, show

IN21K = "recipes/pretrain/vit-l16-in21k.yaml"


def test_the_numbers_of_vit_l16_on_imagenet21k():
    numbers = show.derived(recipe.load(IN21K, ["data.train.samples=14_197_122", "hardware.micro_batch=32"]), ranks=64)
    assert numbers["steps"] == 311_948  # 90 * 14,197,122 / 4,096 = 311,948.5 - 0.01
    assert numbers["epochs"] == 90.0
    assert numbers["warmup steps"] == 10_000
    assert numbers["eval every (steps)"] == 3_466  # 3,466.1
    assert (numbers["micro batch"], numbers["grad accum"], numbers["processes"]) == (32, 2, 64)
    assert (numbers["lanes"], numbers["tokens"]) == (4096, 197)
    assert numbers["shuffle window per process (MiB)"] == round(4096 * (64 + 8 + 2) / 64 * 110_000 / 2**20, 1)


def test_the_work_of_vit_l16_on_imagenet21k():
    numbers = show.derived(recipe.load(IN21K, ["train.total={steps: 1000}"]), ranks=1)
    n, d, hidden, classes = 197, 1024, 1024, 21_843
    patches = 196 * 3 * 16**2 * d
    macs = 24 * (12 * d * d * n + 2 * n * n * d) + patches + d * hidden + hidden * classes
    assert numbers["forward GMACs per image"] == round(macs / 1e9, 3)
    assert numbers["training GFLOPs per image"] == round((6 * macs - 2 * patches) / 1e9, 3)
    assert numbers["training exaFLOPs"] == round(1000 * 4096 * (6 * macs - 2 * patches) / 1e18, 6)


def test_what_needs_the_data_is_unknown_until_they_exist(config):
    numbers = show.derived(config("train.total.epochs=3", "eval.every.steps=7"), ranks=2)
    unknown = {"training images", "steps", "epochs", "training exaFLOPs"}
    assert {name for name, value in numbers.items() if value is None} == unknown
    assert numbers["eval every (steps)"] == 7


def test_the_manifest_tells_what_the_recipe_does_not(config, shards):
    cfg = config(f"data.train.manifest={shards['train'].location}")
    numbers = show.derived(cfg, ranks=1)
    assert (numbers["training images"], numbers["steps"], numbers["epochs"]) == (20, 5, 2.0)
    mean = sum(path.stat().st_size for path in Path(shards["train"].location).parent.glob("train-*.tar")) / 20
    assert numbers["shuffle window per process (MiB)"] == round(8 * (64 + 8 + 2) * mean / 2**20, 1)


def test_the_recipe_tells_before_there_is_a_manifest(config):
    assert show.derived(config("data.train.samples=80"), ranks=1)["steps"] == 20


@pytest.mark.parametrize(("name", "parameters"), [("vit-l16", 304_326_632), ("vit-h14", 632_045_800)])
def test_layers_add_up_to_the_papers_sizes(name, parameters):
    changes = [f"model.name={name}", "model.num_classes=1000", "model.representation_size=null"]
    layers = show.layers(recipe.load(IN21K, changes))
    assert sum(count for *_, count in layers) == parameters
    shapes = {layer: shape for layer, shape, _ in layers}
    assert shapes["head.weight"] == (1000, shapes["cls_token"][2])
