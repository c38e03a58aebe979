"""The order of samples against a slow walk through the rule of docs/design.md, for any shape of data and machine."""

import itertools
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.order import Order, Slots, fingerprint, interleave, share_lanes
from data_pipeline.stream import resident_samples

SHARDS, BLOCK = 1, 2  # purposes
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
Walked = list[list[tuple[int, int]]]  # (epoch, sample) of every slot, by step


class Case(NamedTuple):
    """Sources, each a list of shard sizes, and a machine."""

    sources: list[list[int]]
    lanes: int
    per_lane: int
    ranks: int
    block: int
    seed: int
    weights: list[float] | None = None

    @property
    def global_batch(self) -> int:
        return self.lanes * self.per_lane

    def order(self, repeated: int = 1) -> Order:
        sources = [np.array(sizes) for sizes in self.sources]
        return Order(sources, self.global_batch, self.lanes, self.block, self.seed, self.weights, repeated)

    def owners(self) -> list[tuple[int, int]]:
        """(source, number among the lanes of that source) of each lane."""
        counts = largest_remainder(self.weights or [sum(sizes) for sizes in self.sources], self.lanes)
        centres = [(Fraction(2 * j + 1, 2 * count), k, j) for k, count in enumerate(counts) for j in range(count)]
        return [(k, j) for _, k, j in sorted(centres)]

    def steps_of(self, epochs: int, source: int = 0) -> int:
        """ceil(E * N' / G') of a source."""
        lanes = sum(k == source for k, _ in self.owners())
        return -(-epochs * sum(self.sources[source]) // (lanes * self.per_lane))

    def some_steps(self, slots: int = 4000) -> int:
        return min(self.steps_of(3), slots // self.global_batch + 1)


def largest_remainder(weights: list[float], lanes: int) -> list[int]:
    """Hamilton's method in exact numbers: the floors, then one more for each of the largest remainders, the first of equals."""
    exact = [Fraction(weight) * lanes / sum(map(Fraction, weights)) for weight in weights]
    remainders = sorted((-(share - share // 1), k) for k, share in enumerate(exact))
    winners = {k for _, k in remainders[: lanes - sum(share // 1 for share in exact)]}
    return [share // 1 + (k in winners) for k, share in enumerate(exact)]


sizes = st.one_of(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.lists(st.integers(1, 400), min_size=1, max_size=5),
    st.integers(1, 2000).map(lambda size: [size]),
)


@st.composite
def draw_case(draw: st.DrawFn) -> Case:
    ranks, lanes_per_rank = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.integers(1, 8))
    sources = draw(st.lists(sizes, min_size=1, max_size=3))
    few = st.lists(st.sampled_from([1.0, 0.7, 0.5, 1 / 3, 2.0]), min_size=len(sources), max_size=len(sources))
    weights = draw(st.none() | few)
    if min(largest_remainder(weights or [sum(source) for source in sources], ranks * lanes_per_rank)) < 1:
        sources, weights = sources[:1], None  # a source without a lane is refused
    block, seed = draw(st.sampled_from([1, 2, 3, 7, 16, 64, 5000])), draw(st.integers(0, 2**32))
    return Case(sources, ranks * lanes_per_rank, draw(st.integers(1, 4)), ranks, block, seed, weights)


uneven = Case([[3, 11, 1, 7]], lanes=4, per_lane=2, ranks=2, block=3, seed=0)  # N = 22, not divisible by lanes
below_batch = Case([[3, 2]], lanes=4, per_lane=3, ranks=4, block=2, seed=1)  # N = 5 < G = 12: epochs change within a step
below_lanes = Case([[2, 1]], lanes=8, per_lane=1, ranks=8, block=4, seed=2)  # N = 3 < L = 8: lanes without samples
single = Case([[1]], lanes=2, per_lane=2, ranks=1, block=1, seed=3)
divisible = Case([[16, 16, 32]], lanes=8, per_lane=2, ranks=4, block=8, seed=4)
wild = Case([[20_000, 1, 1, 613]], lanes=64, per_lane=32, ranks=8, block=64, seed=5)
mixed = Case([[9, 1, 30], [1], [5, 5]], lanes=6, per_lane=2, ranks=3, block=4, seed=6, weights=[3, 1, 2])
by_size = Case([[100, 20], [60]], lanes=12, per_lane=1, ranks=4, block=16, seed=7)  # 8 and 4 lanes
SHAPES = (uneven, below_batch, below_lanes, single, divisible, wild, mixed, by_size)


def on_all_shapes(test):
    for case in SHAPES:
        test = example(case=case)(test)
    return settings(max_examples=40, deadline=None)(given(case=draw_case())(test))


def shuffled(count: int, seed: int, purpose: int, *counter: int) -> list[int]:
    """The permutation rule of design section "Order of samples", in Python's integers."""
    stream = np.random.Philox(
        key=np.array([seed, purpose], np.uint64), counter=np.array([0, *counter, *(0,) * (3 - len(counter))], np.uint64)
    )
    words, bits = stream.random_raw(count).tolist(), max(count - 1, 0).bit_length()
    return sorted(range(count), key=lambda i: (words[i] >> bits, i))


def shard_order(case: Case, source: int, epoch: int) -> list[int]:
    """Sample ids of a source's epoch, shard after shard in the epoch's permuted order."""
    numbers = itertools.count(sum(map(sum, case.sources[:source])))
    shards = [list(itertools.islice(numbers, size)) for size in case.sources[source]]
    return [sample for shard in shuffled(len(shards), case.seed, SHARDS, epoch, source) for sample in shards[shard]]


def naive_epoch(case: Case, source: int, lanes: list[int], epoch: int) -> list[list[int]]:
    """The samples of each of the source's lanes in one epoch, in order."""
    num_samples = sum(case.sources[source])
    lengths = Counter(position % len(lanes) for position in range(epoch * num_samples, (epoch + 1) * num_samples))
    samples = iter(shard_order(case, source, epoch))
    used = []
    for own, lane in enumerate(lanes):
        span = list(itertools.islice(samples, lengths[own]))
        shift = int(Fraction(lane * GOLDEN % 2**64, 2**64) * case.block)
        blocks = itertools.groupby(enumerate(span), lambda pair, shift=shift: (pair[0] + shift) // case.block)
        used.append([])
        for number, members in blocks:
            block = [sample for _, sample in members]
            used[-1] += [block[i] for i in shuffled(len(block), case.seed, BLOCK, epoch, lane, number)]
    return used


def naive_lanes(case: Case, source: int, per_lane: int) -> dict[int, list[tuple[int, int]]]:
    """At least `per_lane` slots of each lane of a source, whose positions are dealt to its lanes in turn."""
    lanes = [lane for lane, (k, _) in enumerate(case.owners()) if k == source]
    num_samples = sum(case.sources[source])
    dealt: dict[int, list[tuple[int, int]]] = {lane: [] for lane in lanes}
    for epoch in range(-(-per_lane * len(lanes) // num_samples)):
        streams = [iter(samples) for samples in naive_epoch(case, source, lanes, epoch)]
        for position in range(epoch * num_samples, (epoch + 1) * num_samples):
            own = position % len(lanes)
            dealt[lanes[own]].append((epoch, next(streams[own])))
    return dealt


def naive_steps(case: Case, steps: int) -> Walked:
    """All slots of steps 0, 1, ..."""
    g = case.per_lane
    dealt = dict(item for k in range(len(case.sources)) for item in naive_lanes(case, k, steps * g).items())
    return [[slot for lane in range(case.lanes) for slot in dealt[lane][step * g : (step + 1) * g]] for step in range(steps)]


def pairs(slots: Slots) -> list[tuple[int, int]]:
    return list(zip(slots.epochs.tolist(), slots.samples.tolist(), strict=True))


def walk(case: Case, first_lane: int, end_lane: int, steps: int) -> Walked:
    view = case.order().view(first_lane, end_lane)
    return [pairs(view.step(step)) for step in range(steps)]


@on_all_shapes
def test_order_is_the_naive_walk_through_the_rule(case):
    steps = case.some_steps()
    assert walk(case, 0, case.lanes, steps) == naive_steps(case, steps)


@on_all_shapes
def test_every_sample_of_every_source_comes_exactly_once_per_epoch(case):
    """Steps [0, ceil(E*N'/G')) hold every sample of a source E times, and fewer than G' slots more."""
    epochs, owners = 3, case.owners()
    first = 0
    for source, own_sizes in enumerate(case.sources):
        own = range(first, first := first + sum(own_sizes))
        steps, batch = case.steps_of(epochs, source), sum(k == source for k, _ in owners) * case.per_lane
        assume(steps * case.global_batch < 70_000)
        slots = Counter(slot for step in walk(case, 0, case.lanes, steps) for slot in step if slot[1] in own)
        whole = set(itertools.product(range(epochs), own))
        assert slots.total() == steps * batch
        assert whole <= slots.keys()
        assert set(slots.values()) == {1}
        further = slots.keys() - whole
        assert len(further) < batch
        assert all(epoch >= epochs for epoch, _ in further)


@on_all_shapes
def test_ranks_side_by_side_are_the_global_batch(case):
    steps = min(case.steps_of(2), 25)
    width = case.lanes // case.ranks
    parts = [walk(case, rank * width, (rank + 1) * width, steps) for rank in range(case.ranks)]
    together = [[slot for part in parts for slot in part[step]] for step in range(steps)]
    assert together == walk(case, 0, case.lanes, steps)
    assert {len(part[step]) for part in parts for step in range(steps)} == {case.global_batch // case.ranks}


@on_all_shapes
def test_jumping_to_a_step_is_walking_there(case):
    steps = min(case.steps_of(2), 25) + 1
    walked = walk(case, 0, case.lanes, steps)
    fresh = [pairs(case.order().view(0, case.lanes).step(step)) for step in range(steps)]
    backwards = case.order().view(0, case.lanes)
    assert fresh == walked
    assert [pairs(backwards.step(step)) for step in reversed(range(steps))] == walked[::-1]


@on_all_shapes
def test_a_blocks_reads_are_contiguous_in_the_epochs_shard_order(case):
    order = case.order()
    for lane, (source, own) in enumerate(case.owners()):
        lanes, num_samples = len(order_lanes(case, source)), sum(case.sources[source])
        place = [{sample: i for i, sample in enumerate(shard_order(case, source, epoch))} for epoch in range(2)]
        position, ends = 0, []
        while (position * lanes + own) // num_samples < 2:
            first, epoch, samples = order.block_at(lane, position)
            places = sorted(place[epoch][sample] for sample in samples.tolist())
            assert first == position
            assert places == list(range(places[0], places[0] + len(samples)))
            assert len(samples) <= case.block
            ends.append((epoch, places[0], places[-1]))
            position += len(samples)
        for (epoch, _, last), (next_epoch, first_place, _) in itertools.pairwise(ends):
            assert next_epoch > epoch or first_place == last + 1


def order_lanes(case: Case, source: int) -> list[int]:
    return [lane for lane, (k, _) in enumerate(case.owners()) if k == source]


@on_all_shapes
def test_each_block_is_opened_once_and_its_handle_stands_at_its_slots(case):
    """From any first step on: also where a step ends one block and passes through others."""
    start, steps, opened = case.some_steps() // 2, case.some_steps(), []
    first_lane, end_lane = (case.ranks - 1) * case.lanes // case.ranks, case.lanes

    def open_block(samples: np.ndarray) -> tuple[int, list[int]]:
        opened.append(samples.tolist())
        return len(opened) - 1, samples.tolist()

    order = case.order()
    view = order.view(first_lane, end_lane, open_block)
    numbers = {}
    for step in range(start, steps):
        slots = view.step(step)
        for i, (sample, (number, members)) in enumerate(zip(slots.samples.tolist(), view.handles, strict=True)):
            lane, position = first_lane + i // case.per_lane, step * case.per_lane + i % case.per_lane
            assert sample in members
            assert numbers.setdefault((lane, order.block_at(lane, position).start), number) == number
    assert sorted(numbers.values()) == list(range(len(opened)))  # one number for each block that was passed


@pytest.mark.parametrize("source_sizes", [[[20_000]], [[1] * 50], [[7, 5000, 1]], [[900, 1], [2, 30]]], ids=str)
@pytest.mark.parametrize("lanes", [4, 12, 60])
@pytest.mark.parametrize("per_lane", [1, 5])
def test_any_number_of_ranks_has_the_same_steps(source_sizes, lanes, per_lane):
    if len(source_sizes) > 1 and lanes < 60:
        source_sizes = [source_sizes[0], [300]]
    case = Case(source_sizes, lanes, per_lane, 1, 16, 9)
    expected = naive_steps(case, 12)
    for ranks in (r for r in range(1, lanes + 1) if lanes % r == 0):
        width = lanes // ranks
        views = [case.order().view(rank * width, (rank + 1) * width) for rank in range(ranks)]
        for step in (0, 5, 11):
            assert [slot for view in views for slot in pairs(view.step(step))] == expected[step]


def test_a_step_a_million_epochs_ahead_is_a_lookup():
    """No replay, and no overflow: the position is checked with Python's integers."""
    case = Case([[1000, 3]], lanes=16, per_lane=4, ranks=1, block=64, seed=5)
    step = 10**6 * 1003 // case.global_batch
    slots = case.order().view(0, 16).step(step)
    positions = [(step * 4 + i) * 16 + lane for lane in range(16) for i in range(4)]
    assert slots.epochs.tolist() == [position // 1003 for position in positions]


@pytest.mark.parametrize("ranks", [1, 3, 8, 24, 96, 768])
@pytest.mark.parametrize("block", [16, 64, 100])
def test_every_rank_reads_evenly(ranks, block):
    """In no step does a rank open many more blocks than on average, whatever part of the lanes it owns."""
    lanes, opened = 768, []
    order = Order([np.array([lanes * 20 * block])], lanes, lanes, block, 0)
    width = lanes // ranks
    for rank in range(0, ranks, max(1, ranks // 4)):
        view = order.view(rank * width, (rank + 1) * width, opened.append)
        view.step(block)  # the first step opens a block of each lane
        for step in range(block + 1, 3 * block + 1):
            opened.clear()
            view.step(step)
            assert abs(len(opened) - width / block) < 3


def naive_repeated(case: Case, repeated: int, steps: int) -> Walked:
    """DeiT's sampler (facebookresearch/deit samplers.py) over the order's slots: each stands `repeated` times, then cut."""
    slots = [slot for step in naive_steps(case, -(-steps // repeated)) for slot in step]
    entries = [(epoch * repeated + nth, sample) for epoch, sample in slots for nth in range(repeated)]
    return [entries[start : start + case.global_batch] for start in range(0, steps * case.global_batch, case.global_batch)]


@pytest.mark.parametrize("repeated", [2, 3, 5])
@on_all_shapes
def test_repeated_samples_stand_one_after_another_on_any_number_of_ranks(case, repeated):
    steps, width = min(case.some_steps(), 20), case.lanes // case.ranks
    views = [case.order(repeated).view(rank * width, (rank + 1) * width) for rank in range(case.ranks)]
    found = [[slot for view in views for slot in pairs(view.step(step))] for step in range(steps)]
    assert found == naive_repeated(case, repeated, steps)
    later = [slot for view in reversed(views) for slot in reversed(pairs(view.step(steps // 2)))][::-1]
    assert later == found[steps // 2]  # a step is a lookup


@pytest.mark.parametrize("case", [divisible, uneven, by_size], ids=["divisible", "uneven", "two sources"])
def test_in_so_many_epochs_every_sample_has_each_of_its_views_once(case):
    """An epoch is as long as without: N / G steps, which see a third of the samples three times each."""
    view, repeated = case.order(3).view(0, case.lanes), 3
    samples = sum(map(sum, case.sources))
    steps = samples // case.global_batch
    first = Counter(sample for step in range(steps) for _, sample in pairs(view.step(step)))
    assert len(first) == -(-steps * case.global_batch // repeated) and sorted(first.values())[1:] == [3] * (len(first) - 1)
    seen = Counter(slot for step in range(-(-3 * samples // case.global_batch)) for slot in pairs(view.step(step)))
    assert {(nth, sample) for nth in range(3) for sample in range(samples)} <= seen.keys()
    assert set(seen.values()) == {1}


@on_all_shapes
def test_handles_of_repeated_samples_are_those_of_their_blocks(case):
    opened, view = [], None

    def open_block(samples: np.ndarray) -> list[int]:
        opened.append(samples.tolist())
        return opened[-1]

    view = case.order(3).view(0, case.lanes // case.ranks, open_block)
    for step in range(7, min(case.some_steps(), 20)):
        slots = view.step(step)
        assert all(sample in members for sample, members in zip(slots.samples.tolist(), view.handles, strict=True))


@given(st.sampled_from([1, 2, 5, 24]), st.integers(1, 4), st.integers(1, 6), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_of_repeated_samples_a_rank_holds_the_blocks_that_are_counted(lanes_per_rank, per_lane, ranks, repeated):
    lanes = lanes_per_rank * ranks
    case = Case([[lanes * 2000]], lanes, per_lane, ranks, 1000, 0)
    for rank in range(ranks):
        opened: list[np.ndarray] = []
        view = case.order(repeated).view(rank * lanes_per_rank, (rank + 1) * lanes_per_rank, opened.append)
        for step in range(repeated):
            view.step(step + 600 * repeated)  # each lane in the middle of a block, or at the begin of its second
        counted = resident_samples(lanes_per_rank, per_lane, 1000, repeated) / resident_samples(1, per_lane, 1000)
        assert len(opened) <= counted


weight_lists = st.lists(st.one_of(st.integers(1, 9), st.floats(1e-3, 1e3)), min_size=1, max_size=8)


@given(weights=weight_lists, lanes=st.integers(1, 300))
@example(weights=[4, 1, 1], lanes=8)  # a tie that rounded floats would give to the second
@example(weights=[0.1, 0.1, 0.1], lanes=4)
@settings(max_examples=200, deadline=None)
def test_lanes_are_shared_by_largest_remainder(weights, lanes):
    expected = largest_remainder(weights, lanes)
    if min(expected) > 0:
        assert share_lanes(weights, lanes) == expected
    else:
        with pytest.raises(DataError, match=rf"source number {expected.index(0) + 1} .* less than one of the {lanes} lanes"):
            share_lanes(weights, lanes)


@given(counts=st.lists(st.integers(1, 200), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_every_run_of_lanes_has_its_share_of_each_source(counts):
    """A cut through lanes in order of (j + 1/2) / n_k leaves n_k * m / L +- (1 + K n_k / L) lanes of source k before it."""
    owners = interleave(counts)
    lanes = sum(counts)
    for k, count in enumerate(counts):
        assert owners[owners[:, 0] == k, 1].tolist() == list(range(count))
        before = np.cumsum(owners[:, 0] == k)
        assert (np.abs(before - count * np.arange(1, lanes + 1) / lanes) <= 1 + len(counts) * count / lanes).all()


def test_another_seed_is_another_order():
    first, other = (Case([[50, 50]], 4, 1, 1, 16, seed) for seed in (0, 1))
    assert walk(first, 0, 4, 10) != walk(other, 0, 4, 10)


def test_equal_sources_are_shuffled_differently():
    order = Order([np.array([5] * 20)] * 2, 2, 2, 1, 0)
    slots = np.array([order.view(0, 2).step(step).samples for step in range(100)])
    assert (slots[:, 0] != slots[:, 1] - 100).any()


def test_epochs_differ_and_move_samples_between_lanes():
    case = Case([[16] * 16], lanes=8, per_lane=1, ranks=1, block=8, seed=0)
    slots = [slot for step in walk(case, 0, 8, 64) for slot in step]
    assert [sample for _, sample in slots[:256]] != [sample for _, sample in slots[256:]]
    lane_of = {slot: i % 8 for i, slot in enumerate(slots)}
    moved = sum(lane_of[0, sample] != lane_of[1, sample] for sample in range(256))
    assert moved > 256 // 2  # 7/8 expected of a random permutation of the shards


def splitmix64(state: int) -> int:
    """The output after `state` (Steele, Lea & Flood 2014, figure 16), in Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_reference_has_the_known_answers_of_splitmix64():
    answers = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [splitmix64(1234567 + i * 0x9E3779B97F4A7C15) for i in range(5)] == answers


def slots_of(*values: tuple[int, int]) -> Slots:
    epochs, samples = np.array(values, np.int64).reshape(-1, 2).T
    return Slots(epochs, samples)


def hashed(slots: Slots, first: int) -> int:
    """Of consecutive slots."""
    return fingerprint(slots, np.arange(first, first + len(slots.samples)))


@pytest.mark.parametrize("first", [0, 1, 2**40])
def test_fingerprint_is_the_sum_of_one_mixed_word_per_slot(first):
    values = [(0, 5), (0, 3), (1, 0), (2, 2**33)]
    mixed = [splitmix64(splitmix64(splitmix64(first + i) ^ epoch) ^ sample) for i, (epoch, sample) in enumerate(values)]
    assert hashed(slots_of(*values), first) == sum(mixed) % 2**64


def test_fingerprint_of_nothing_is_zero():
    assert hashed(slots_of(), 7) == 0


@on_all_shapes
def test_fingerprints_of_ranks_add_up_to_the_whole(case):
    step, width = 3, case.lanes // case.ranks
    order = case.order()
    total = 0
    for rank in range(case.ranks):
        first = step * case.global_batch + rank * width * case.per_lane
        total += hashed(order.view(rank * width, (rank + 1) * width).step(step), first)
    whole = hashed(order.view(0, case.lanes).step(step), step * case.global_batch)
    assert total % 2**64 == whole


slot_lists = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), min_size=2, max_size=20)


@given(values=slot_lists, data=st.data())
@settings(max_examples=100, deadline=None)
def test_fingerprint_tells_two_swapped_slots(values, data):
    i, j = data.draw(st.tuples(*2 * [st.integers(0, len(values) - 1)]))
    swapped = list(values)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    assert (hashed(slots_of(*swapped), 0) == hashed(slots_of(*values), 0)) == (swapped == values)


def test_slots_of_several_steps_are_hashed_at_once_as_one_by_one():
    values = [(0, 5), (0, 3), (1, 0), (2, 2**33)]
    apart = hashed(slots_of(*values[:1]), 7) + hashed(slots_of(*values[1:]), 1000)
    assert fingerprint(slots_of(*values), np.array([7, 1000, 1001, 1002])) == apart % 2**64


@given(values=slot_lists, data=st.data(), change=st.sampled_from([(1, 0), (0, 1), (3, 77)]))
@settings(max_examples=100, deadline=None)
def test_fingerprint_tells_one_changed_slot_and_another_place(values, data, change):
    i = data.draw(st.integers(0, len(values) - 1))
    changed = list(values)
    changed[i] = (values[i][0] + change[0], values[i][1] + change[1])
    assert hashed(slots_of(*changed), 0) != hashed(slots_of(*values), 0)
    assert hashed(slots_of(*values), 1) != hashed(slots_of(*values), 0)
