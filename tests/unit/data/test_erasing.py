"""Boxes to erase against the distributions they are drawn from."""

import math

import numpy as np
import pytest

from data_pipeline.draw import Draw, Purpose
from data_pipeline.erasing import erase_box


def boxes(height: int, width: int, probability: float, count: int) -> np.ndarray:
    return np.array([erase_box(height, width, probability, Draw(0, Purpose.AUGMENT, 0, n)) for n in range(count)])


@pytest.mark.parametrize(("height", "width"), [(224, 224), (16, 16), (32, 64), (1, 1), (2, 200)])
def test_boxes_lie_inside_the_image(height, width):
    y, x, h, w = boxes(height, width, 1.0, 500).T
    assert min(y.min(), x.min(), h.min(), w.min()) >= 0
    assert np.all((y + h <= height) & (x + w <= width))
    assert np.all((h < height) & (w < width))


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_boxes_are_as_frequent_as_asked(probability):
    erased = boxes(224, 224, probability, 3000).any(axis=1)
    assert abs(erased.mean() - probability) <= 4 * math.sqrt(probability * (1 - probability) / 3000)


def test_boxes_are_uniform_in_area_log_ratio_and_place():
    """Below a quarter of the image no ratio is ever rejected: sqrt(0.25 / 0.3) < 1."""
    side = 10_000
    y, x, h, w = boxes(side, side, 1.0, 6000).T.astype(float)
    assert (h * w).max() / side**2 < 1 / 3 + 1e-3
    assert (h * w).max() / side**2 > 0.32
    small = h * w < 0.25 * side**2
    y, x, h, w = (values[small] for values in (y, x, h, w))
    for values, low, high in [
        (h * w / side**2, 0.02, 0.25),
        (np.log(h / w), math.log(0.3), math.log(1 / 0.3)),
        (y / (side - h), 0, 1),
        (x / (side - w), 0, 1),
    ]:
        width = high - low
        assert values.min() >= low - 1e-3
        assert values.max() <= high + 1e-3
        assert abs(values.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * len(values)) + 1e-3
        assert abs(values.var() / (width**2 / 12) - 1) < 0.07
    assert abs(np.corrcoef([h * w, h / w, y / (side - h), x / (side - w)]) - np.eye(4)).max() < 0.08
