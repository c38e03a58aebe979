"""The order of samples against a slow walk through the rule of docs/design.md, for any shape of data and machine."""

import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.order import Order, Slots, fingerprint

SHARDS, BLOCK = 1, 2  # purposes
MASK = 2**64 - 1


class Case(NamedTuple):
    """A source and a machine."""

    sizes: list[int]
    lanes: int
    per_lane: int
    ranks: int
    block: int
    seed: int

    @property
    def num_samples(self) -> int:
        return sum(self.sizes)

    @property
    def global_batch(self) -> int:
        return self.lanes * self.per_lane

    def order(self) -> Order:
        return Order(np.array(self.sizes), self.global_batch, self.lanes, self.block, self.seed)

    def steps_of(self, epochs: int) -> int:
        return -(-epochs * self.num_samples // self.global_batch)


cases = st.builds(
    lambda sizes, ranks, lanes_per_rank, per_lane, block, seed: Case(
        sizes, ranks * lanes_per_rank, per_lane, ranks, block, seed
    ),
    st.one_of(
        st.lists(st.integers(1, 5), min_size=1, max_size=6),
        st.lists(st.integers(1, 400), min_size=1, max_size=5),
        st.integers(1, 2000).map(lambda size: [size]),
    ),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(1, 8),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 7, 16, 64, 5000]),
    st.integers(0, 2**32),
)

uneven = Case([3, 11, 1, 7], lanes=4, per_lane=2, ranks=2, block=3, seed=0)  # N = 22, not divisible by lanes
below_batch = Case([3, 2], lanes=4, per_lane=3, ranks=4, block=2, seed=1)  # N = 5 < G = 12: epochs change within a step
below_lanes = Case([2, 1], lanes=8, per_lane=1, ranks=8, block=4, seed=2)  # N = 3 < L = 8: lanes without samples
single = Case([1], lanes=2, per_lane=2, ranks=1, block=1, seed=3)
divisible = Case([16, 16, 32], lanes=8, per_lane=2, ranks=4, block=8, seed=4)


def on_all_shapes(test):
    for case in (uneven, below_batch, below_lanes, single, divisible):
        test = example(case=case)(test)
    return settings(max_examples=40, deadline=None)(given(case=cases)(test))


def shuffled(count: int, seed: int, purpose: int, *counter: int) -> list[int]:
    """The permutation rule of design section "Order of samples", in Python's integers."""
    stream = np.random.Philox(
        key=np.array([seed, purpose], np.uint64), counter=np.array([0, *counter, *(0,) * (3 - len(counter))], np.uint64)
    )
    words, bits = stream.random_raw(count).tolist(), max(count - 1, 0).bit_length()
    return sorted(range(count), key=lambda i: (words[i] >> bits, i))


def shard_order(case: Case, epoch: int) -> list[int]:
    """Sample ids of an epoch, shard after shard in the epoch's permuted order."""
    numbers = np.split(np.arange(case.num_samples), np.cumsum(case.sizes)[:-1])
    order = shuffled(len(case.sizes), case.seed, SHARDS, epoch)
    return [int(sample) for shard in order for sample in numbers[shard]]


