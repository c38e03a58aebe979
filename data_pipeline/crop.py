"""Crops and sizes of images."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from data_pipeline.decode import Box
from data_pipeline.draw import Draw


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
