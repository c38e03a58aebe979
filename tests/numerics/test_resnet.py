"""BiT against its equations in float64 numpy; arithmetic that half precision would spoil."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from references import layers
from references.layers import Affine
from references.native import logits_native
from tiny_models import Watched, bit, randomised, weights_of

from vitscale.model.build import build
from vitscale.model.config import ModelConfig
from vitscale.model.resnet import BIT_EPS, STEM_EPS, BiTConv2d, GroupNorm, StdConv2d

CONFIG = bit(1, 1, 1, 1).model_copy(update={"head_bias": -6.9})


@pytest.fixture(scope="module")
def model():
    """BiT with a unit per stage, every parameter random."""
    return randomised(CONFIG)


@pytest.mark.parametrize("size", [(24, 24), (33, 17)], ids=str)
def test_bit_is_the_papers_at_every_size(model, size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(images).numpy()
    expected = logits_native(weights_of(model), CONFIG, images.numpy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert expected.std(axis=0).min() > 5e-3


def test_every_parameter_matters(model):
    (model(torch.randn(2, 3, 24, 24)) * torch.randn(2, 5)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad.abs().max() < 1e-3] == []


def test_a_second_unit_of_a_stage_has_no_projection_and_no_stride():
    with torch.device("meta"):
        model = build(bit(2, 1, 3, 1, width_factor=3))
        x = torch.empty(1, 192, 56, 56)
        shapes = [[tuple((x := unit(x)).shape[1:]) for unit in stage] for stage in model.stages]
    assert shapes == [[(768, 56, 56)] * 2, [(1536, 28, 28)], [(3072, 14, 14)] * 3, [(6144, 7, 7)]]
    assert [[unit.shortcut is not None for unit in stage] for stage in model.stages] == [
        [True, False], [True], [True, False, False], [True]
    ]  # fmt: skip


def test_fresh_logits_are_the_head_bias():
    fresh = build(CONFIG)
    with torch.no_grad():
        assert (fresh(torch.randn(2, 3, 24, 24)) == torch.tensor(-6.9)).all()


@pytest.mark.parametrize(
    "kind, eps, number, inside",
    [
        (StdConv2d, STEM_EPS["official"], 1e-5, False),
        (StdConv2d, STEM_EPS["timm"], 1e-8, True),
        (BiTConv2d, BIT_EPS["official"], 1e-10, True),
        (BiTConv2d, BIT_EPS["timm"], 1e-8, True),
    ],
)
@pytest.mark.parametrize("mean, std", [(0.0, 3e-4), (1.0, 1e-2)])  # where eps shows, and where bf16 arithmetic would
def test_weights_are_standardised_in_fp32(kind, eps, number, inside, mean, std):
    torch.manual_seed(0)
    convolution = kind(16, 8, 3, eps)
    convolution.weight.data = (torch.randn(8, 16, 3, 3) * std + mean).bfloat16()
    found = convolution.standardised()
    expected = layers.standardise(convolution.weight.detach().double().numpy().transpose(2, 3, 1, 0), number, inside)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy().transpose(2, 3, 1, 0), expected, rtol=1e-4, atol=1e-4)
    images = torch.randn(1, 16, 5, 5).bfloat16()
    assert convolution(images).dtype == torch.bfloat16


def test_every_choice_of_eps_has_its_numbers():
    assert {*get_args(ModelConfig.model_fields["resnet_eps"].annotation)} == set(STEM_EPS) == set(BIT_EPS)


def test_group_norms_are_computed_in_fp32():
    torch.manual_seed(0)
    norm = GroupNorm(64, eps=1e-6)
    norm.weight.data, norm.bias.data = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    half = (torch.randn(2, 64, 5, 5) * 50 + 300).bfloat16()  # a mean that bf16 arithmetic would not survive
    scale = Affine(norm.weight.detach().double().numpy(), norm.bias.detach().double().numpy())
    expected = layers.group_norm(layers.channels_last(half.double().numpy()), scale, 1e-6).transpose(0, 3, 1, 2)
    with Watched("group_norm") as watched:
        found = norm(half)
    assert watched.seen == [torch.float32] * 3
    assert found.dtype == torch.bfloat16
    np.testing.assert_allclose(found.detach().double().numpy(), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_tensorflows_same(size, kernel, stride):
    torch.manual_seed(0)
    convolution = StdConv2d(2, 3, kernel, STEM_EPS["official"], stride)
    images = torch.randn(1, 2, size, size + 1)
    (top, bottom), (left, right) = (layers.same(side, kernel, stride) for side in (size, size + 1))
    expected = F.conv2d(F.pad(images, (left, right, top, bottom)), convolution.standardised(), stride=stride)
    found = convolution(images)
    assert found.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
