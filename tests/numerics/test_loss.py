"""Losses against float64 numpy, finite differences and closed forms."""

import math

import numpy as np
import pytest
import torch

from vitscale.loss import LOSSES, sigmoid, softmax

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(5, 7))
TARGETS = RNG.dirichlet(np.ones(7), size=5)


def softmax_reference(logits, targets):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return -(targets * (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))).sum(axis=1)


def sigmoid_reference(logits, targets):
    probability = 1 / (1 + np.exp(-logits))
    return -(targets * np.log(probability) + (1 - targets) * np.log(1 - probability)).sum(axis=1)


REFERENCES = {"softmax": softmax_reference, "sigmoid": sigmoid_reference}


def as_float32(array):
    return torch.from_numpy(array).float()


@pytest.mark.parametrize("name", LOSSES)
def test_each_image_has_the_loss_of_the_float64_reference(name):
    found = LOSSES[name](as_float32(LOGITS), as_float32(TARGETS))
    np.testing.assert_allclose(found, REFERENCES[name](LOGITS, TARGETS), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name):
    logits = as_float32(LOGITS).requires_grad_()
    LOSSES[name](logits, as_float32(TARGETS)).sum().backward()
    step = 1e-6
    for row, column in np.ndindex(LOGITS.shape):
        nudge = np.zeros_like(LOGITS)
        nudge[row, column] = step
        up, down = (REFERENCES[name](LOGITS + sign * nudge, TARGETS).sum() for sign in (1, -1))
        assert float(logits.grad[row, column]) == pytest.approx((up - down) / (2 * step), abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_large_logits_do_not_overflow(name):
    loss = LOSSES[name](torch.tensor([[1000.0, -1000.0]]), torch.tensor([[0.0, 1.0]]))
    assert loss.item() == {"softmax": 2000.0, "sigmoid": 2000.0}[name]


@pytest.mark.parametrize("name", LOSSES)
def test_bf16_logits_are_computed_in_fp32(name):
    logits = as_float32(LOGITS).bfloat16()
    found = LOSSES[name](logits, as_float32(TARGETS))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, REFERENCES[name](logits.double().numpy(), TARGETS), rtol=1e-6)


def test_the_first_losses_of_a_zero_head_are_known():
    one_hot = torch.eye(1000)[:4]
    assert softmax(torch.zeros(4, 1000), one_hot).tolist() == pytest.approx([math.log(1000)] * 4, rel=1e-6)
    bias = torch.full((4, 1000), -10.0)
    expected = 999 * math.log1p(math.exp(-10)) + math.log1p(math.exp(10))  # summed over classes, not their mean
    assert sigmoid(bias, one_hot).tolist() == pytest.approx([expected] * 4, rel=5e-6)  # 1,000 float32 terms
