"""Which sample is in which global step: arithmetic, without state, processes or data.

The global batch is dealt to L lanes, g = global_batch / L samples each; rank r of R owns lanes [r*L/R, (r+1)*L/R). Position
q of lane l is position p = q*L + l of the source, in epoch p // N. In each epoch the shards are permuted, the samples in
that order are cut into one contiguous span per lane, a span into blocks of `shuffle_block`, and each block is permuted.
Nothing here depends on ranks, workers or restarts, so resuming at a step is asking for that step; see docs/design.md.
"""

import functools
from typing import NamedTuple

import numpy as np

from data_pipeline.draw import Purpose, permutation


class Slots(NamedTuple):
    """Samples of one step in slot order: parallel arrays of int64."""

    epochs: np.ndarray
    samples: np.ndarray


class EpochOrder(NamedTuple):
    """The permuted shards of one epoch."""

    ends: np.ndarray  # cumulated sizes in permuted order
    shift: np.ndarray  # what to add to a position in epoch order to get the sample id, by permuted shard


class Order:
    """The order of one source of N samples, as a function of (step, lane)."""

    def __init__(self, shard_sizes: np.ndarray, global_batch: int, lanes: int, shuffle_block: int, seed: int) -> None:
        assert global_batch % lanes == 0
        self.sizes = np.asarray(shard_sizes, np.int64)
        self.first = np.cumsum(self.sizes) - self.sizes
        self.num_samples = int(self.sizes.sum())
        self.lanes, self.per_lane = lanes, global_batch // lanes
        self.block, self.seed = shuffle_block, seed
        self._epoch = functools.lru_cache(maxsize=3)(self._permute_shards)

    def view(self, first_lane: int, end_lane: int) -> "LaneView":
        """The order as the owner of lanes [first_lane, end_lane) meets it, step by step."""
        return LaneView(self, first_lane, end_lane)

    def enter(self, epoch: int, lane: int) -> int:
        """The position at which a lane enters an epoch: ceil((epoch*N - lane) / L)."""
        return -((lane - epoch * self.num_samples) // self.lanes)

    def span_start(self, epoch: int, lane: int) -> int:
        """Samples of the epoch that belong to lanes before this one; the N % L lanes with one more form a cyclic run."""
        base, extra = divmod(self.num_samples, self.lanes)
        first = epoch * self.num_samples % self.lanes
        in_run = max(0, min(lane, first + extra) - first)
        wrapped = max(0, min(lane, first + extra - self.lanes))
        return lane * base + in_run + wrapped

    def block_at(self, lane: int, position: int) -> tuple[int, int, np.ndarray]:
        """The block that holds a lane's position: (its first position, its epoch, its samples in order)."""
        epoch = (position * self.lanes + lane) // self.num_samples
        enter = self.enter(epoch, lane)
        length = self.enter(epoch + 1, lane) - enter
        shift = lane * self.block // self.lanes  # spreads the lanes' block boundaries, and so the reads, over steps
        number = (position - enter + shift) // self.block
        start = max(number * self.block - shift, 0)
        end = min((number + 1) * self.block - shift, length)
        order = permutation(end - start, self.seed, Purpose.BLOCK, epoch, lane, number)
        return enter + start, epoch, self._samples(epoch, self.span_start(epoch, lane) + start + order)

    def _permute_shards(self, epoch: int) -> EpochOrder:
        order = permutation(len(self.sizes), self.seed, Purpose.SHARDS, epoch)
        ends = np.cumsum(self.sizes[order])
        return EpochOrder(ends, self.first[order] - (ends - self.sizes[order]))

    def _samples(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Sample ids at positions of the epoch's shard order."""
        shards = self._epoch(epoch)
        return positions + shards.shift[np.searchsorted(shards.ends, positions, side="right")]


class LaneView:
    """Consecutive lanes with the current block of each kept at hand: one rank's share of every step.

    Memory: lanes * shuffle_block int64. `step` may be called for any step in any order; going forward is the fast way.
    """

    def __init__(self, order: Order, first_lane: int, end_lane: int) -> None:
        self.order, self.first_lane = order, first_lane
        count = end_lane - first_lane
        self._start = np.zeros(count, np.int64)
        self._end = np.zeros(count, np.int64)
        self._epochs = np.zeros(count, np.int64)
        self._samples = np.zeros((count, order.block), np.int64)

    def step(self, step: int) -> Slots:
        """This view's samples of a global step, in slot order: lane by lane, per_lane of each."""
        per_lane = self.order.per_lane
        columns = [self._column(step * per_lane + i) for i in range(per_lane)]
        return Slots(
            np.stack([epochs for epochs, _ in columns], axis=1).reshape(-1),
            np.stack([samples for _, samples in columns], axis=1).reshape(-1),
        )

    def _column(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        for row in np.flatnonzero((position < self._start) | (position >= self._end)):
            start, epoch, samples = self.order.block_at(self.first_lane + int(row), position)
            self._start[row], self._end[row], self._epochs[row] = start, start + len(samples), epoch
            self._samples[row, : len(samples)] = samples
        rows = np.arange(len(self._start))
        return self._epochs.copy(), self._samples[rows, position - self._start]


def fingerprint(slots: Slots, first_position: int) -> int:
    """A hash of which sample stands in which slot: the sum, modulo 2^64, of one mixed word per slot.

    `first_position` is the global number (step * global_batch + slot) of the first slot. Sums of disjoint slots add up, so
    ranks hash what they consumed and the total does not depend on how many there are.
    """
    positions = np.arange(first_position, first_position + len(slots.samples), dtype=np.uint64)
    mixed = _mix64(_mix64(_mix64(positions) ^ slots.epochs.astype(np.uint64)) ^ slots.samples.astype(np.uint64))
    return int(mixed.sum(dtype=np.uint64))


def _mix64(words: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea & Flood, OOPSLA 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
