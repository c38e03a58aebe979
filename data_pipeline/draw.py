"""Randomness as a pure function of what it is for.

The key of a Philox counter generator (Salmon et al., SC 2011) is (seed, purpose), its counter names the thing drawn for. Only
raw 64-bit words are taken from numpy: they are guaranteed never to change, `Generator`'s distributions are not (NEP 19).
"""

import math
import threading
from enum import IntEnum
from typing import Any

import numpy as np

# Of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), as int64; the first is 2^64 / golden ratio.
GOLDEN, _FIRST, _SECOND = (word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
NEW: Any = np.random.Philox(key=0).state


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
    FEWSHOT = 9


class _Own(threading.local):
    """A generator per thread, set to a stream: making one costs six times as much, most of it a seed from the system."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)


_own = _Own()


def words(count: int, seed: int, purpose: Purpose, *counter: int) -> np.ndarray:
    """`count` uint64 words of the stream named by (seed, purpose, counter); at most three counter numbers."""
    high = (*counter, *(0,) * (3 - len(counter)))  # the lowest word counts the draws
    _own.philox.state = NEW | {"state": {"key": (seed, purpose), "counter": (0, *high)}}
    return _own.philox.random_raw(count)


def permutation(count: int, seed: int, purpose: Purpose, *counter: int) -> np.ndarray:
    """A permutation of range(count): random words, their low bits replaced by the index, sorted, masked."""
    low_bits = np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
    keys = words(count, seed, purpose, *counter) & ~low_bits | np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & low_bits).astype(np.int64)


def splitmix64(words: Any) -> Any:
    """SplitMix64's output function on int64 of numpy or torch, which wrap as uint64 do."""
    words = (words ^ shift_right(words, 30)) * _FIRST
    words = (words ^ shift_right(words, 27)) * _SECOND
    return words ^ shift_right(words, 31)


def shift_right(words: Any, bits: int) -> Any:
    """With zeros from the left; numpy's and torch's own repeats the sign."""
    return (words >> bits) & (2 ** (64 - bits) - 1)


class Draw:
    """A short stream of numbers for one thing, e.g. one sample in one epoch."""

    def __init__(self, seed: int, purpose: Purpose, *counter: int) -> None:
        self._words = lambda count: words(count, seed, purpose, *counter).tolist()
        self._drawn, self._left = 8, self._words(8)[::-1]  # most draws are as short

    def _next(self) -> int:
        if not self._left:
            self._left = self._words(2 * self._drawn)[: self._drawn - 1 : -1]
            self._drawn *= 2
        return self._left.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((self._next() >> 11) * 2.0**-53)

    def integer(self, count: int) -> int:
        """A whole number in [0, count), evenly but for count / 2^64."""
        return self._next() * count >> 64

    def word(self) -> int:
        """64 random bits, as a number that fits int64."""
        return self._next() - 2**63

    def normal(self, mean: float, std: float) -> float:
        """Of the normal distribution, by Box and Muller (1958)."""
        return mean + std * math.sqrt(-2 * math.log(1 - self.uniform())) * math.cos(2 * math.pi * self.uniform())

    def beta(self, alpha: float) -> float:
        """Beta(alpha, alpha) by Johnk's rejection (1964), which needs uniforms only."""
        while True:
            u, v = self.uniform() ** (1 / alpha), self.uniform() ** (1 / alpha)
            if 0 < u + v <= 1:
                return u / (u + v)
