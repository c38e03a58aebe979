"""Counting right guesses, against numpy that sorts."""

import numpy as np
import pytest
import torch

from vitscale.evaluate import count, summarise

KINDS = (torch.float32, torch.int64, torch.float32)  # of logits, labels and weights


def reference(logits, labels, weights):
    """(top-1, top-5, loss, images) by ranking every class in float64."""
    rank = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(axis=1)  # classes that beat the true one
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return np.array([((rank < 1) * weights).sum(), ((rank < 5) * weights).sum(), (loss * weights).sum(), weights.sum()])


@pytest.mark.parametrize("num_classes", [2, 5, 6, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_equal_numpys(num_classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.linspace(-4, 4, num_classes * 64).reshape(64, num_classes), axis=1)  # no ties
    labels = rng.integers(num_classes, size=64)
    labels[::2] = logits[::2].argmax(axis=1)
    weights = rng.integers(0, 2, size=64).astype(np.float64)
    found = count(*(torch.from_numpy(values).to(kind) for values, kind in zip((logits, labels, weights), KINDS, strict=True)))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, reference(logits, labels, weights), rtol=1e-6)


def test_padding_counts_nowhere():
    logits, labels = torch.eye(3), torch.tensor([0, 1, 2])
    alone = count(logits[:1], labels[:1], torch.ones(1))
    padded = count(logits, labels, torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(alone, padded)
    assert padded.tolist()[3] == 1


def test_five_guesses_are_right_where_one_is_not():
    logits = torch.arange(8.0).repeat(8, 1)  # class 7 first, then 6, ...
    found = [count(logits[:1], torch.tensor([label]), torch.ones(1))[:2].tolist() for label in range(8)]
    assert found == [[0, 0]] * 3 + [[0, 1]] * 4 + [[1, 1]]


def test_sums_become_means_over_images():
    summary = summarise(torch.tensor([3.0, 6.0, 1.5, 12.0], dtype=torch.float64))
    assert summary == {"top1": 0.25, "top5": 0.5, "loss": 0.125, "images": 12}
