"""RandAugment (Cubuk et al. 2020) as AugReg was trained with it, the TensorFlow operations, oddities kept; and timm's.

Source of the first: big_vision `pp/autoaugment.py` of 2022. Where Pillow's own operation is the same arithmetic it is used. Of
strength 1 (magnitude 10) upwards the arguments extrapolate; 1.5 and 2 are AugReg's "medium" and "strong".
"""

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from data_pipeline.draw import Draw

Operation = Callable[[Image.Image, float, Draw], Image.Image]

FILL = (128, 128, 128)
BICUBIC = Image.Resampling.BICUBIC
TIMM_FILL = (124, 116, 104)  # ImageNet's mean
# TensorFlow scales grey to 255.5 and truncates; Pillow rounds, hence the -1/2.
_GREY = (0.2989 * 255.5 / 255, 0.5870 * 255.5 / 255, 0.1140 * 255.5 / 255, -0.5)
# TensorFlow truncates a thirteenth: any offset between -1/2 and -1/2 + 1/13 makes Pillow's rounding do so.
_SMOOTH = ImageFilter.Kernel((3, 3), (1, 1, 1, 1, 5, 1, 1, 1, 1), scale=13, offset=-0.5 + 0.5 / 13)
_TIE = 1e-6  # pixels; keeps a coordinate of exactly one half from falling to either side by rounding


def randaugment(image: Image.Image, layers: int, magnitude: float, draw: Draw) -> Image.Image:
    """`layers` operations on an RGB image, drawn evenly from all, with replacement, each at `magnitude`."""
    for _ in range(layers):
        operation = tuple(OPS.values())[draw.integer(len(OPS))]
        image = operation(image, magnitude / 10, draw)
    return image


def timm_randaugment(image: Image.Image, layers: int, magnitude: float, draw: Draw) -> Image.Image:
    """timm's `rand-mM-mstd0.5-inc1`: each layer half the time, at N(M, 0.5) cut off at 0 and 10, stronger with it in all."""
    for _ in range(layers):
        operation = tuple(TIMM_OPS.values())[draw.integer(len(TIMM_OPS))]
        if draw.uniform() < 0.5:
            image = operation(image, min(max(draw.normal(magnitude, 0.5), 0.0), 10.0) / 10, draw)
    return image


def autocontrast(image: Image.Image) -> Image.Image:
    """Each channel stretched to 0..255, in float32 and truncated, so that the brightest pixel may become 254."""
    extrema = cast(tuple[tuple[int, int], ...], image.getextrema())  # one pair for one channel, pairs for several
    tables = [_stretch(low, high) for low, high in extrema]
    return image.point(np.concatenate(tables).tolist())


