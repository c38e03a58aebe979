"""How the groups of a step are mixed: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019)."""

import math

import numpy as np

from data_pipeline.draw import Draw, Purpose

Rectangle = tuple[int, int, int, int]  # y, x, height, width


def mix_plan(
    mixup: float, cutmix: float, size: int, mix_group: int, seed: int, step: int, first_slot: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(weights, boxes) of `count` slots of a global step: float32 shares of each slot's own image, int32 cutmix boxes.

    `mixup` and `cutmix` are alphas of Beta(alpha, alpha), 0 = off; with both on, a group takes either with probability 1/2.
    All slots of a group of `mix_group` have the same. A box is (y, x, height, width) of a size x size image, height 0 = mixup.
    """
    if not (mixup or cutmix):
        return np.ones(count, np.float32), np.zeros((count, 4), np.int32)
    groups = range(first_slot // mix_group, (first_slot + count) // mix_group)
    mixes = [_mix(mixup, cutmix, size, Draw(seed, Purpose.MIX, step, group)) for group in groups]
    weights = np.asarray([weight for weight, _ in mixes], np.float32)
    boxes = np.asarray([box for _, box in mixes], np.int32)
    return np.repeat(weights, mix_group), np.repeat(boxes, mix_group, axis=0)


def _mix(mixup: float, cutmix: float, size: int, draw: Draw) -> tuple[float, Rectangle]:
    if cutmix and not (mixup and draw.uniform() < 0.5):
        box = _cut_box(size, draw.beta(cutmix), draw)
        return 1 - box[2] * box[3] / size**2, box
    weight = draw.beta(mixup)
    return max(weight, 1 - weight), (0, 0, 0, 0)


def _cut_box(size: int, weight: float, draw: Draw) -> Rectangle:
    """A square of the share 1 - weight of the image about any pixel, cut off at the border."""
    half = int(size * math.sqrt(1 - weight)) // 2
    y, x = draw.integer(size), draw.integer(size)
    top, left = max(y - half, 0), max(x - half, 0)
    return top, left, min(y + half, size) - top, min(x + half, size) - left
