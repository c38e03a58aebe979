"""The recipe's sections: what does not fit together is refused with the numbers and what to do."""

import re

import pytest
from pydantic import ValidationError

from vitscale.config import grad_accum, micro_batch, per_rank_batch
from vitscale.errors import RecipeError
from vitscale.model.config import ViTConfig
from vitscale.model.zoo import ZOO

SIZES = {"patch_size": 16, "width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 230}, "image_size 230 is not a multiple of patch_size 16; use 224 or 240"),
        ({"image_size": 10}, "image_size 10 is not a multiple of patch_size 16; use 16 or 16"),
        ({"num_heads": 5}, "num_heads 5 does not divide width 192"),
        ({"width": 30, "num_heads": 1, "pos_embed": "sincos2d"}, "sincos2d needs a width that 4 divides, found 30"),
        ({"name": "vit-b61"}, "unknown model name 'vit-b61'; allowed: custom, .*vit-b16"),
        ({"name": ["vit-b16"]}, "name"),
        ({"name": None}, "name"),
    ],
)
def test_impossible_models_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        ViTConfig(**{**SIZES, **changes})


def test_a_name_fills_in_the_sizes():
    model = ViTConfig(name="vit-l16", depth=24)
    assert (model.width, model.num_heads, model.mlp_dim, model.patch_size, model.depth) == (1024, 16, 4096, 16, 24)


def test_a_size_that_is_not_the_names_is_refused():
    with pytest.raises(ValidationError, match=r"vit-l16 has depth 24, and depth: 3 is given beside it; use name: custom"):
        ViTConfig(name="vit-l16", depth=3)


@pytest.mark.parametrize("name", ZOO)
def test_patch_size_is_in_the_name(name):
    assert name.endswith(str(ViTConfig(name=name).patch_size))


@pytest.mark.parametrize(("pool", "tokens"), [("token", 197), ("gap", 196)])
def test_tokens(pool, tokens):
    assert ViTConfig(name="vit-b16", pool=pool).num_tokens == tokens


def test_architecture_differences_are_those_that_change_the_encoders_tensors():
    changed = {"patch_size": 32, "width": 96, "depth": 6, "num_heads": 6, "mlp_dim": 100, "pool": "gap", "pos_embed": "none"}
    assert set(changed) == set(ARCHITECTURE)
    base = ViTConfig(**SIZES)
    for key, value in changed.items():
        other = ViTConfig(**{**SIZES, key: value})
        assert base.architecture_differences(other) == [f"{key}: {getattr(base, key)} here, {value} there"]
    same = {
        "image_size": 384,
        "num_classes": 7,
        "representation_size": 64,
        "dropout": 0.5,
        "head_bias": -10.0,
        "name": "vit-ti16",
    }
    assert base.architecture_differences(ViTConfig(**{**SIZES, **same})) == []


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_a_run_name_is_one_plain_folder(config, name):
    with pytest.raises(RecipeError, match=r"letters, digits"):
        config(f"name='{name}'")


def test_lanes_must_divide_the_global_batch(config):
    with pytest.raises(RecipeError, match=r"data.lanes 3 does not divide train.global_batch 8"):
        config("data.lanes=3")


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
