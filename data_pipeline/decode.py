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
    if simplejpeg.is_jpeg(image) and b"Exif\0" not in image[:64]:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(image)
        if colorspace in ("YCbCr", "Gray") and height * width <= MAX_PIXELS:
            return simplejpeg.decode_jpeg(image, "RGB")
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} pixels, more than the {MAX_PIXELS:,} allowed")
            return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except OSError as error:
        raise ValueError(f"not a readable image ({error})") from error
