"""Noise as a pure function of a word and a place: no generator's state, so no dependence on batch, rank or order."""

import math

import torch

_GOLDEN, _FIRST, _SECOND = (word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def normal_noise(word_B: torch.Tensor, *shape: int) -> torch.Tensor:
    """float32 N(0, 1) of (B, *shape) from int64 words, on their device.

    Word number i of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) started at a sample's word makes two numbers (Box & Muller
    1958), from 24 bits each, so none is beyond 5.9.
    """
    count = math.prod(shape)
    bits = _words(word_B, (count + 1) // 2)
    radius = (-2 * torch.log((_shift(bits, 40).float() + 0.5) * 2**-24)).sqrt()
    angle = (bits & 0xFFFFFF).float() * (math.tau * 2**-24)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :count].unflatten(1, shape)


def uniform_noise(word_B: torch.Tensor, *shape: int) -> torch.Tensor:
    """float32, uniform in [0, 1), of (B, *shape), from 24 bits of such words each."""
    return (_shift(_words(word_B, math.prod(shape)), 40).float() * 2**-24).unflatten(1, shape)


def _words(word_B: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` words of SplitMix64 started at each of these."""
    return splitmix64(word_B[:, None] + torch.arange(1, count + 1, device=word_B.device) * _GOLDEN)


def splitmix64(words: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function on int64, which wrap as uint64 do."""
    words = (words ^ _shift(words, 30)) * _FIRST
    words = (words ^ _shift(words, 27)) * _SECOND
    return words ^ _shift(words, 31)


def _shift(words: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, zeros from the left; torch's own repeats the sign."""
    return (words >> bits) & (2 ** (64 - bits) - 1)
