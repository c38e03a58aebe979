"""How well the order shuffles, measured where it is hardest: on shards sorted by class.

    python tests/benchmarks/bench_shuffle.py --lanes 256 4096 --shuffle-block 16 64

Two numbers, each beside what a full shuffle of the same samples has: the class entropy of a batch, and how often two
samples that met in a batch of one epoch meet again in the next. And what a rank holds of remote shards for it.
"""

import argparse
from typing import NamedTuple

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.order import Order
from data_pipeline.stream import resident_samples

EPOCHS = 2
IMAGE_BYTES = 110_000


class Quality(NamedTuple):
    """Of an order, and of a full shuffle."""

    entropy: float  # bits, of the classes in a batch, mean over the batches of the first epoch
    full_entropy: float
    met_again: float  # share of the pairs of a batch that share a batch in the next epoch too
    full_met_again: float


def main() -> None:
    args = arguments()
    sizes = args.samples // args.shards + (np.arange(args.shards) < args.samples % args.shards)
    print("lanes  block  entropy/full  met again    full  GiB at 1, 8, 64 ranks")
    for lanes in args.lanes:
        for block in args.shuffle_block:
            order = Order([sizes], args.global_batch, lanes, block, args.seed)
            found = measure(order, args.classes, args.seed)
            held = [resident_samples(lanes // ranks, order.per_lane, block) * IMAGE_BYTES / 2**30 for ranks in (1, 8, 64)]
            ratio, gib = found.entropy / found.full_entropy, ", ".join(f"{size:.2f}" for size in held)
            print(f"{lanes:5}{block:7}{ratio:14.4f}{found.met_again:11.3%}{found.full_met_again:8.3%}  {gib}", flush=True)


def arguments() -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        description="How well the order shuffles shards sorted by class.", formatter_class=formatter
    )
    for name, default in (("samples", 1_281_167), ("shards", 1000), ("classes", 1000), ("global-batch", 4096), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help="of the data set and the run")
    block = DataConfig.model_fields["shuffle_block"].default
    parser.add_argument("--lanes", type=int, nargs="+", default=[4096], help="one or several, divisors of the global batch")
    parser.add_argument("--shuffle-block", type=int, nargs="+", default=[block], help="one or several")
    return parser.parse_args()


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


if __name__ == "__main__":
    main()
