"""Draws against the reference definition of Philox and the closed forms of their distributions."""

import math
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipeline.draw import Draw, Purpose, permutation, words

MASK = 2**64 - 1
ONES = 4 * (MASK,)
PI = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)
MORE_PI = (0x452821E638D01377, 0xBE5466CF34E90C6C)


def philox4x64(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Ten rounds of Philox-4x64 (Salmon et al., SC 2011, section 3.3 and table 2), in Python's integers."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (right >> 64) ^ b ^ k0, right & MASK, (left >> 64) ^ d ^ k1, left & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return a, b, c, d


def reference_words(count: int, seed: int, purpose: int, *counter: int) -> list[int]:
    """The stream as draw.py promises it: the lowest counter word counts blocks of four words, from 1."""
    high = (*counter, 0, 0, 0)[:3]
    blocks = (philox4x64((number, *high), (seed, purpose)) for number in range(1, count // 4 + 2))
    return [word for block in blocks for word in block][:count]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (ONES, ONES[:2], "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
        (PI, MORE_PI, "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6"),
    ],
)
def test_reference_has_the_known_answers_of_random123(counter, key, answer):
    assert " ".join(f"{word:016x}" for word in philox4x64(counter, key)) == answer


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 1, MASK])
@pytest.mark.parametrize("counter", [(), (5,), (5, 6), (5, 6, 7), (0, 0, 7)])
def test_words_are_philox_keyed_by_seed_and_purpose(seed, counter):
    assert words(11, seed, Purpose.BLOCK, *counter).tolist() == reference_words(11, seed, 2, *counter)


def test_purposes_keep_their_numbers():
    """They are part of every key: another number is another order of samples in every run there is."""
    numbers = {"SHARDS": 1, "BLOCK": 2, "AUGMENT": 3, "MIX": 4, "SPLIT": 5, "DROPOUT": 6, "REPLACE": 7, "DROP_PATH": 8}
    numbers |= {"FEWSHOT": 9}
    assert {purpose.name: purpose.value for purpose in Purpose} == numbers


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000])
def test_permutation_sorts_by_the_words_high_bits(count):
    bits = (count - 1).bit_length() if count else 0
    high = [word >> bits for word in reference_words(count, 9, Purpose.SHARDS, 4)]
    found = permutation(count, 9, Purpose.SHARDS, 4).tolist()
    assert found == sorted(range(count), key=lambda i: (high[i], i))
    assert sorted(found) == list(range(count))


def test_permutations_of_three_are_equally_frequent():
    counts: dict[tuple[int, ...], int] = {}
    for block in range(6000):
        order = tuple(permutation(3, 0, Purpose.BLOCK, 0, 0, block).tolist())
        counts[order] = counts.get(order, 0) + 1
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert len(counts) == 6
    assert chi_square < 20.5  # 99.9 % quantile at 5 degrees of freedom


def test_uniform_is_the_top_53_bits_of_each_word():
    draw, expected = Draw(7, Purpose.AUGMENT, 1, 2), reference_words(9, 7, Purpose.AUGMENT, 1, 2)
    assert [draw.uniform() for _ in expected] == [(word >> 11) / 2**53 for word in expected]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 5.0), (0.05, 1.0)])
def test_uniform_has_range_mean_and_variance_of_the_uniform_law(low, high):
    draw = Draw(0, Purpose.AUGMENT)
    values = np.array([draw.uniform(low, high) for _ in range(20_000)])
    width = high - low
    assert low <= values.min() < low + width / 1000
    assert high - width / 1000 < values.max() < high
    assert abs(values.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * len(values))
    assert abs(values.var() / (width**2 / 12) - 1) < 4 * math.sqrt(0.8 / len(values))  # var of a sample variance: 4/5 sigma^4


@pytest.mark.parametrize("count", [1, 2, 3, 16, 1000, 2**40 + 1])
def test_integers_are_the_scaled_words(count):
    draw = Draw(4, Purpose.AUGMENT, 1)
    found = [draw.integer(count) for _ in range(20)]
    assert found == [word * count // 2**64 for word in reference_words(20, 4, 3, 1)]


def test_words_of_a_draw_fit_int64_and_are_its_stream():
    draw = Draw(4, Purpose.AUGMENT, 1)
    found = np.array([draw.word() for _ in range(20)], np.int64)
    assert (found.astype(object) + 2**63).tolist() == reference_words(20, 4, 3, 1)
    assert found.min() < 0 < found.max()


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 0.8, 1.0, 2.0])
def test_beta_has_the_mean_and_variance_of_the_symmetric_beta_law(alpha):
    draw = Draw(2, Purpose.MIX)
    values = np.array([draw.beta(alpha) for _ in range(8_000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert values.min() >= 0
    assert values.max() <= 1
    assert abs(values.mean() - 0.5) < 4 * math.sqrt(variance / len(values))
    assert abs(values.var() / variance - 1) < 0.05


@pytest.mark.parametrize(("alpha", "cdf"), [(1.0, lambda x: x), (0.5, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x)))])
def test_beta_has_the_distribution_known_in_closed_form(alpha, cdf):
    draw = Draw(3, Purpose.MIX)
    values = np.sort([draw.beta(alpha) for _ in range(5_000)])
    steps = np.arange(1, len(values) + 1) / len(values)
    assert np.abs(cdf(values) - steps).max() < 1.95 / math.sqrt(len(values))  # Kolmogorov-Smirnov at 0.1 %


def test_draws_of_several_threads_and_in_turn_keep_their_streams():
    def take_turns(thread: int) -> list[list[int]]:
        draws = [Draw(5, Purpose.AUGMENT, thread, sample) for sample in range(3)]
        return [[draw.word() + 2**63 for draw in draws] for _ in range(40)]

    with ThreadPoolExecutor(4) as pool:
        for thread, found in enumerate(pool.map(take_turns, range(16))):
            for sample, stream in enumerate(zip(*found, strict=True)):
                assert list(stream) == reference_words(40, 5, 3, thread, sample)


def test_draws_of_one_thing_do_not_depend_on_what_was_drawn_before():
    things = [(epoch, sample) for epoch in range(3) for sample in range(5)]
    alone = {thing: Draw(0, Purpose.AUGMENT, *thing).uniform() for thing in things}
    random.Random(0).shuffle(things)
    assert {thing: Draw(0, Purpose.AUGMENT, *thing).uniform() for thing in things} == alone
    assert len(set(alone.values())) == len(things)
