"""Pretrained weights in a new model: the fate of every tensor."""

from collections import Counter

import pytest
import torch

from vitscale.errors import ModelError
from vitscale.model import posembed
from vitscale.model.config import ViTConfig
from vitscale.model.vit import ViT
from vitscale.weights.transfer import summarise, transfer

SIZES = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16, "image_size": 16, "num_classes": 3}


def config(**changes):
    return ViTConfig(**{**SIZES, **changes})


def weights(cfg):
    """Weights that no initialisation gives: every tensor random."""
    return {name: torch.randn_like(tensor) for name, tensor in ViT(cfg).state_dict().items()}


def transferred(source, target, **options):
    """(the new model's parameters, the pretrained ones, the fates by name)"""
    model, given = ViT(target), weights(source)
    fates = transfer(model, given, source, **options)
    return dict(model.named_parameters()), given, fates


def test_everything_but_the_head_is_kept_bit_by_bit():
    model, given, fates = transferred(config(), config(num_classes=5))
    kept = {fate.name for fate in fates if fate.fate == "kept"}
    assert kept == {name for name in model if not name.startswith("head.")}
    assert all(torch.equal(model[name], given[name]) for name in kept)


def test_the_head_is_new_and_zero_also_for_the_same_classes():
    model, _, fates = transferred(config(), config())
    assert {fate.name for fate in fates if fate.fate == "new"} == {"head.weight", "head.bias"}
    assert not model["head.weight"].any()
    assert not model["head.bias"].any()


def test_pre_logits_are_dropped():
    model, _, fates = transferred(config(representation_size=6), config())
    assert {fate.name for fate in fates if fate.fate == "dropped"} == {"pre_logits.fc.weight", "pre_logits.fc.bias"}
    assert model["head.weight"].shape == (3, 8)


def test_the_position_embedding_is_resized_to_the_new_grid():
    model, given, fates = transferred(config(), config(image_size=24))
    assert ("pos_embed", "resized", "4x4 -> 6x6") in fates
    corners = [1, 6, 31, 36]  # behind the class token, of a 6x6 grid
    assert torch.equal(model["pos_embed"][0, [0, *corners]], given["pos_embed"][0, [0, 1, 4, 13, 16]])
    assert torch.equal(model["pos_embed"], posembed.resize(given["pos_embed"], 4, 6, num_prefix_tokens=1))


@pytest.mark.parametrize("image_size", [16, 24])
def test_the_position_embedding_can_be_new(image_size):
    target = config(image_size=image_size)
    torch.manual_seed(1)
    as_initialised = ViT(target).pos_embed
    torch.manual_seed(1)
    model = ViT(target)
    fates = transfer(model, weights(config()), config(), reinit_pos_embed=True)
    assert ("pos_embed", "new", "as the recipe asks") in fates
    assert torch.equal(model.pos_embed, as_initialised)


@pytest.mark.parametrize("pos_embed", ["none", "sincos2d"])
def test_without_a_learned_position_embedding_there_is_none_to_move(pos_embed):
    model, _, fates = transferred(config(pos_embed=pos_embed), config(pos_embed=pos_embed, image_size=24))
    assert "pos_embed" not in {*model, *(fate.name for fate in fates)}


def test_every_tensor_of_both_models_has_one_fate():
    model, given, fates = transferred(config(representation_size=6), config(image_size=24))
    assert Counter(fate.name for fate in fates) == Counter({*model, *given})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("norm.bias"), r"no tensor norm\.bias"),
        (lambda w: w.pop("pos_embed"), r"no tensor pos_embed"),
        (lambda w: w.update({"blocks.9.norm1.bias": torch.zeros(8)}), r"blocks\.9\.norm1\.bias has no place"),
        (lambda w: w.update({"cls_token": torch.zeros(1, 1, 9)}), r"cls_token: \[1, 1, 9\] in the file, \[1, 1, 8\]"),
        (lambda w: w.update({"pos_embed": torch.zeros(1, 1, 8)}), r"pos_embed: \[1, 1, 8\] in the file, \[1, 17, 8\]"),
    ],
)
@pytest.mark.parametrize("image_size", [16, 24])
def test_a_file_that_does_not_hold_its_model_is_an_error_that_names_the_tensor(change, said, image_size):
    given = weights(config())
    change(given)
    with pytest.raises(ModelError, match=said):
        transfer(ViT(config(image_size=image_size)), given, config())


def test_another_architecture_is_an_error():
    with pytest.raises(ModelError, match=r"pool: token here, gap there"):
        transferred(config(), config(pool="gap"))


def test_the_summary_counts_and_names():
    _, _, fates = transferred(config(representation_size=6), config(image_size=24))
    said = summarise(fates)
    assert said == (
        "29 kept, 1 resized (pos_embed 4x4 -> 6x6), 2 new (head.weight, head.bias), "
        "2 dropped (pre_logits.fc.bias, pre_logits.fc.weight)"
    )
