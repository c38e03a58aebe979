"""Noise as a pure function of a word and a place: no generator's state, so no dependence on batch, rank or order."""

import math

import torch

from data_pipeline.draw import GOLDEN, shift_right, splitmix64


def normal_noise(word_B: torch.Tensor, *shape: int) -> torch.Tensor:
    """float32 N(0, 1) of (B, *shape) from int64 words, on their device.

    Word number i of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) started at a sample's word makes two numbers (Box & Muller
    1958), from 24 bits each, so none is beyond 5.9.
    """
    count = math.prod(shape)
    bits = _words(word_B, (count + 1) // 2)
    radius = (-2 * torch.log((shift_right(bits, 40).float() + 0.5) * 2**-24)).sqrt()
    angle = (bits & 0xFFFFFF).float() * (math.tau * 2**-24)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :count].unflatten(1, shape)


def uniform_noise(word_B: torch.Tensor, *shape: int) -> torch.Tensor:
    """float32, uniform in [0, 1), of (B, *shape), from 24 bits of such words each."""
    return (shift_right(_words(word_B, math.prod(shape)), 40).float() * 2**-24).unflatten(1, shape)


def _words(word_B: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` words of SplitMix64 started at each of these."""
    return splitmix64(word_B[:, None] + torch.arange(1, count + 1, device=word_B.device) * GOLDEN)
