"""Images as they go into shards: with the bytes they have where these will do, else as JPEGs of which crops can be decoded."""

import io
from fractions import Fraction
from typing import Literal, NamedTuple

from PIL import Image

from data_pipeline import jpeg
from data_pipeline.decode import decode, kind

ALIASES = {"jpg": ("jpg", "jpeg"), "png": ("png",), "webp": ("webp",)}  # what is kept, and its endings
REENCODED = ("bmp", "gif", "tif", "tiff")  # endings of what Pillow reads, but not every reader of shards
MCU_WIDTH = 16  # pixels, at 4:2:0


class Encoding(NamedTuple):
    """What images become. They are made smaller to fit both limits, never larger; sizes in pixels, upright."""

    longest: int | None = None  # limit of the longer side
    shortest: int | None = None  # limit of the shorter side
    quality: int = 95
    restart_interval: int = 4  # MCUs between restart markers, about (`jpeg.restart_interval`)
    restart_all: bool = False  # restart markers, without loss, also in JPEGs that are not encoded anew


class Encoded(NamedTuple):
    """An image for a shard."""

    content: bytes
    extension: str
    width: int
    height: int
    change: Literal["kept", "marked", "reencoded"]


def encode(image: bytes, extension: str, encoding: Encoding) -> Encoded:
    """Decode it whole, as proof that it can be, and encode it anew where needed. BadSampleError: it cannot be decoded.

    Needed where it is too large, and where not every reader has it right: CMYK JPEGs, other formats than JPEG, PNG and WebP.
    It becomes an upright 4:2:0 JPEG with restart markers, made smaller by Pillow's antialiased bicubic filter.
    """
    pixels = decode(image)
    height, width = pixels.shape[:2]
    size, kept, header = fit(width, height, encoding), kind(image), jpeg.read_header(image)
    colours = len(header.sampling) if header else 0
    if not kept or (kept == "jpg" and colours not in (1, 3)) or size != (width, height):
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        return Encoded(_jpeg(picture, encoding), "jpg", *size, "reencoded")
    extension = extension if extension in ALIASES[kept] else kept
    unmarked = encoding.restart_all and kept == "jpg" and not jpeg.has_restarts(image)
    if unmarked and (marked := jpeg.add_restarts(image, encoding.restart_interval)):
        return Encoded(marked, extension, width, height, "marked")
    return Encoded(image, extension, width, height, "kept")


def fit(width: int, height: int, encoding: Encoding) -> tuple[int, int]:
    """The size within the limits, each side rounded to the nearest pixel."""
    limits = ((encoding.longest, max(width, height)), (encoding.shortest, min(width, height)))
    scale = min([Fraction(1), *(Fraction(limit, side) for limit, side in limits if limit)])
    return max(1, round(width * scale)), max(1, round(height * scale))


def _jpeg(picture: Image.Image, encoding: Encoding) -> bytes:
    file = io.BytesIO()
    interval = jpeg.restart_interval(picture.width, MCU_WIDTH, encoding.restart_interval)
    picture.save(file, "JPEG", quality=encoding.quality, subsampling="4:2:0", optimize=True, restart_marker_blocks=interval)
    return file.getvalue()
