"""What becomes of one encoded image: pixels of the model's size, and what the device does to them."""

from typing import NamedTuple

import numpy as np

from data_pipeline import decode
from data_pipeline.augment import augment
from data_pipeline.config import DataConfig, Preprocessing
from data_pipeline.crop import crop_box, middle, resize, simple_crop
from data_pipeline.draw import Draw
from data_pipeline.erasing import erase_box


class View(NamedTuple):
    """One slot of a batch."""

    pixels_HWC: np.ndarray  # uint8
    flip: bool = False
    erase: tuple[int, int, int, int] = (0, 0, 0, 0)  # y, x, height, width; height 0 = nothing
    noise: int = 0  # what the noise in that rectangle follows from


def train_crop(image: bytes, config: DataConfig, draw: Draw) -> np.ndarray:
    """HWC uint8: what `train_view` needs of an encoded image, the random crop where that is the inception crop."""
    if config.augment.crop == "simple":
        return decode.decode(image)
    box = crop_box(*decode.size(image), config.augment.crop_area, config.augment.crop_ratio, draw)
    return decode.decode(image, box)


def train_view(crop_HWC: np.ndarray, size: int, config: DataConfig, draw: Draw) -> View:
    """Of size x size, its colours and shapes changed as the recipe says. `draw` is the one that `train_crop` used."""
    options = config.augment
    if options.crop == "simple":
        pixels = simple_crop(crop_HWC, size, config.interpolation, draw)
    else:
        pixels = resize(crop_HWC, size, size, config.interpolation)
    pixels = augment(pixels, options, draw)
    flip = options.flip and draw.uniform() < 0.5
    if not options.erase:
        return View(pixels, flip)
    return View(pixels, flip, erase_box(size, size, options.erase, draw), draw.word())


def eval_view(image_HWC: np.ndarray, size: int, config: Preprocessing) -> np.ndarray:
    """The short side resized to size / config.eval_crop, then the centre of size x size."""
    image_HWC = middle(image_HWC)
    height, width, _ = image_HWC.shape
    scale = round(size / config.eval_crop) / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    resized = resize(np.ascontiguousarray(image_HWC), height, width, config.interpolation)
    y, x = (height - size) // 2, (width - size) // 2
    return resized[y : y + size, x : x + size]
