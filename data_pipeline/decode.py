"""Encoded image -> pixels."""

import io

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs


def decode(image: bytes) -> np.ndarray:
    """HWC uint8 RGB. JPEGs by libjpeg-turbo, the rest (and JPEGs that turn or are not RGB or grey) by Pillow.

    Raises ValueError for what is not an image, or has more than MAX_PIXELS.
    """
    if simplejpeg.is_jpeg(image) and not _may_turn(image):
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(image)
        if colorspace in ("YCbCr", "Gray") and height * width <= MAX_PIXELS:
            return simplejpeg.decode_jpeg(image, "RGB")
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return np.array(to_rgb(opened))
    except Exception as error:  # for broken bytes Pillow also raises SyntaxError, struct.error, DecompressionBombError, ...
        raise ValueError(f"not a readable image ({error})") from error


def _may_turn(jpeg: bytes) -> bool:
    """Whether a segment before the first scan is an APP1: Exif or XMP, where the orientation stands."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] not in (b"\xda", b"\xe1"):
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[at : at + 2] == b"\xff\xe1"


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, and in RGB; 16-bit grey keeps its upper byte, where Pillow's `convert` would saturate."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # in two steps: Pillow warns of the direct one
        image = image.convert("RGBA")
    return image.convert("RGB")
