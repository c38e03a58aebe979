"""Pretrained weights in a new model: the fate of every tensor."""

from collections import Counter

import pytest
import torch
from tiny_models import ON_RESNET, PLACES, POS_EMBEDS, bit, vit

from vitscale.errors import ModelError
from vitscale.model import posembed
from vitscale.model.build import build, parameter_shapes
from vitscale.weights.transfer import fill, summarise, table, transfer

TABLES = {
    "none": [],
    "sincos2d": [],
    "learned1d": ["pos_embed.table"],
    "learned2d": ["pos_embed.columns", "pos_embed.rows"],
    "relative": ["relative_keys.table"],
}


def weights(cfg):
    """Weights that no initialisation gives: every tensor random."""
    return {name: torch.randn(shape) for name, shape in parameter_shapes(cfg).items()}


def transferred(source, target, **options):
    """(the new model's parameters, the pretrained ones, the fates)"""
    model, given = build(target), weights(source)
    fates = transfer(model, given, source, **options)
    return dict(model.named_parameters()), given, fates


def named(fates, fate):
    return [found.name for found in fates if found.fate == fate]


@pytest.mark.parametrize(
    "options",
    [
        *({"pool": pool, "pos_embed": name, "layer_scale": 0.1} for pool in ("token", "gap", "map") for name in POS_EMBEDS),
        {**ON_RESNET, "pos_embed_at": "every"},
    ],
    ids=str,
)
def test_everything_but_the_head_is_kept_bit_by_bit(options):
    model, given, fates = transferred(vit(**options), vit(**options, num_classes=7))
    kept = named(fates, "kept")
    assert set(kept) == {name for name in model if not name.startswith("head.")}
    assert all(torch.equal(model[name], given[name]) for name in kept)


def test_bit_is_transferred_too():
    model, given, fates = transferred(bit(1, 1, 1, 1), bit(1, 1, 1, 1, image_size=48))
    assert {name for name in model if torch.equal(model[name], given[name])} == set(named(fates, "kept"))
    assert set(model) - set(named(fates, "kept")) == {"head.weight", "head.bias"}


def test_the_head_is_new_and_zero_also_for_the_same_classes():
    model, _, fates = transferred(vit(), vit())
    assert named(fates, "new") == named(fates, "dropped")[::-1] == ["head.weight", "head.bias"]
    assert not model["head.weight"].any()
    assert not model["head.bias"].any()
    model, *_ = transferred(vit(), vit(head_bias=-10.0))
    assert (model["head.bias"] == -10).all()


def test_the_head_is_kept_where_the_recipe_says_so():
    options = {"representation_size": 6}
    model, given, fates = transferred(vit(**options), vit(**options, image_size=24), head="keep")
    assert named(fates, "new") == named(fates, "dropped") == []
    assert torch.equal(model["head.weight"], given["head.weight"])
    assert torch.equal(model["pre_logits.fc.bias"], given["pre_logits.fc.bias"])


@pytest.mark.parametrize(("key", "value"), [("num_classes", 7), ("representation_size", 24)])
def test_a_kept_head_must_fit(key, value):
    with pytest.raises(ModelError, match=f"{key}: {value} here, .* there"):
        transferred(vit(**{key: value}), vit(), head="keep")


def test_pre_logits_are_dropped():
    model, _, fates = transferred(vit(representation_size=6), vit())
    assert set(named(fates, "dropped")) == {"pre_logits.fc.weight", "pre_logits.fc.bias", "head.weight", "head.bias"}
    assert model["head.weight"].shape == (5, 24)


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("pos_embed", TABLES)
def test_positions_are_resized_to_the_new_grid(pos_embed, at):
    options = {"pos_embed": pos_embed, "pos_embed_at": at}
    model, given, fates = transferred(vit(**options), vit(**options, image_size=24))
    assert [fate for fate in fates if fate.fate == "resized"] == [(name, "resized", "3x3 -> 6x6") for name in TABLES[pos_embed]]
    for name in TABLES[pos_embed]:
        assert len(model[name]) == len(given[name])
        first, last = (0, -1) if name != "pos_embed.table" else (1, -1)  # behind the class token
        torch.testing.assert_close(model[name][:, [first, last]], given[name][:, [first, last]])


@pytest.mark.parametrize("method", ["linear", "bicubic"])
def test_the_method_is_the_one_that_is_asked_for(method):
    model, given, _ = transferred(vit(), vit(image_size=24), pos_embed=method)
    expected = posembed.resize(given["pos_embed.table"], (3, 3), (6, 6), 1, method)
    assert torch.equal(model["pos_embed.table"], expected)
    relative = vit(pos_embed="relative"), vit(pos_embed="relative", image_size=24)
    model, given, _ = transferred(*relative, pos_embed=method)
    expected = posembed.resize_relative(given["relative_keys.table"], (3, 3), (6, 6), method)
    assert torch.equal(model["relative_keys.table"], expected)


