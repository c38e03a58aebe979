"""The float64 references of weights: layers against closed forms; a tensor or a detail that is wrong shows in the logits."""

import math
from functools import partial

import numpy as np
import pytest
from references import bit, huggingface, layers, official, timm
from references.layers import Affine
from references.spec import BiTSpec, ViTSpec
from references.transformer import Attention, attention
from scipy.signal import correlate2d

ONES = Affine(np.float64(1.0), np.float64(0.0))
HYBRID = ViTSpec(image_size=16, patch_size=1, stem=(1, 2))
BIT = BiTSpec((2, 1), width=64)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pixels(rng, side, batch=2):
    return rng.uniform(-1, 1, (batch, 3, side, side))


@pytest.mark.parametrize(
    "side, window, stride, pads",
    [(224, 7, 2, (2, 3)), (112, 3, 2, (0, 1)), (15, 3, 2, (1, 1)), (56, 3, 1, (1, 1)), (56, 1, 2, (0, 0))],
)
def test_same_padding_is_tensorflows(side, window, stride, pads):
    assert layers.same(side, window, stride) == pads
    assert len(range(0, side + sum(pads) - window + 1, stride)) == math.ceil(side / stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_scipys(rng, stride):
    x, kernel = rng.normal(size=(2, 9, 7, 3)), rng.normal(size=(3, 3, 3, 4))
    found = layers.conv(x, kernel, stride, layers.fixed)
    for image in range(2):
        for out in range(4):
            planes = [correlate2d(x[image, :, :, c], kernel[:, :, c, out], mode="same") for c in range(3)]
            np.testing.assert_allclose(found[image, :, :, out], sum(planes)[::stride, ::stride], atol=1e-12)


def test_pool_sees_what_it_is_padded_with(rng):
    x = -rng.uniform(1, 2, (1, 4, 4, 1))
    assert layers.max_pool(x, layers.same, -np.inf)[0, 1, 1, 0] == x[0, 2:, 2:, 0].max()
    assert layers.max_pool(x, layers.fixed, 0.0)[0, :, :, 0].tolist() == [[0, 0], [0, x[0, 1:, 1:, 0].max()]]


@pytest.mark.parametrize("eps, inside", [(1e-5, False), (1e-10, True)])
def test_standardised_kernels_have_mean_0_and_variance_1(rng, eps, inside):
    kernel = layers.standardise(rng.normal(3, 0.2, (3, 3, 8, 6)), eps, inside)
    np.testing.assert_allclose(kernel.mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(kernel.var((0, 1, 2)), 1, atol=2e-4)


def test_eps_of_standardised_kernels_stands_in_its_place():
    kernel = np.array([1e-3, -1e-3]).reshape(1, 1, 2, 1)
    assert layers.standardise(kernel, 1e-5, inside=False)[0, 0, 0, 0] == pytest.approx(1 / 1.01)
    assert layers.standardise(kernel, 3e-6, inside=True)[0, 0, 0, 0] == pytest.approx(1 / 2)


def test_group_norm_takes_neighbouring_channels_together(rng):
    x = rng.normal(2, 3, (2, 3, 5, 64))
    found, group = layers.group_norm(x, ONES, 0.5), x[1, :, :, 6:8]
    np.testing.assert_allclose(found[1, :, :, 6:8], (group - group.mean()) / math.sqrt(group.var() + 0.5), atol=1e-12)


def test_gelus():
    """Phi(1) = 0.841344746 (a table of the normal distribution); the tanh form misses it by 2e-4."""
    assert layers.gelu_erf(np.array([-1.0, 0.0, 1.0])) == pytest.approx([-0.158655254, 0.0, 0.841344746], abs=1e-9)
    assert layers.gelu_tanh(np.array(1.0)) == pytest.approx(0.841192, abs=1e-6)


def test_attention_on_equal_keys_is_the_mean_of_the_values(rng):
    tokens, identity, constant = (
        rng.normal(size=(1, 5, 4)),
        Affine(np.eye(4), np.zeros(4)),
        Affine(np.zeros((4, 4)), np.ones(4)),
    )
    found = attention(tokens, tokens, Attention(identity, constant, identity, identity), num_heads=2)
    np.testing.assert_allclose(found, np.broadcast_to(tokens.mean(1), (1, 5, 4)), atol=1e-12)


FILES = {
    "official": (official.random_official, official.logits_official, ViTSpec(representation_size=16), 12),
    "official hybrid": (official.random_official, official.logits_official, HYBRID, 16),
    "big_vision": (partial(official.random_official, big_vision=True), official.logits_official, ViTSpec(pool="map"), 12),
    "bit": (bit.random_bit, bit.logits_bit, BIT, 16),
    "timm": (partial(timm.random_timm, layer_scale=True), partial(timm.logits_timm, num_heads=3), ViTSpec(pool="map"), 12),
    "timm avg": (partial(timm.random_timm, fc_norm=True), partial(timm.logits_timm, num_heads=3), ViTSpec(pool="gap"), 12),
    "timm hybrid": (timm.random_timm, partial(timm.logits_timm, num_heads=3), HYBRID, 16),
    "timm bit": (timm.random_timm_bit, timm.logits_timm_bit, BIT, 16),
    "huggingface": (huggingface.random_huggingface, partial(huggingface.logits_huggingface, num_heads=3), ViTSpec(), 12),
}


@pytest.mark.parametrize("layout", FILES)
def test_every_tensor_counts_and_logits_are_of_order_1(rng, layout):
    draw, logits, spec, side = FILES[layout]
    tensors, images = draw(spec, rng), pixels(rng, side, batch=1)
    before = logits(tensors, images)
    assert before.shape == (1, 5)
    assert 0.1 < np.abs(before).max() < 20
    assert all(tensor.dtype == np.float32 and not np.isin(tensor, (0, 1)).any() for tensor in tensors.values())
    for name, tensor in tensors.items():
        changed = tensor + tensor.std() * rng.normal(size=tensor.shape).astype(np.float32)
        moved = np.abs(logits({**tensors, name: changed}, images) - before).max()
        of_keys = "key" in name and "bias" in name  # q . b is the same for all keys: softmax does not see it
        assert moved < 1e-9 if of_keys else moved > 1e-4, name


def changes(resnet, *details):
    return [{"resnet": resnet._replace(**detail)} for detail in details]


OFFICIAL = {"kernel_eps": official.RESNET.kernel_eps, "eps_inside": False}
DETAILS = {
    "huggingface": [{"eps": 1e-6}, {"gelu": layers.gelu_tanh}],
    "timm": [{"gelu": layers.gelu_tanh}],
    "timm hybrid": changes(timm.HYBRID, {"group_eps": 1e-6}, OFFICIAL, {"padding": layers.fixed}),
    "timm bit": changes(timm.BIT, {"group_eps": 1e-6}, {"kernel_eps": 1e-10}, {"padding": layers.same}),
}


@pytest.mark.parametrize("layout, number", [(layout, number) for layout in DETAILS for number in range(len(DETAILS[layout]))])
def test_details_show_at_the_tolerance_of_parity(rng, layout, number):
    draw, logits, spec, side = FILES[layout]
    tensors, images = draw(spec, rng), pixels(rng, side)
    moved = np.abs(logits(tensors, images, **DETAILS[layout][number]) - logits(tensors, images)).max()
    assert moved > 2e-5
