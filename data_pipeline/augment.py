"""Pixels -> pixels of the model's size, in the workers; flips and mixing happen on the device (mixing.py)."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data_pipeline.config import DataConfig
from data_pipeline.draw import Draw


class Box(NamedTuple):
    """A rectangle of pixels."""

    x: int
    y: int
    width: int
    height: int


def crop_box(width: int, height: int, area: tuple[float, float], ratio: tuple[float, float], draw: Draw) -> Box:
    """An inception crop (Szegedy et al. 2015, section 6): area uniform, log aspect ratio uniform, ten tries, else the centre.

    `area` is a range of fractions of the image, `ratio` of width / height.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        pixels = width * height * draw.uniform(*area)
        aspect = math.exp(draw.uniform(*log_ratio))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        x, y = draw.uniform(), draw.uniform()
        if 0 < w <= width and 0 < h <= height:
            return Box(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def resize(image_HWC: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Antialiased resize of uint8 pixels -> HWC uint8."""
    pixels = torch.from_numpy(image_HWC).permute(2, 0, 1)[None]  # a channels-last view: the fast path of torch's kernel
    resized = F.interpolate(pixels, (height, width), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def train_view(image_HWC: np.ndarray, size: int, config: DataConfig, draw: Draw) -> np.ndarray:
    """A random crop, resized to size x size."""
    height, width, _ = image_HWC.shape
    box = crop_box(width, height, config.augment.crop_area, config.augment.crop_ratio, draw)
    crop = image_HWC[box.y : box.y + box.height, box.x : box.x + box.width]
    return resize(np.ascontiguousarray(crop), size, size, config.interpolation)


def eval_view(image_HWC: np.ndarray, size: int, eval_crop: float, interpolation: str) -> np.ndarray:
    """The short side resized to size / eval_crop, then the centre of size x size."""
    height, width, _ = image_HWC.shape
    scale = round(size / eval_crop) / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    resized = resize(np.ascontiguousarray(image_HWC), height, width, interpolation)
    y, x = (height - size) // 2, (width - size) // 2
    return resized[y : y + size, x : x + size]
