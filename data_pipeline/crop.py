"""Crops of images, and their size."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from data_pipeline.box import Box
from data_pipeline.draw import Draw

LONGEST = 64  # times the short side, of an image that is resized by it: a line of one pixel would become gigabytes
PAD = 4  # pixels reflected on every side before a simple crop


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
    # Channels last by torch's own measure, the batch's stride included: then so is the result, and nothing is rearranged.
    # Views by numpy: each call of torch lets go of the interpreter's lock, for which another decoding thread may wait.
    pixels_BCHW = image_HWC.reshape(1, *image_HWC.shape).transpose(0, 3, 1, 2)
    resized_BCHW = F.interpolate(torch.from_numpy(pixels_BCHW), (height, width), mode=interpolation, antialias=True)
    return resized_BCHW.numpy()[0].transpose(1, 2, 0)


def middle(image_HWC: np.ndarray) -> np.ndarray:
    """The image; of one longer than LONGEST times its short side the middle."""
    limit = LONGEST * min(image_HWC.shape[:2])
    y, x = (max(0, length - limit) // 2 for length in image_HWC.shape[:2])
    return image_HWC[y : y + limit, x : x + limit]


def simple_crop(image_HWC: np.ndarray, size: int, interpolation: str, draw: Draw) -> np.ndarray:
    """The short side resized to `size`, PAD pixels reflected, a square anywhere (Touvron et al. 2022, section 3): HWC uint8."""
    image_HWC = middle(image_HWC)
    height, width, _ = image_HWC.shape
    short = min(height, width)
    resized = resize(np.ascontiguousarray(image_HWC), size * height // short, size * width // short, interpolation)
    padded = np.pad(resized, ((PAD, PAD), (PAD, PAD), (0, 0)), "reflect")
    y, x = (draw.integer(length - size + 1) for length in padded.shape[:2])
    return padded[y : y + size, x : x + size]
