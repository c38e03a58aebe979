"""How well the order shuffles, measured where it is hardest: on shards sorted by class.

Two numbers, each beside what a full shuffle of the same samples has: the class entropy of a batch, and how often two
samples that met in a batch of one epoch meet again in the next.
"""

from typing import NamedTuple

import numpy as np

from data_pipeline.order import Order

EPOCHS = 2


class Quality(NamedTuple):
    """Of an order, and of a full shuffle."""

    entropy: float  # bits, of the classes in a batch, mean over the batches of the first epoch
    full_entropy: float
    met_again: float  # share of the pairs of a batch that share a batch in the next epoch too
    full_met_again: float


def measure(order: Order, num_classes: int, seed: int = 0) -> Quality:
    """Walk two epochs of an order over samples sorted by class, all classes equally large."""
    labels = np.arange(order.num_samples) * num_classes // order.num_samples
    batch = order.lanes * order.per_lane
    first, second = batches_of(order)
    full = np.random.default_rng(seed).permutation(order.num_samples) // batch
    return Quality(
        class_entropy(labels, first, batch),
        class_entropy(labels, full, batch),
        met_again(first, second),
        (batch - 1) / (order.num_samples - 1),
    )


def batches_of(order: Order) -> np.ndarray:
    """(epochs, samples) int64: the step in which each sample is used in each epoch."""
    steps = np.zeros((EPOCHS, order.num_samples), np.int64)
    view = order.view(0, order.lanes)
    for step in range(-(-EPOCHS * order.num_samples // (order.lanes * order.per_lane))):
        slots = view.step(step)
        inside = slots.epochs < EPOCHS
        steps[slots.epochs[inside], slots.samples[inside]] = step
    return steps


def class_entropy(labels: np.ndarray, batches: np.ndarray, batch: int) -> float:
    """Mean over whole batches of the entropy of their classes, in bits. Both arrays are by sample."""
    whole = np.flatnonzero(np.bincount(batches) == batch)
    counts = np.zeros((len(whole), labels.max() + 1))
    place = np.searchsorted(whole, batches)
    inside = np.isin(batches, whole)
    np.add.at(counts, (place[inside], labels[inside]), 1)
    shares = counts / batch
    return float(-(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum(axis=1).mean())


def met_again(first: np.ndarray, second: np.ndarray) -> float:
    """Of all pairs of samples with the same batch in `first`, the share with the same batch in `second`."""
    together = np.unique(first * (second.max() + 1) + second, return_counts=True)[1]
    return _pairs(together) / _pairs(np.bincount(first))


def _pairs(counts: np.ndarray) -> int:
    return int((counts * (counts - 1) // 2).sum())
