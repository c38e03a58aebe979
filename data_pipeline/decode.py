"""Encoded image -> pixels, all or a part."""

import io

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from data_pipeline import jpeg
from data_pipeline.box import Box

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs
PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where it stands, before or behind the pixels


def size(image: bytes) -> tuple[int, int]:
    """(width, height) of what `decode` gives, from the header. Raises ValueError as `decode` does."""
    header = jpeg.read_header(image)
    if header and not header.app1:
        return header.width, header.height
    ...
