"""Encoded image -> pixels, of all of it or of a part."""

import io

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from data_pipeline import jpeg
from data_pipeline.box import Box
from data_pipeline.errors import BadSampleError

MAX_PIXELS = 178_956_970  # where Pillow refuses what it opens, as a decompression bomb
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # not all of Pillow: EPS, for one, is a program that it runs
PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where it may stand, also behind the pixels
# Grey, 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1, 4:4:1: all that libjpeg-turbo's simple interface takes.
TURBO_SAMPLING = {b"\x11", *(bytes((luma, 0x11, 0x11)) for luma in (0x11, 0x21, 0x22, 0x12, 0x41, 0x14))}
CODES_LEFT = "extraneous bytes before marker 0xd9"  # libjpeg reports its first warning: so there was none in the pixels


def size(image: bytes) -> tuple[int, int]:
    """(width, height) of what `decode` gives, from the header. BadSampleError: no image, or too large a one."""
    try:
        header = jpeg.read_header(image)
        if header and not header.app1:
            return _allowed(header.width, header.height)
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            width, height = opened.size
            return (height, width) if _orientation(opened, image) in (5, 6, 7, 8) else (width, height)
    except MemoryError:
        raise
    except Exception as error:
        raise BadSampleError(f"not a readable image ({error})") from error


def decode(image: bytes, box: Box | None = None) -> np.ndarray:
    """HWC uint8 RGB, upright: the whole image, or bit for bit what of it lies in `box` (in upright pixels, inside the image).

    JPEGs by libjpeg-turbo, crops from what jpeg.py cuts out; the rest, and JPEGs to be turned or of unusual colours, by Pillow.
    Of animations the first frame; alpha is dropped, so transparent pixels have the colour that is stored; of 16 bits the upper
    8 are kept. BadSampleError: no image, or more than MAX_PIXELS. A crop says nothing of damage outside, but of an early end.
    """
    try:
        header = jpeg.read_header(image)
        if header and header.sampling in TURBO_SAMPLING and not (header.app1 and _to_be_turned(image)):
            _allowed(header.width, header.height)
            return _decode_jpeg(image, header, box)
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            return _part(np.array(to_rgb(opened)), box)
    except MemoryError:  # says nothing of the image: another machine would decode it
        raise
    except Exception as error:  # for broken bytes Pillow also raises SyntaxError, struct.error, DecompressionBombError, ...
        raise BadSampleError(f"not a readable image ({error})") from error


def kind(image: bytes) -> str:
    """jpg, png or webp by the first bytes, whatever its file was called; empty for others."""
    if image.startswith(b"\xff\xd8"):
        return "jpg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else ""


def _decode_jpeg(image: bytes, header: jpeg.Header, box: Box | None) -> np.ndarray:
    if box and (smaller := jpeg.cut(image, header, box)):
        content, area = smaller
        pixels = np.empty((area.height, area.width, 3), np.uint8)
        if _fills(pixels, content, codes_left=not header.interval):
            return _part(pixels, box._replace(x=box.x - area.x, y=box.y - area.y))
    return _part(simplejpeg.decode_jpeg(image, "RGB"), box)


def _fills(pixels: np.ndarray, content: bytes | bytearray, codes_left: bool) -> bool:
    """Decode into `pixels`. False: libjpeg warned, and not (where that may be) of codes left behind the last pixel."""
    try:
        simplejpeg.decode_jpeg(content, "RGB", buffer=pixels)
    except ValueError as error:
        return codes_left and CODES_LEFT in str(error)
    return True


def _part(pixels: np.ndarray, box: Box | None) -> np.ndarray:
    """In memory of its own, so that the rest can be freed and what reads it is fast."""
    return np.ascontiguousarray(pixels[box.y : box.y + box.height, box.x : box.x + box.width]) if box else pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, and in RGB; 16-bit grey keeps its upper byte, where Pillow's `convert` would saturate."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # in two steps: Pillow warns of the direct one
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_be_turned(image: bytes) -> bool:
    with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
        return _orientation(opened, image) in range(2, 9)


def _orientation(opened: Image.Image, image: bytes) -> object:
    """What `exif_transpose` goes by, without decoding the pixels of a PNG as far as that can be avoided."""
    if opened.format == "PNG" and not any(mark in image for mark in PNG_ORIENTATION):
        return 1
    return opened.getexif().get(ExifTags.Base.Orientation)


def _allowed(width: int, height: int) -> tuple[int, int]:
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width * height} pixels; 1 to {MAX_PIXELS} are allowed")
    return width, height