def naive_epoch(case: Case, epoch: int) -> list[list[int]]:
    """The samples of every lane in one epoch, in order."""
    first, end = epoch * case.num_samples, (epoch + 1) * case.num_samples
    lengths = Counter(position % case.lanes for position in range(first, end))
    samples = iter(shard_order(case, epoch))
    lanes = []
    for lane in range(case.lanes):
        span = list(itertools.islice(samples, lengths[lane]))
        shift = lane * case.block // case.lanes
        blocks = itertools.groupby(enumerate(span), lambda pair, shift=shift: (pair[0] + shift) // case.block)
        lanes.append([])
        for number, members in blocks:
            block = [sample for _, sample in members]
            lanes[-1] += [block[i] for i in shuffled(len(block), case.seed, BLOCK, epoch, lane, number)]
    return lanes


def naive_steps(case: Case, steps: int) -> list[list[tuple[int, int]]]:
    """(epoch, sample) of every slot of steps 0, 1, ...: positions are dealt to the lanes in turn."""
    dealt: list[list[tuple[int, int]]] = [[] for _ in range(case.lanes)]
    total = steps * case.global_batch
    for epoch in range(-(-total // case.num_samples)):
        lanes = [iter(lane) for lane in naive_epoch(case, epoch)]
        for position in range(epoch * case.num_samples, (epoch + 1) * case.num_samples):
            lane = position % case.lanes
            dealt[lane].append((epoch, next(lanes[lane])))
    g = case.per_lane
    return [[slot for lane in dealt for slot in lane[step * g : (step + 1) * g]] for step in range(steps)]


def pairs(slots: Slots) -> list[tuple[int, int]]:
    return list(zip(slots.epochs.tolist(), slots.samples.tolist(), strict=True))


def walk(case: Case, first_lane: int, end_lane: int, steps: int) -> list[list[tuple[int, int]]]:
    view = case.order().view(first_lane, end_lane)
    return [pairs(view.step(step)) for step in range(steps)]


@on_all_shapes
def test_order_is_the_naive_walk_through_the_rule(case):
    steps = min(case.steps_of(3), 4000 // case.global_batch + 1)
    assert walk(case, 0, case.lanes, steps) == naive_steps(case, steps)


@on_all_shapes
def test_every_sample_comes_exactly_once_per_epoch(case):
    """Steps [0, ceil(E*N/G)) hold every sample E times, and fewer than G slots more."""
    epochs = 3
    slots = Counter(slot for step in walk(case, 0, case.lanes, case.steps_of(epochs)) for slot in step)
    whole = {(epoch, sample) for epoch in range(epochs) for sample in range(case.num_samples)}
    assert whole <= slots.keys()
    assert set(slots.values()) == {1}
    further = slots.keys() - whole
    assert len(further) < case.global_batch
    assert all(epoch >= epochs and 0 <= sample < case.num_samples for epoch, sample in further)


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
    place = {epoch: {sample: i for i, sample in enumerate(shard_order(case, epoch))} for epoch in range(2)}
    for lane in range(case.lanes):
        position, ends = 0, []
        while (position * case.lanes + lane) // case.num_samples < 2:
            first, epoch, samples = order.block_at(lane, position)
            places = sorted(place[epoch][sample] for sample in samples.tolist())
            assert first == position
            assert places == list(range(places[0], places[0] + len(samples)))
            assert len(samples) <= case.block
            ends.append((epoch, places[0], places[-1]))
            position += len(samples)
        for (epoch, _, last), (next_epoch, first_place, _) in itertools.pairwise(ends):
            assert next_epoch > epoch or first_place == last + 1


def test_a_step_a_million_epochs_ahead_is_a_lookup():
    """No replay, and no overflow: the position is checked with Python's integers."""
    case = Case([1000, 3], lanes=16, per_lane=4, ranks=1, block=64, seed=5)
    step = 10**6 * case.num_samples // case.global_batch
    slots = case.order().view(0, 16).step(step)
    positions = [(step * 4 + i) * 16 + lane for lane in range(16) for i in range(4)]
    assert slots.epochs.tolist() == [position // case.num_samples for position in positions]


def test_lanes_open_their_blocks_in_turn():
    """With as many lanes as samples in a block, one lane opens a block at every step: reads come evenly."""
    lanes = block = 16
    order = Order(np.array([lanes * 160]), lanes, lanes, block, 0)
    opened = Counter()
    for lane in range(lanes):
        position = 0
        while position < 160:
            first, _, samples = order.block_at(lane, position)
            opened[first] += 1
            position = first + len(samples)
    assert opened.pop(0) == lanes
    assert set(opened) == set(range(1, 160))
    assert set(opened.values()) == {1}


def test_another_seed_is_another_order():
    first, other = (Case([50, 50], 4, 1, 1, 16, seed) for seed in (0, 1))
    assert walk(first, 0, 4, 10) != walk(other, 0, 4, 10)


def test_epochs_differ_and_move_samples_between_lanes():
    case = Case([16] * 16, lanes=8, per_lane=1, ranks=1, block=8, seed=0)
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


@pytest.mark.parametrize("first", [0, 1, 2**40])
def test_fingerprint_is_the_sum_of_one_mixed_word_per_slot(first):
    values = [(0, 5), (0, 3), (1, 0), (2, 2**33)]
    mixed = [splitmix64(splitmix64(splitmix64(first + i) ^ epoch) ^ sample) for i, (epoch, sample) in enumerate(values)]
    assert fingerprint(slots_of(*values), first) == sum(mixed) % 2**64


def test_fingerprint_of_nothing_is_zero():
    assert fingerprint(slots_of(), 7) == 0


@on_all_shapes
def test_fingerprints_of_ranks_add_up_to_the_whole(case):
    step, width = 3, case.lanes // case.ranks
    order = case.order()
    total = 0
    for rank in range(case.ranks):
        first = step * case.global_batch + rank * width * case.per_lane
        total += fingerprint(order.view(rank * width, (rank + 1) * width).step(step), first)
    whole = fingerprint(order.view(0, case.lanes).step(step), step * case.global_batch)
    assert total % 2**64 == whole


slot_lists = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), min_size=2, max_size=20)


@given(values=slot_lists, data=st.data())
@settings(max_examples=100, deadline=None)
def test_fingerprint_tells_two_swapped_slots(values, data):
    i, j = data.draw(st.tuples(*2 * [st.integers(0, len(values) - 1)]))
    swapped = list(values)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    assert (fingerprint(slots_of(*swapped), 0) == fingerprint(slots_of(*values), 0)) == (swapped == values)


@given(values=slot_lists, data=st.data(), change=st.sampled_from([(1, 0), (0, 1), (3, 77)]))
@settings(max_examples=100, deadline=None)
def test_fingerprint_tells_one_changed_slot_and_another_place(values, data, change):
    i = data.draw(st.integers(0, len(values) - 1))
    changed = list(values)
    changed[i] = (values[i][0] + change[0], values[i][1] + change[1])
    assert fingerprint(slots_of(*changed), 0) != fingerprint(slots_of(*values), 0)
    assert fingerprint(slots_of(*values), 1) != fingerprint(slots_of(*values), 0)
