"""Noise against SplitMix64 in Python's integers and the normal law."""

import numpy as np
import pytest
import torch
from scipy import stats

from data_pipeline.noise import normal_noise, splitmix64

MASK, GOLDEN = 2**64 - 1, 0x9E3779B97F4A7C15


def signed(word: int) -> int:
    return (word + 2**63) % 2**64 - 2**63


def reference(state: int) -> int:
    """SplitMix64's output for a state (Steele, Lea & Flood 2014, figure 17 with the constants of Stafford's variant 13)."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def random_words(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count, np.int64))


def test_reference_has_the_known_answers_of_seed_zero():
    assert [reference(number * GOLDEN & MASK) for number in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_splitmix_in_int64_is_splitmix():
    states = [0, 1, MASK, 2**63, 2**63 - 1, *(int(word) & MASK for word in random_words(500))]
    found = splitmix64(torch.tensor([signed(state) for state in states]))
    assert found.tolist() == [signed(reference(state)) for state in states]


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 5, 7), (1,)])
def test_noise_is_box_and_mullers_of_the_samples_stream(shape):
    words, count = random_words(4), int(np.prod(shape))
    pairs = (count + 1) // 2
    rows = []
    for word in words.tolist():
        bits = np.array([reference(word + number * GOLDEN & MASK) for number in range(1, pairs + 1)], np.uint64)
        radius = np.sqrt(-2 * np.log(((bits >> np.uint64(40)).astype(np.float64) + 0.5) / 2**24))
        angle = 2 * np.pi * (bits & np.uint64(2**24 - 1)).astype(np.float64) / 2**24
        rows.append(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(shape))
    found = normal_noise(words, *shape)
    assert found.dtype == torch.float32
    assert np.abs(found.double().numpy() - np.array(rows)).max() < 1e-4


@pytest.mark.parametrize("words", [torch.arange(64), random_words(64)], ids=["neighbours", "random"])
def test_noise_is_normal(words):
    noise = normal_noise(words, 3, 64, 64).double().numpy()
    size = noise.size
    assert np.isfinite(noise).all()
    assert abs(noise.mean()) < 4 / np.sqrt(size)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / size)
    assert abs(stats.skew(noise, axis=None)) < 4 * np.sqrt(6 / size)
    assert abs(stats.kurtosis(noise, axis=None)) < 4 * np.sqrt(24 / size)
    assert stats.kstest(noise.reshape(-1), "norm").pvalue > 1e-4
    assert 4.2 < np.abs(noise).max() < 5.9


@pytest.mark.parametrize("words", [torch.arange(64), random_words(64)], ids=["neighbours", "random"])
def test_noise_of_pixels_channels_and_samples_is_independent(words):
    noise = normal_noise(words, 3, 64, 64).double().numpy()
    half = noise.reshape(64, -1)
    cosines, sines = half[:, : half.shape[1] // 2], half[:, half.shape[1] // 2 :]
    for a, b in [
        (noise[:, :, :, 1:], noise[:, :, :, :-1]),
        (noise[:, :, 1:], noise[:, :, :-1]),
        (noise[:, 0], noise[:, 1]),
        (noise[:, 1], noise[:, 2]),
        (noise[1:], noise[:-1]),
        (cosines, sines),
        (cosines**2, sines**2),
        (noise[1:] ** 2, noise[:-1] ** 2),
    ]:
        assert abs(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]) < 4 / np.sqrt(a.size)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    words = random_words(6)
    whole = normal_noise(words, 3, 9, 11)
    assert torch.equal(torch.cat([normal_noise(part, 3, 9, 11) for part in words.split(2)]), whole)
    assert torch.equal(normal_noise(words.flip(0), 3, 9, 11).flip(0), whole)
