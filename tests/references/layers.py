"""The layers of the papers in float64 numpy; images and feature maps are (B, H, W, C), kernels (height, width, in, out).

Convolutions and pools are their definition: a sum or a maximum over windows. SAME padding is TensorFlow's and XLA's: the output
has ceil(size / stride), an odd pixel of padding stands at the end.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import erf

Array = np.ndarray
Padding = Callable[[int, int, int], tuple[int, int]]


class Affine(NamedTuple):
    """x @ weight + bias, or for a norm x * weight + bias."""

    weight: Array
    bias: Array


def gelu_erf(x: Array) -> Array:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Array) -> Array:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def dense(x: Array, layer: Affine) -> Array:
    return x @ layer.weight + layer.bias


def layer_norm(x: Array, norm: Affine, eps: float) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * norm.weight + norm.bias


def group_norm(x: Array, norm: Affine, eps: float, groups: int = 32) -> Array:
    """Mean and variance over height, width and the channels of a group, which are neighbours."""
    grouped = x.reshape(*x.shape[:3], groups, -1)
    mean, variance = (moment(grouped, axis=(1, 2, 4), keepdims=True) for moment in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * norm.weight + norm.bias


def standardise(kernel: Array, eps: float, inside: bool) -> Array:
    """Mean 0 and variance 1 for each output channel; eps is added to the variance (inside the root) or to its root."""
    centred = kernel - kernel.mean((0, 1, 2))
    variance = kernel.var((0, 1, 2))
    return centred / (np.sqrt(variance + eps) if inside else np.sqrt(variance) + eps)


def same(size: int, window: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def fixed(size: int, window: int, stride: int) -> tuple[int, int]:  # noqa: ARG001
    return (window - 1) // 2, window // 2


def valid(size: int, window: int, stride: int) -> tuple[int, int]:  # noqa: ARG001
    return 0, 0


def windows(x: Array, window: tuple[int, int], stride: int, padding: Padding, fill: float) -> Array:
    """(B, H', W', C, window height, window width)."""
    amounts = [padding(size, side, stride) for size, side in zip(x.shape[1:3], window, strict=True)]
    padded = np.pad(x, [(0, 0), *amounts, (0, 0)], constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, window, axis=(1, 2))[:, ::stride, ::stride]


def conv(x: Array, kernel: Array, stride: int = 1, padding: Padding = same) -> Array:
    return np.tensordot(windows(x, kernel.shape[:2], stride, padding, 0.0), kernel, axes=([4, 5, 3], [0, 1, 2]))


def max_pool(x: Array, padding: Padding, fill: float) -> Array:
    """The ResNets' only pool: 3 x 3, stride 2."""
    return windows(x, (3, 3), 2, padding, fill).max((4, 5))


def patch_tokens(x: Array, embedding: Affine) -> Array:
    """Non-overlapping patches times one kernel (P, P, C, D), row by row: (B, N, D)."""
    grid = conv(x, embedding.weight, embedding.weight.shape[0], valid) + embedding.bias
    return grid.reshape(len(x), -1, grid.shape[3])


def double(tensors: dict[str, Array]) -> dict[str, Array]:
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def channels_last(images_BCHW: Array) -> Array:
    return np.asarray(images_BCHW, np.float64).transpose(0, 2, 3, 1)
