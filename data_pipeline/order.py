"""Which sample is in which global step: arithmetic, without state, processes or data, by the rule of docs/design.md.

Nothing here depends on ranks, workers or restarts, so resuming at a step is asking for that step.
"""

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.draw import GOLDEN, Purpose, permutation, splitmix64
from data_pipeline.errors import DataError


class Slots(NamedTuple):
    """Samples of one step in slot order: parallel arrays of int64. Samples are numbered through all sources."""

    epochs: np.ndarray  # how often the sample was used before
    samples: np.ndarray


class Block(NamedTuple):
    """Samples of one lane that are shuffled, and read, together."""

    start: int  # the lane's position of its first sample
    epoch: int
    samples: np.ndarray  # in the order in which they are used


class Source:
    """The order of one source of N samples over its own lanes: who has which position, in which epoch, of which span."""

    def __init__(self, shard_sizes: np.ndarray, number: int, lanes: int, seed: int) -> None:
        self.sizes = np.asarray(shard_sizes, np.int64)
        self.first = np.cumsum(self.sizes) - self.sizes
        self.num_samples = int(self.sizes.sum())
        self.number, self.lanes, self.seed = number, lanes, seed
        self._epoch = functools.lru_cache(maxsize=3)(self._permute_shards)

    def __reduce__(self) -> tuple:  # to another process, without what is remembered
        return Source, (self.sizes, self.number, self.lanes, self.seed)

    def enter(self, epoch: int, lane: int) -> int:
        """The position at which a lane enters an epoch: ceil((epoch*N - lane) / L)."""
        return -((lane - epoch * self.num_samples) // self.lanes)

    def span_start(self, epoch: int, lane: int) -> int:
        """Samples of the epoch that belong to lanes before this one: up to its end, less those up to its begin."""
        begin, end = epoch * self.num_samples, (epoch + 1) * self.num_samples
        before, after = (position // self.lanes * lane + min(position % self.lanes, lane) for position in (begin, end))
        return after - before

    def samples(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Numbers, within this source, of the samples at positions of the epoch's shard order."""
        ends, shift = self._epoch(epoch)
        return positions + shift[np.searchsorted(ends, positions, side="right")]

    def _permute_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """By permuted shard: where it ends in the epoch's order, and what makes a position there a number in this source."""
        order = permutation(len(self.sizes), self.seed, Purpose.SHARDS, epoch, self.number)
        sizes = self.sizes[order]
        ends = np.cumsum(sizes)
        return ends, self.first[order] + sizes - ends


class Order:
    """The order of sources (the shard sizes of each), mixed by weight, by default by their numbers of samples."""

    def __init__(
        self,
        sources: Sequence[np.ndarray],
        global_batch: int,
        lanes: int,
        shuffle_block: int,
        seed: int,
        weights: Sequence[float] | None = None,
        repeated: int = 1,
    ) -> None:
        if global_batch % lanes:
            raise DataError(f"{lanes} lanes do not divide a global batch of {global_batch}; choose one of its divisors")
        counts = share_lanes(weights or [float(np.sum(sizes)) for sizes in sources], lanes)
        self.sources = [Source(sizes, k, n, seed) for k, (sizes, n) in enumerate(zip(sources, counts, strict=True))]
        self.first_sample = np.cumsum([0, *(source.num_samples for source in self.sources)])  # of each source, and the end
        self.lanes, self.per_lane = lanes, global_batch // lanes
        self.block, self.seed, self.repeated = shuffle_block, seed, repeated
        self._owner = interleave(counts)

    @property
    def num_samples(self) -> int:
        return int(self.first_sample[-1])

    def lanes_of(self, rank: int, ranks: int) -> tuple[int, int]:
        """The lanes [first, end) that a rank owns."""
        if self.lanes % ranks:
            raise DataError(f"{self.lanes} lanes cannot feed {ranks} ranks evenly; choose a divisor of the lanes")
        return rank * self.lanes // ranks, (rank + 1) * self.lanes // ranks

    def view(
        self, first_lane: int, end_lane: int, opened: Callable[[np.ndarray], Any] | None = None
    ) -> "LaneView | RepeatedView":
        """The order as the owner of the slots of lanes [first_lane, end_lane) meets it; see `LaneView` for `opened`."""
        return (RepeatedView if self.repeated > 1 else LaneView)(self, first_lane, end_lane, opened)

    def block_at(self, lane: int, position: int) -> Block:
        """The block that holds a lane's position."""
        number, own = self._owner[lane].tolist()  # the source, and the lane's number among those of the source
        source = self.sources[number]
        epoch = (position * source.lanes + own) // source.num_samples
        enter = source.enter(epoch, own)
        length = source.enter(epoch + 1, own) - enter
        # Multiples of the golden ratio spread any run of lanes evenly (three gaps), so every rank's reads over steps.
        shift = (lane * GOLDEN & 2**64 - 1) * self.block >> 64
        index = (position - enter + shift) // self.block
        start = max(index * self.block - shift, 0)
        end = min((index + 1) * self.block - shift, length)
        order = permutation(end - start, self.seed, Purpose.BLOCK, epoch, lane, index)
        samples = source.samples(epoch, source.span_start(epoch, own) + start + order)
        return Block(enter + start, epoch, samples + self.first_sample[number])


def share_lanes(weights: Sequence[float], lanes: int) -> list[int]:
    """Lanes of each source, in proportion to its weight, by largest remainder; the earlier source wins a tie."""
    total = sum(map(Fraction, weights))
    exact = [Fraction(weight) * lanes / total for weight in weights]  # floats would break ties by their rounding
    counts = [int(share) for share in exact]
    for k in sorted(range(len(counts)), key=lambda k: counts[k] - exact[k])[: lanes - sum(counts)]:
        counts[k] += 1
    if min(counts) < 1:
        k = counts.index(min(counts))
        raise DataError(
            f"data.train: source number {k + 1} has {weights[k] / sum(weights):.2%} of the weight, less than one of the "
            f"{lanes} lanes; give it more weight, or raise data.lanes (at most train.global_batch)"
        )
    return counts


def interleave(counts: Sequence[int]) -> np.ndarray:
    """(lanes, 2) int64: each lane's source and its number among the lanes of that source, spread evenly over all lanes."""
    places = [((j + 0.5) / count, k, j) for k, count in enumerate(counts) for j in range(count)]
    return np.array([(k, j) for _, k, j in sorted(places)], np.int64)


class LaneView:
    """Consecutive lanes with the current block of each kept at hand: one rank's share of every step.

    Memory: lanes * shuffle_block int64. `step` may be called for any step in any order; going forward is the fast way.
    `opened(samples)` is called once for each block that a step enters; what it returns stands in `handles`, slot by
    slot, after the step.
    """

    def __init__(self, order: Order, first_lane: int, end_lane: int, opened: Callable[[np.ndarray], Any] | None = None) -> None:
        self.order, self.first_lane, self.opened = order, first_lane, opened
        count = end_lane - first_lane
        self._start, self._end, self._epochs = np.zeros((3, count), np.int64)
        self._samples = np.zeros((count, order.block), np.int64)
        self._handles = np.empty(count, object)
        self.handles: list[Any] = []

    def step(self, step: int) -> Slots:
        """This view's samples of a global step, in slot order: lane by lane, per_lane of each."""
        first = step * self.order.per_lane
        columns = [self._column(first + i) for i in range(self.order.per_lane)]
        epochs, samples, handles = (np.stack(parts, axis=1).reshape(-1) for parts in zip(*columns, strict=True))
        self.handles = handles.tolist()
        return Slots(epochs, samples)

    def _column(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Epochs, samples and handles of the slots at this position of each lane."""
        for row in np.flatnonzero((position < self._start) | (position >= self._end)):
            block = self.order.block_at(self.first_lane + int(row), position)
            self._start[row], self._end[row], self._epochs[row] = block.start, block.start + len(block.samples), block.epoch
            self._samples[row, : len(block.samples)] = block.samples
            if self.opened:
                self._handles[row] = self.opened(block.samples)
        rows = np.arange(len(self._start))
        return self._epochs.copy(), self._samples[rows, position - self._start], self._handles.copy()


class RepeatedView:
    """The same of an order whose samples stand in `repeated` slots each, one after another (Hoffer et al. 2020).

    As many steps go through the samples of one step of the order. Here each has a view of the lanes that it takes them from.
    """

    def __init__(self, order: Order, first_lane: int, end_lane: int, opened: Callable[[np.ndarray], Any] | None = None) -> None:
        self.repeated, per_lane = order.repeated, order.per_lane
        self.handles: list[Any] = []
        self._parts = []
        for part in range(order.repeated):
            slots = part * order.lanes * per_lane + np.arange(first_lane * per_lane, end_lane * per_lane)
            places = slots // order.repeated  # slots of the order's own step
            first, last = places[[0, -1]].tolist()
            lanes = LaneView(order, first // per_lane, last // per_lane + 1, opened)
            self._parts.append((lanes, places - first // per_lane * per_lane, slots % order.repeated))

    def step(self, step: int) -> Slots:
        """This view's samples of a global step, in slot order; each of a sample's slots counts as an epoch of its own."""
        number, part = divmod(step, self.repeated)
        lanes, places, nth = self._parts[part]
        epochs, samples = lanes.step(number)
        self.handles = [lanes.handles[place] for place in places.tolist()]
        return Slots(epochs[places] * self.repeated + nth, samples[places])


def fingerprint(slots: Slots, positions: np.ndarray) -> int:
    """A hash of which sample stands in which slot: the sum, modulo 2^64, of one mixed word per slot.

    `positions` are the slots' global numbers, step * global_batch + slot. Sums of disjoint slots add up, so ranks hash what
    they consumed and the total does not depend on how many there are.
    """
    mixed = splitmix64(positions + GOLDEN)
    for column in slots:
        mixed = splitmix64((mixed ^ column) + GOLDEN)
    return int(mixed.sum()) & 2**64 - 1