def _stretch(low: int, high: int) -> np.ndarray:
    levels = np.arange(256, dtype=np.float32)
    if low == high:
        return levels.astype(np.uint8)
    scale = np.float32(255) / np.float32(high - low)
    return np.clip(levels * scale - np.float32(low) * scale, 0, 255).astype(np.uint8)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Only the highest `bits` of 8; TensorFlow shifts by at most 7, so at least one, and one again for more than 8."""
    return ImageOps.posterize(image, 8 - min((8 - bits) % 256, 7))


def solarize(image: Image.Image, threshold: int) -> Image.Image:
    """Inverts levels from the threshold on, which is a uint8: 256 and 512 are 0 and invert all."""
    return ImageOps.solarize(image, threshold % 256)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
    """Brightens levels below 128."""
    return image.point([min(level + addition, 255) if level < 128 else level for level in range(256)] * 3)


def color(image: Image.Image, factor: float) -> Image.Image:
    """Away from (above 1) or towards (below 1) grey."""
    return Image.blend(image.convert("L", _GREY).convert("RGB"), image, factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Away from a constant meant to be the mean level, which in the source is the number of pixels / 256: 196 at 224 x 224."""
    constant = min(image.width * image.height // 256, 255)
    return Image.blend(Image.new("RGB", image.size, (constant,) * 3), image, factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Away from black."""
    return Image.blend(Image.new("RGB", image.size), image, factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Away from the smoothed image; the border of one pixel stays."""
    return Image.blend(image.filter(_SMOOTH), image, factor)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """About the centre between the outermost pixels; positive turns the picture counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (image.width - 1) / 2, (image.height - 1) / 2
    return affine(image, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


def affine(
    image: Image.Image, row_x: tuple[float, float, float] = (1, 0, 0), row_y: tuple[float, float, float] = (0, 1, 0)
) -> Image.Image:
    """Pixel (x, y) of the result is the one nearest to (row_x . (x, y, 1), row_y . (x, y, 1)), grey outside.

    A half rounds up; the source's rounds away from zero, which differs at -1/2: one pixel at the border of some rows. Pillow
    counts from the corners of pixels, and computes its AFFINE with 16 binary places only.
    """
    rows = ((a, b, c + (1 - a - b) / 2 + _TIE) for a, b, c in (row_x, row_y))
    coefficients = (*next(rows), *next(rows), 0, 0)
    return image.transform(image.size, Image.Transform.PERSPECTIVE, coefficients, fillcolor=FILL)


def cutout(image: Image.Image, half: int, draw: Draw) -> Image.Image:
    """A grey square of side 2 * half about any pixel, cut off at the border."""
    y, x = draw.integer(image.height), draw.integer(image.width)
    result = image.copy()
    result.paste(FILL, (max(x - half, 0), max(y - half, 0), min(x + half, image.width), min(y + half, image.height)))
    return result


def _signed(value: float, draw: Draw) -> float:
    return value if draw.uniform() >= 0.5 else -value


OPS: dict[str, Operation] = {
    "AutoContrast": lambda image, _strength, _draw: autocontrast(image),
    "Equalize": lambda image, _strength, _draw: ImageOps.equalize(image),
    "Invert": lambda image, _strength, _draw: ImageOps.invert(image),
    "Rotate": lambda image, strength, draw: rotate(image, _signed(30 * strength, draw)),
    "Posterize": lambda image, strength, _draw: posterize(image, int(4 * strength)),
    "Solarize": lambda image, strength, _draw: solarize(image, int(256 * strength)),
    "Color": lambda image, strength, _draw: color(image, 1.8 * strength + 0.1),
    "Contrast": lambda image, strength, _draw: contrast(image, 1.8 * strength + 0.1),
    "Brightness": lambda image, strength, _draw: brightness(image, 1.8 * strength + 0.1),
    "Sharpness": lambda image, strength, _draw: sharpness(image, 1.8 * strength + 0.1),
    "ShearX": lambda image, strength, draw: affine(image, row_x=(1, _signed(0.3 * strength, draw), 0)),
    "ShearY": lambda image, strength, draw: affine(image, row_y=(_signed(0.3 * strength, draw), 1, 0)),
    "TranslateX": lambda image, strength, draw: affine(image, row_x=(1, 0, _signed(100 * strength, draw))),
    "TranslateY": lambda image, strength, draw: affine(image, row_y=(0, 1, _signed(100 * strength, draw))),
    "Cutout": lambda image, strength, draw: cutout(image, int(40 * strength), draw),
    "SolarizeAdd": lambda image, strength, _draw: solarize_add(image, int(110 * strength)),
}


def _enhance(
    kind: Callable[[Image.Image], ImageEnhance._Enhance], image: Image.Image, strength: float, draw: Draw
) -> Image.Image:
    return kind(image).enhance(max(0.1, 1 + _signed(0.9 * strength, draw)))


def _bicubic(image: Image.Image, *rows: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, rows, BICUBIC, fillcolor=TIMM_FILL)


# Source: timm/data/auto_augment.py, with `interpolation="bicubic"` as DeiT and MAE have it.
TIMM_OPS: dict[str, Operation] = {
    **{name: OPS[name] for name in ("Equalize", "Invert", "SolarizeAdd")},
    "AutoContrast": lambda image, _strength, _draw: ImageOps.autocontrast(image),
    "Rotate": lambda image, strength, draw: image.rotate(_signed(30 * strength, draw), BICUBIC, fillcolor=TIMM_FILL),
    # No bits, at strength 1, is black, as in Pillow before it refused that.
    "Posterize": lambda image, strength, _draw: image.point([k & -(16 << int(4 * strength)) for k in range(256)] * 3),
    "Solarize": lambda image, strength, _draw: ImageOps.solarize(image, 256 - int(256 * strength)),
    **{name: partial(_enhance, getattr(ImageEnhance, name)) for name in ("Color", "Contrast", "Brightness", "Sharpness")},
    "ShearX": lambda image, strength, draw: _bicubic(image, 1, _signed(0.3 * strength, draw), 0, 0, 1, 0),
    "ShearY": lambda image, strength, draw: _bicubic(image, 1, 0, 0, _signed(0.3 * strength, draw), 1, 0),
    "TranslateX": lambda image, strength, draw: _bicubic(image, 1, 0, _signed(0.45 * strength, draw) * image.width, 0, 1, 0),
    "TranslateY": lambda image, strength, draw: _bicubic(image, 1, 0, 0, 0, 1, _signed(0.45 * strength, draw) * image.height),
}
RANDAUGMENTS = {"tf": randaugment, "timm": timm_randaugment}
