"""DeiT III's simple random crop, for data sets so large that the inception crop's distortion costs more than it gives."""

import numpy as np

from data_pipeline.augment import resize
from data_pipeline.draw import Draw

PAD = 4


def simple_crop(image_HWC: np.ndarray, size: int, interpolation: str, draw: Draw) -> np.ndarray:
    """The short side resized to `size`, 4 pixels reflected on every side, a crop of size x size anywhere: HWC uint8.

    Source: Touvron et al. 2022, "DeiT III", section 3.
    """
    height, width, _ = image_HWC.shape
    short = min(height, width)
    resized = resize(np.ascontiguousarray(image_HWC), size * height // short, size * width // short, interpolation)
    rows, columns = (_window(length, size, draw) for length in resized.shape[:2])
    return resized.take(rows, axis=0).take(columns, axis=1)


def _window(length: int, size: int, draw: Draw) -> np.ndarray:
    """`size` consecutive pixel numbers of a side that is reflected at both ends."""
    padded = np.pad(np.arange(length), PAD, "reflect")
    start = draw.integer(len(padded) - size + 1)
    return padded[start : start + size]
