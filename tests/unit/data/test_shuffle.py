"""The measures of shuffling against hand-made cases, and what the default order makes of shards sorted by class."""

import itertools
import math

import numpy as np
import pytest
from benchmarks.bench_shuffle import batches_of, class_entropy, measure, met_again

from data_pipeline.config import DataConfig
from data_pipeline.order import Order

BLOCK = DataConfig.model_fields["shuffle_block"].default


def test_entropy_of_known_batches():
    labels = np.array([0, 0, 1, 1, 0, 1, 2, 3, 2, 2, 2, 2, 3])
    batches = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3])  # the last is not whole
    assert class_entropy(labels, batches, 4) == pytest.approx((math.log2(2) + math.log2(4) + 0) / 3)
    assert class_entropy(np.array([0, 1, 1, 1]), np.zeros(4, int), 4) == pytest.approx(2 - 3 / 4 * math.log2(3))


def test_meeting_again_counts_pairs():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 60), rng.integers(0, 7, 60)
    together = [(i, j) for i, j in itertools.combinations(range(60), 2) if first[i] == first[j]]
    again = sum(second[i] == second[j] for i, j in together)
    assert met_again(first, second) == pytest.approx(again / len(together))
    assert met_again(first, first) == 1


def test_batches_are_the_steps_of_the_order():
    order = Order([np.array([7, 1, 30])], 12, 6, 4, 3)
    found = batches_of(order)
    for step in range(7):
        slots = order.view(0, 6).step(step)
        inside = slots.epochs < 2
        assert (found[slots.epochs[inside], slots.samples[inside]] == step).all()


def sorted_shards(lanes: int, block: int, sizes: np.ndarray) -> Order:
    return Order([sizes], 128, lanes, block, 0)


@pytest.mark.parametrize("num_shards", [100, 128, 13])
def test_the_default_mixes_classes_and_batch_mates_as_a_full_shuffle_does(num_shards):
    """Down to 1 % of the entropy; the case of 128 shards of a multiple of the lanes' spans is the worst for batch-mates."""
    sizes = np.full(num_shards, 16_000 // num_shards)
    quality = measure(sorted_shards(128, BLOCK, sizes), 100)
    assert quality.entropy > 0.99 * quality.full_entropy
    assert quality.met_again < 2 * quality.full_met_again


def test_what_shuffles_badly_is_seen():
    sizes = np.full(128, 125)
    few_lanes, no_block = measure(sorted_shards(4, BLOCK, sizes), 100), measure(sorted_shards(128, 1, sizes), 100)
    assert few_lanes.entropy < 0.6 * few_lanes.full_entropy
    assert no_block.met_again == 1  # shards and spans are aligned, so lanes go through them in step for ever
