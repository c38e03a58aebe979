"""Randomness as a pure function of what it is for.

Every draw comes from a Philox counter generator whose key is (seed, purpose) and whose counter names the thing drawn for
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Only raw 64-bit words are taken from numpy: the
words are guaranteed never to change, `Generator`'s distributions are not (NEP 19).
"""

from enum import IntEnum

import numpy as np

_UNIT = 2.0**-53


class Purpose(IntEnum):
    """What a draw is for; part of the key, so that two purposes never share a stream."""

    SHARDS = 1
    BLOCK = 2
    AUGMENT = 3
    MIX = 4
    SPLIT = 5
    DROPOUT = 6
    REPLACE = 7
    DROP_PATH = 8


def words(count: int, seed: int, purpose: Purpose, *counter: int) -> np.ndarray:
    """`count` uint64 words of the stream named by (seed, purpose, counter); at most three counter numbers."""
    return _philox(seed, purpose, counter).random_raw(count)


def _philox(seed: int, purpose: Purpose, counter: tuple[int, ...]) -> np.random.Philox:
    high = (*counter, *(0,) * (3 - len(counter)))  # the lowest word counts the draws
    # As uint64, because numpy takes a list with a number above 2^63 through float64.
    return np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=np.array([0, *high], np.uint64))


def permutation(count: int, seed: int, purpose: Purpose, *counter: int) -> np.ndarray:
    """A permutation of range(count): random words, their low bits replaced by the index, sorted, masked."""
    low_bits = np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
    keys = words(count, seed, purpose, *counter) & ~low_bits | np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & low_bits).astype(np.int64)


class Draw:
    """A short stream of numbers for one thing, e.g. one sample in one epoch."""

    def __init__(self, seed: int, purpose: Purpose, *counter: int) -> None:
        self._bits = _philox(seed, purpose, counter)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * _UNIT)

    def integer(self, count: int) -> int:
        """A whole number in [0, count), evenly but for count / 2^64."""
        return int(self._bits.random_raw()) * count >> 64

    def word(self) -> int:
        """64 random bits, as a number that fits int64."""
        return int(self._bits.random_raw()) - 2**63

    def beta(self, alpha: float) -> float:
        """Beta(alpha, alpha) by Johnk's rejection (1964), which needs uniforms only."""
        while True:
            u, v = self.uniform() ** (1 / alpha), self.uniform() ** (1 / alpha)
            if 0 < u + v <= 1:
                return u / (u + v)
