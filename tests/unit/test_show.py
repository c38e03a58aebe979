"""`show`: the arithmetic of a recipe, against numbers worked out by hand."""

from pathlib import Path

import pytest
from tiny_models import ON_RESNET, bit, vit

from vitscale import recipe, show
from vitscale.model.build import parameter_shapes
from vitscale.model.config import ViTConfig

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


@pytest.mark.parametrize(("name", "parameters"), [("vit-l16", 304_326_632), ("vit-h14", 632_045_800), ("r50-l32", 328_994_856)])
def test_layers_add_up_to_the_papers_sizes(name, parameters):
    assert sum(layer.size for layer in show.layers(ViTConfig(name=name))) == parameters


@pytest.mark.parametrize(
    "model",
    [
        vit(representation_size=6, layer_scale=0.1),
        vit(pool="map", pos_embed="relative", pos_embed_at="shared"),
        vit(pool="gap", pos_embed="learned2d", pos_embed_at="every"),
        vit(pos_embed="sincos2d"),
        vit(pos_embed="none", **ON_RESNET),
        bit(1, 2, 1, 1),
    ],
    ids=["token", "map", "gap", "sincos", "hybrid", "bit"],
)
def test_every_parameter_is_in_one_layer(model):
    found = [
        (f"{layer.name}.{name}".rstrip("."), shape) for layer in show.layers(model) for name, shape in layer.parameters.items()
    ]
    assert dict(found) == parameter_shapes(model)
    assert len(found) == len(dict(found))


def outputs(model):
    return {layer.name: layer.output for layer in show.layers(model)}


def test_the_way_of_an_image_through_a_vit():
    """12 x 12 pixels, 3 x 3 patches of 4, a class token, width 24, MLP 40, 5 classes."""
    found = outputs(vit(depth=1, representation_size=6, layer_scale=0.1))
    tokens = (10, 24)
    assert list(found.items()) == [
        ("cls_token", None),
        ("patch_embed.proj", (9, 24)),
        ("pos_embed", tokens),
        ("blocks.0.norm1", tokens),
        ("blocks.0.attention.qkv", (10, 72)),
        ("blocks.0.attention.out", tokens),
        ("blocks.0.scale1", tokens),
        ("blocks.0.norm2", tokens),
        ("blocks.0.mlp.fc1", (10, 40)),
        ("blocks.0.mlp.fc2", tokens),
        ("blocks.0.scale2", tokens),
        ("norm", tokens),
        ("pre_logits.fc", (6,)),
        ("head", (5,)),
    ]


def test_the_way_through_what_else_there_is():
    found = outputs(vit(**ON_RESNET, pool="map", pos_embed="relative"))
    assert found["stem.root"] == (64, 8, 8)
    assert found["stem.stages.0.0.conv3"] == (256, 4, 4)
    assert found["stem.stages.1.0.shortcut.0"] == found["stem.stages.1.0.norm3"] == (512, 2, 2)
    assert found["patch_embed.proj"] == (4, 24)
    assert found["relative_keys"] == (4, 4, 8)
    assert (found["attention_pool.kv"], found["attention_pool.q"], found["attention_pool"]) == ((4, 48), (1, 24), (24,))
    found = outputs(bit(1, 1, 1, 1, image_size=64))
    assert (found["root"], found["stages.3.0.conv3"], found["norm"]) == ((64, 32, 32), (2048, 2, 2), (2048, 2, 2))


def test_the_table_of_layers_is_straight():
    model = vit(**ON_RESNET, pool="map", pos_embed="relative")
    head, *lines, total = show.layer_lines(show.layers(model))
    assert len({len(line) for line in (head, *lines, total)}) == 1
    assert total.split() == ["all", "parameters", f"{sum(shape.numel() for shape in parameter_shapes(model).values()):,}"]
    assert lines[-1].split() == ["head", "5", "weight", "5x24,", "bias", "5", "125"]