@pytest.mark.parametrize("image_size", [12, 24])
@pytest.mark.parametrize("pos_embed", [name for name, tables in TABLES.items() if tables])
def test_positions_can_be_new(pos_embed, image_size):
    target = vit(image_size=image_size, pos_embed=pos_embed)
    torch.manual_seed(1)
    as_initialised = build(target).state_dict()
    torch.manual_seed(1)
    model = build(target)
    fates = transfer(model, weights(vit(pos_embed=pos_embed)), vit(pos_embed=pos_embed), "reinit")
    assert [fate for fate in fates if fate.detail == "as the recipe asks"] == [
        (name, "new", "as the recipe asks") for name in TABLES[pos_embed]
    ]
    for name in TABLES[pos_embed]:
        assert torch.equal(model.state_dict()[name], as_initialised[name])


def test_every_tensor_of_both_models_has_a_fate():
    model, given, fates = transferred(vit(representation_size=6), vit(image_size=24))
    dropped = {name for name in given if name.startswith(("head.", "pre_logits."))}
    assert Counter(fate.name for fate in fates) == Counter(model.keys()) + Counter(dropped)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("norm.bias"), r"norm\.bias \[24\] is missing"),
        (lambda w: w.pop("pos_embed.table"), r"pos_embed\.table \[1, 10, 24\] is missing"),
        (lambda w: w.pop("head.bias"), r"head\.bias \[5\] is missing"),
        (lambda w: w.update({"blocks.9.norm1.bias": torch.zeros(8)}), r"blocks\.9\.norm1\.bias \[8\] has no place"),
        (lambda w: w.update({"pre_logits.fc.bias": torch.zeros(8)}), r"pre_logits\.fc\.bias \[8\] has no place"),
        (lambda w: w.update({"cls_token": torch.zeros(1, 1, 9)}), r"cls_token is \[1, 1, 9\], the model has \[1, 1, 24\]"),
        (lambda w: w.update({"pos_embed.table": torch.zeros(1, 1, 8)}), r"table is \[1, 1, 8\], the model has \[1, 10, 24\]"),
        (lambda w: w.clear(), r"cls_token \[1, 1, 24\] is missing; .*; and 27 more; the file is of another model"),
    ],
)
@pytest.mark.parametrize("image_size", [12, 24])
def test_weights_that_are_not_their_models_are_an_error_that_names_the_tensor(change, said, image_size, tmp_path):
    given = weights(vit())
    change(given)
    model = build(vit(image_size=image_size))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=said):
        transfer(model, given, vit())
    with pytest.raises(ModelError, match=rf"^{tmp_path}: not the tensors of this custom model: .*{said}"):
        fill(build(vit()), given, vit(), tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_filling_sets_every_parameter(tmp_path):
    model, given = build(vit(pool="map")), weights(vit(pool="map"))
    fill(model, given, model.config, tmp_path)
    assert all(torch.equal(parameter, given[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (vit(), vit(pool="gap"), r"pool: token here, gap there \(here = pretrained, there = recipe\)"),
        (vit(), vit(width=48, depth=3), "width: 24 here, 48 there; depth: 2 here, 3 there"),
        (vit(), vit(pos_embed="relative"), "pos_embed: learned1d here, relative there"),
        (vit(), vit(pos_embed_at="every"), "pos_embed_at: stem here, every there"),
        (vit(layer_scale=0.1), vit(), "uses_layer_scale: True here, False there"),
        (vit(gelu="exact"), vit(), "gelu: exact here, tanh there"),
        (vit(**ON_RESNET), vit(), r"patch_size: 1 here, 4 there; stem_blocks: \(1, 1\) here, None there"),
        (bit(1, 1, 1, 1), vit(), "kind: BiT custom here, ViT custom there"),
        (bit(1, 1, 1, 1), bit(1, 1, 2, 1), r"blocks: \(1, 1, 1, 1\) here, \(1, 1, 2, 1\) there"),
    ],
    ids=str,
)
def test_another_architecture_is_an_error_with_both_values(source, target, said):
    with torch.device("meta"):
        model = build(target)
    with pytest.raises(ModelError, match=f"the pretrained model does not fit: {said}"):
        transfer(model, {}, source)


def test_the_summary_counts():
    *_, fates = transferred(vit(representation_size=6), vit(image_size=24))
    assert summarise(fates) == "29 kept, 1 resized, 2 new, 4 dropped"
    assert summarise(transferred(vit(), vit())[2]) == "30 kept, 2 new, 2 dropped"


def test_the_table_has_a_line_for_every_fate():
    *_, fates = transferred(vit(), vit(image_size=24))
    lines = table(fates).splitlines()
    assert [tuple(line.split(maxsplit=2)) for line in lines] == fates
    assert len({line.index(fate.fate, len(fate.name)) for line, fate in zip(lines, fates, strict=True)}) == 1
