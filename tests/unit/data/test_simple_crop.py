"""The simple random crop against numpy's reflection of Pillow's resized image."""

import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_pipeline.crop import simple_crop
from data_pipeline.draw import Draw, Purpose

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def draws(number: int = 0) -> Draw:
    return Draw(0, Purpose.AUGMENT, 0, number)


def windows(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Every crop there is, by place: (rows, columns, size, size, 3)."""
    height, width, _ = image.shape
    sides = int(size * width / min(height, width)), int(size * height / min(height, width))
    resized = np.asarray(Image.fromarray(image).resize(sides, RESAMPLING[interpolation]))
    padded = np.pad(resized, ((4, 4), (4, 4), (0, 0)), "reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), (0, 1)).transpose(0, 1, 3, 4, 2)


def place(found: np.ndarray, all_windows: np.ndarray) -> tuple[int, int]:
    """Where a crop was taken; the nearest must be within Pillow's and torch's different rounding."""
    errors = np.abs(all_windows.astype(int) - found.astype(int)).max((2, 3, 4))
    assert errors.min() <= 2
    y, x = np.unravel_index(errors.argmin(), errors.shape)
    return int(y), int(x)


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize(("width", "height"), [(50, 40), (31, 80), (24, 24), (10, 12)])
def test_crops_lie_in_the_reflected_resized_image(picture, interpolation, width, height):
    image = picture(width, height)
    possible = windows(image, 24, interpolation)
    for number in range(30):
        found = simple_crop(image, 24, interpolation, draws(number))
        assert found.shape == (24, 24, 3)
        assert found.dtype == np.uint8
        place(found, possible)


def test_every_place_is_as_likely():
    image = np.random.default_rng(0).integers(0, 256, (16, 18, 3), np.uint8)
    possible = windows(image, 16, "bicubic")
    assert possible.shape[:2] == (9, 11)
    counts = Counter(place(simple_crop(image, 16, "bicubic", draws(number)), possible) for number in range(99 * 20))
    assert len(counts) == 99
    assert sum((count - 20) ** 2 / 20 for count in counts.values()) < 98 + 4 * math.sqrt(2 * 98)  # chi-squared
