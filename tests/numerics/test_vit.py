"""Every option of the Vision Transformer against the paper's equations in float64 numpy, and what the rest rests on."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from references.native import logits_native
from tiny_models import ON_RESNET, PLACES, POS_EMBEDS, SIZES, Watched, random_images, randomised, vit, weights_of

from vitscale.model.config import ViTConfig
from vitscale.model.vit import PatchEmbed, ViT


def assert_logits_are_the_references(cfg):
    model, images = randomised(cfg), random_images(cfg)
    with torch.no_grad():
        found = model(images).numpy()
    expected = logits_native(weights_of(model), cfg, images.numpy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    assert expected.std(axis=0).min() > 5e-3  # the images differ in every logit


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_positions_at_every_place_and_each_pool_are_the_papers(pos_embed):
    for at, pool in itertools.product(PLACES, ("token", "gap", "map")):
        assert_logits_are_the_references(vit(pos_embed=pos_embed, pos_embed_at=at, pool=pool))


@pytest.mark.parametrize(
    "options",
    [
        {"representation_size": 16},
        {"layer_scale": 0.1},
        {"gelu": "exact"},
        {"norm_eps": 0.3},
        {"gelu": "exact", "pool": "map", "representation_size": 7, "layer_scale": 1.0, "norm_eps": 1e-12},
        {**ON_RESNET, "stem_blocks": (2, 1), "pos_embed": "relative", "pool": "gap"},
        {**ON_RESNET, "resnet_eps": "timm"},
        {**ON_RESNET, "stem_blocks": (), "patch_size": 2, "pool": "map", "layer_scale": 0.5, "pos_embed": "learned2d"},
    ],
    ids=str,
)
def test_every_other_option_is_the_papers(options):
    assert_logits_are_the_references(vit(**options))


@pytest.mark.parametrize(
    "option", [{"gelu": "exact"}, {"norm_eps": 1e-3}, {"pos_embed_at": "shared"}, {"num_heads": 1}], ids=str
)
def test_the_comparison_sees_what_no_tensor_tells(option):
    """The same tensors mean something else where such an option differs, and by more than the comparison allows."""
    cfg = vit(pool="gap")
    model, images = randomised(cfg), random_images(cfg)
    one, other = (logits_native(weights_of(model), c, images.numpy()) for c in (cfg, vit(pool="gap", **option)))
    assert np.abs(one - other).max() > 2e-5 * np.abs(one).max()


@pytest.mark.parametrize(
    "cfg",
    [
        vit(representation_size=6, layer_scale=0.1, pos_embed_at="every"),
        vit(pool="map", pos_embed="relative"),
        vit(pool="gap", pos_embed="learned2d", pos_embed_at="every", **ON_RESNET),
    ],
    ids=["token", "map", "hybrid"],
)
def test_every_parameter_matters(cfg):
    model, images = randomised(cfg), random_images(cfg)
    (model(images) * torch.randn(len(images), 5)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad.abs().max() < 1e-3] == []


def test_every_table_of_a_position_embedding_matters():
    for pos_embed, name in (
        ("learned1d", "pos_embed.table"),
        ("learned2d", "pos_embed.rows"),
        ("relative", "relative_keys.table"),
    ):
        cfg = vit(pos_embed=pos_embed, pos_embed_at="every", pool="gap")
        model, images = randomised(cfg), random_images(cfg)
        model(images).square().sum().backward()
        assert dict(model.named_parameters())[name].grad.abs().amax(2).min() > 1e-3


@pytest.mark.parametrize("patch_size", [4, 7])
def test_patch_embedding_is_a_convolution_of_stride_p(patch_size):
    torch.manual_seed(0)
    embed = PatchEmbed(patch_size, channels=3, width=10)
    torch.nn.init.normal_(embed.proj.bias)
    images = torch.randn(2, 3, patch_size * 3, patch_size * 5)
    kernel = embed.proj.weight.view(10, patch_size, patch_size, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(images, kernel, embed.proj.bias, stride=patch_size).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"image_size": 24}, {"num_classes": 9}, {"representation_size": 8}, {"dropout": 0.5}])
def test_equal_architectures_have_equal_tensors_but_for_head_and_positions(change):
    def shapes(**changes):
        with torch.device("meta"):
            parameters = ViT(vit(**changes)).named_parameters()
        return {name: p.shape for name, p in parameters if not name.startswith(("head", "pre_logits", "pos_embed"))}

    assert vit().architecture_differences(vit(**change)) == []
    assert shapes() == shapes(**change)


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model, plain, images = randomised(vit(dropout=0.5)), randomised(vit()), random_images(vit())
    assert torch.equal(model(images), plain(images))
    model.train()
    assert not torch.equal(model(images), model(images))
    assert torch.equal(plain.train()(images), plain.eval()(images))


@pytest.mark.parametrize("pos_embed_at", PLACES)
def test_dropout_stands_where_the_official_code_has_it(pos_embed_at):
    """After the position embedding before the first block, attention's output, GELU and the MLP's output; never after qkv."""
    model = ViT(vit(dropout=0.25, pos_embed_at=pos_embed_at))
    shapes = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0.25
            module.register_forward_hook(lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape[1:])))
    model(random_images(vit()))
    tokens, hidden = (10, 24), (10, 40)
    assert shapes == [tokens, *[tokens, hidden, tokens] * 2]


def test_layer_norms_are_computed_in_fp32():
    model = randomised(vit())
    tokens = torch.randn(2, 10, 24) * 50 + 300  # a mean that bf16 arithmetic would not survive
    half = tokens.bfloat16()
    for weight in (model.norm.weight, model.norm.bias):  # as DeepSpeed's bf16 leaves them
        weight.data = weight.data.bfloat16()
    expected = F.layer_norm(half.double(), (24,), model.norm.weight.double(), model.norm.bias.double(), 1e-6)
    with Watched("layer_norm") as watched:
        found = model.norm(half)
    assert watched.seen == [torch.float32] * 3
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-3)


def test_without_a_position_embedding_the_order_of_patches_does_not_matter():
    for pos_embed, at, pool in itertools.product(POS_EMBEDS, PLACES, ("token", "gap", "map")):
        cfg = ViTConfig(**{**SIZES, "image_size": 8}, pos_embed=pos_embed, pos_embed_at=at, pool=pool)
        model, image = randomised(cfg), random_images(cfg, batch=1)
        swapped = image.roll(4, dims=3)  # the left patches change places with the right ones
        assert torch.allclose(model(image), model(swapped), atol=1e-4) == (pos_embed == "none"), cfg
