"""Changes of what a crop looks like, in the workers: RandAugment, 3-Augment, colour jitter."""

import itertools

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from data_pipeline.config import AugmentConfig
from data_pipeline.draw import Draw
from data_pipeline.randaugment import RANDAUGMENTS

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_ORDERS = tuple(itertools.permutations(range(len(_ENHANCERS))))


def augment(image_HWC: np.ndarray, config: AugmentConfig, draw: Draw) -> np.ndarray:
    """uint8 pixels of the model's size -> as many, changed as the recipe asks: 3-Augment, then jitter, then RandAugment."""
    if not (config.three_augment or config.color_jitter or config.randaugment_layers):
        return image_HWC
    image = Image.fromarray(image_HWC)
    if config.three_augment:
        image = three_augment(image, draw)
    if config.color_jitter:
        image = color_jitter(image, config.color_jitter, draw)
    return np.asarray(RANDAUGMENTS[config.randaugment](image, config.randaugment_layers, config.randaugment_magnitude, draw))


def three_augment(image: Image.Image, draw: Draw) -> Image.Image:
    """One of grey, solarize and blur (Touvron et al. 2022, "DeiT III", section 3)."""
    choice = draw.integer(3)
    if choice == 0:
        return image.convert("L").convert("RGB")
    if choice == 1:
        return ImageOps.solarize(image, 128)
    return image.filter(ImageFilter.GaussianBlur(draw.uniform(0.1, 2.0)))


def color_jitter(image: Image.Image, jitter: float, draw: Draw) -> Image.Image:
    """Brightness, contrast and saturation times factors in [1 - jitter, 1 + jitter], in any order, as torchvision does it."""
    for number in _ORDERS[draw.integer(len(_ORDERS))]:
        image = _ENHANCERS[number](image).enhance(draw.uniform(max(0.0, 1 - jitter), 1 + jitter))
    return image
