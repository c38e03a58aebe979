"""The recipe's sections: what does not fit together is refused with the numbers and what to do."""

import json
import re

import pytest
from pydantic import ValidationError

from vitscale import recipe
from vitscale.config import grad_accum, micro_batch, per_rank_batch
from vitscale.errors import RecipeError
from vitscale.model.config import BiTConfig, ModelConfig, ViTConfig
from vitscale.model.zoo import ZOO
from vitscale.modelinfo import ModelInfo, read_model_info

SIZES = {"patch_size": 16, "width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768}
REST = """\
name: tiny
data: {train: {manifest: train.json}}
train: {global_batch: 8, total: {epochs: 2}}
optim: {lr: 0.5}
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 230}, "image_size 230 is not a multiple of patch_size 16; use 224 or 240"),
        ({"image_size": 10}, "image_size 10 is not a multiple of patch_size 16; use 16 "),
        (
            {"image_size": 120, "patch_size": 1, "stem_blocks": [3, 4, 9]},
            "image_size 120 is not a multiple of patch_size 1 times the ResNet's stride 16; use 112 or 128",
        ),
        ({"image_size": 60, "patch_size": 8, "stem_blocks": []}, "patch_size 8 times the ResNet's stride 4; use 32 or 64"),
        ({"stem_blocks": [0]}, "stem_blocks"),
        ({"num_heads": 5}, "num_heads 5 does not divide width 192"),
        ({"width": 30, "num_heads": 1, "pos_embed": "sincos2d"}, "sincos2d needs a width that 4 divides, found 30"),
        ({"width": 33, "num_heads": 1, "pos_embed": "learned2d"}, "learned2d needs a width that 2 divides, found 33"),
        ({"pool": "max"}, "pool"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"layer_scale": 0.0}, "layer_scale"),
        ({"name": "vit-b61"}, "unknown model name 'vit-b61'; allowed: custom, .*vit-b16.*r50-l32.*bit-r152x4"),
        ({"name": ["vit-b16"]}, "name"),
        ({"name": None}, "name"),
    ],
)
def test_impossible_models_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        ModelConfig.model_validate({**SIZES, **changes})


def test_a_name_fills_in_the_sizes():
    model = ModelConfig.model_validate({"name": "vit-l16", "depth": 24})
    assert isinstance(model, ViTConfig)
    assert (model.width, model.num_heads, model.mlp_dim, model.patch_size, model.depth) == (1024, 16, 4096, 16, 24)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "vit-l16", "depth": 3}, "vit-l16 has depth 24, and depth: 3 is given beside it; use name: custom"),
        ({"name": "bit-r50x1", "width_factor": 2}, "bit-r50x1 has width_factor 1, and width_factor: 2 is given"),
        (
            {"name": "r50-b16", "stem_blocks": [3, 4, 6, 3]},
            r"r50-b16 has stem_blocks \(3, 4, 9\), and stem_blocks: \[3, 4, 6, 3\]",
        ),
    ],
)
def test_a_size_that_is_not_the_names_is_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        ModelConfig.model_validate(given)


def test_the_names_are_those_of_the_article():
    vits = {f"vit-{size}{patch}" for size in ("ti", "s", "b", "l", "h", "g") for patch in (8, 14, 16, 32)}
    hybrids = {"r50-b16", "r50-b32", "r50-l16", "r50-l32", "r26-s32", "r-ti16"}
    bits = {f"bit-r{size}" for size in ("50x1", "50x2", "50x3", "101x1", "101x3", "152x1", "152x2", "152x4", "200x3")}
    assert set(ZOO) == vits | hybrids | bits
    for name in ZOO:
        model = ModelConfig.model_validate({"name": name})
        assert isinstance(model, BiTConfig if name in bits else ViTConfig)
        if name in vits:
            assert name.endswith(str(model.patch_size))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (SIZES, ViTConfig),
        ({**SIZES, "stem_blocks": [], "patch_size": 8}, ViTConfig),
        ({"blocks": [1, 2, 1, 1], "width_factor": 1}, BiTConfig),
        ({"name": "bit-r50x1"}, BiTConfig),
        ({"name": "r26-s32", "pool": "gap", "layer_scale": 0.1}, ViTConfig),
    ],
)
def test_a_model_of_each_kind_survives_recipe_and_model_json(write_recipe, tmp_path, values, kind):
    cfg = recipe.load(write_recipe(f"model: {json.dumps(values)}\n{REST}"))
    assert isinstance(cfg.model, kind)
    assert recipe.load(write_recipe(recipe.dump(cfg), "again.yaml")) == cfg
    info = ModelInfo.of(cfg.model, cfg.data, ["a"])
    (tmp_path / "model.json").write_text(info.dump())
    assert read_model_info(tmp_path) == info
    assert read_model_info(tmp_path).model == cfg.model


@pytest.mark.parametrize(
    ("model", "said", "unsaid"),
    [
        ("{name: vit-b16, num_clases: 3}", "unknown key model.num_clases; did you mean num_classes?", "width_factor"),
        ("{name: r50-b16, drop_pth: 0.1}", "unknown key model.drop_pth; did you mean drop_path?", "width_factor"),
        ("{name: bit-r50x1, image_sise: 3}", "unknown key model.image_sise; did you mean image_size?", "num_heads"),
        ("{blocks: [1, 1, 1, 1], width_facter: 3}", "unknown key model.width_facter; did you mean width_factor?", "num_heads"),
        ("{name: bit-r50x1, dropout: 0.1}", "unknown key model.dropout; allowed: name, image_size", "num_heads"),
        ("{name: [bit-r50x1], image_sise: 3}", "unknown key model.image_sise; did you mean image_size?", "width_factor"),
    ],
)
def test_a_mistyped_key_of_a_model_is_told_the_keys_of_its_kind(write_recipe, model, said, unsaid):
    with pytest.raises(RecipeError) as caught:
        recipe.load(write_recipe(f"model: {model}\n{REST}"))
    assert said in str(caught.value)
    assert unsaid not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "grid", "tokens"),
    [
        ({"name": "vit-b16"}, (14, 14), 197),
        ({"name": "vit-b16", "pool": "gap"}, (14, 14), 196),
        ({"name": "vit-b16", "pool": "map"}, (14, 14), 196),
        ({"name": "r50-b16"}, (14, 14), 197),
        ({"name": "r50-l32", "image_size": 384}, (12, 12), 145),
        ({"name": "r-ti16"}, (7, 7), 50),
    ],
)
def test_grid_and_tokens(changes, grid, tokens):
    model = ViTConfig(**changes)
    assert (model.grid, model.num_tokens) == (grid, tokens)


def test_architecture_differences_are_those_that_change_what_the_encoder_does():
    changed = {
        "patch_size": 32,
        "width": 96,
        "depth": 6,
        "num_heads": 6,
        "mlp_dim": 100,
        "stem_blocks": (2,),
        "pool": "gap",
        "pos_embed": "none",
        "pos_embed_at": "every",
        "gelu": "exact",
        "norm_eps": 1e-12,
        "resnet_eps": "timm",
    }
    assert {*changed, "uses_layer_scale"} == set(ViTConfig.ARCHITECTURE)
    base = ViTConfig(**SIZES)
    for key, value in changed.items():
        other = ViTConfig(**{**SIZES, "image_size": 256, key: value})
        assert base.architecture_differences(other) == [f"{key}: {getattr(base, key)} here, {value} there"]
    scaled = ViTConfig(**SIZES, layer_scale=0.1)
    assert base.architecture_differences(scaled) == ["uses_layer_scale: False here, True there"]
    assert scaled.architecture_differences(ViTConfig(**SIZES, layer_scale=1.0)) == []
    same = {
        "image_size": 384,
        "num_classes": 7,
        "representation_size": 64,
        "dropout": 0.5,
        "head_bias": -10.0,
        "name": "vit-ti16",
        "drop_path": 0.1,
        "drop_path_schedule": "constant",
    }
    assert base.architecture_differences(ViTConfig(**{**SIZES, **same})) == []


def test_architecture_differences_between_resnets_and_between_kinds():
    first, second = (BiTConfig(blocks=(1, 1, 1, depth), width_factor=1) for depth in (1, 2))
    assert first.architecture_differences(second) == ["blocks: (1, 1, 1, 1) here, (1, 1, 1, 2) there"]
    assert first.architecture_differences(ViTConfig(**SIZES)) == ["kind: BiT custom here, ViT custom there"]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_a_run_name_is_one_plain_folder(config, name):
    with pytest.raises(RecipeError, match=r"letters, digits"):
        config(f"name='{name}'")


def test_lanes_must_divide_the_global_batch(config):
    with pytest.raises(RecipeError, match=r"data.lanes 3 does not divide train.global_batch 8"):
        config("data.lanes=3")


def test_layer_decay_is_for_models_with_blocks(write_recipe):
    rest = REST.replace("lr: 0.5", "lr: 0.5, layer_decay: 0.75")
    with pytest.raises(RecipeError, match=r"optim.layer_decay 0.75 is for the blocks of a ViT"):
        recipe.load(write_recipe(f"model: {{name: bit-r50x1}}\n{rest}"))
    assert recipe.load(write_recipe(f"model: {{name: r26-s32}}\n{rest}", "vit.yaml")).optim.layer_decay == 0.75


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("layer_decay", 0.0, "optim.layer_decay"),
        ("layer_decay", 1.1, "optim.layer_decay"),
        ("ema_decay", 1.0, "optim.ema_decay"),
        ("ema_decay", 0.0, "optim.ema_decay"),
        ("moment_dtype", "fp16", "optim.moment_dtype.*bf16"),
        ("name", "adam", "optim.name.*lamb"),
        ("schedule.name", "exp", "optim.schedule.name.*rsqrt"),
        ("schedule.cooldown", "{steps: -1}", "optim.schedule.cooldown"),
        ("schedule.end_lr", -1.0, "optim.schedule.end_lr"),
    ],
)
def test_impossible_optimisers_are_refused(config, key, value, said):
    with pytest.raises(RecipeError, match=said):
        config(f"optim.{key}={value}")


@pytest.mark.parametrize("area", ["[0.5, 0.2]", "[0, 1]", "[0.1, 1.1]"])
def test_crop_areas_are_ranges(config, area):
    with pytest.raises(RecipeError, match="crop_area"):
        config(f"data.augment.crop_area={area}")


@pytest.mark.parametrize(
    ("batch", "ranks", "micro", "share", "accum"),
    [(4096, 8, 64, 512, 8), (96, 4, None, 24, 1), (8, 8, 1, 1, 1), (96, 3, 8, 32, 4)],
)
def test_the_global_batch_is_split_without_remainder(config, batch, ranks, micro, share, accum):
    cfg = config(f"train.global_batch={batch}", f"hardware.micro_batch={micro or 'null'}")
    assert (per_rank_batch(cfg, ranks), micro_batch(cfg, ranks), grad_accum(cfg, ranks)) == (share, micro or share, accum)
    assert ranks * micro_batch(cfg, ranks) * grad_accum(cfg, ranks) == batch


@pytest.mark.parametrize(("batch", "ranks"), [(96, 5), (96, 7), (7, 2), (8, 64), (101, 8)])
def test_ranks_that_do_not_fit_get_counts_that_do(config, batch, ranks):
    cfg = config(f"train.global_batch={batch}")
    with pytest.raises(RecipeError, match=rf"{batch} lanes .* {ranks} processes") as caught:
        per_rank_batch(cfg, ranks)
    suggested = re.search(r"start (.*) processes, or", str(caught.value))[1].split(" or ")
    assert all(per_rank_batch(cfg, int(count)) for count in suggested)


def test_fewer_lanes_than_ranks_are_refused(config):
    with pytest.raises(RecipeError, match=r"data.lanes: 2 lanes .* cannot feed 4 processes"):
        grad_accum(config("data.lanes=2"), 4)


def test_a_micro_batch_that_does_not_divide_gets_those_that_do(config):
    cfg = config("train.global_batch=24", "hardware.micro_batch=5")
    with pytest.raises(
        RecipeError, match=r"micro_batch: 5 does not divide the 12 images .*24 over 2 .*allowed: 1, 2, 3, 4, 6, 12$"
    ):
        grad_accum(cfg, 2)


def test_mixup_groups_must_divide_the_micro_batch(config):
    cfg = config("train.global_batch=24", "data.augment.mixup=0.2", "data.mix_group=8")
    with pytest.raises(RecipeError, match=r"data.mix_group: .* 8, which does not divide the micro-batch of 12"):
        micro_batch(cfg, 2)
    assert micro_batch(config("train.global_batch=24", "data.augment.mixup=0", "data.mix_group=8"), 2) == 12


def test_sections_are_frozen(config):
    with pytest.raises(ValidationError, match="frozen"):
        config().train.global_batch = 3
