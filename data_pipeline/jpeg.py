"""Small JPEGs cut out of larger ones, so that a crop costs only the decoding of its neighbourhood.

A JPEG is a stream of MCUs, tiles of 8x8 to 32x32 pixels, row by row; most of the time of decoding goes into its Huffman codes,
which are of variable length, so none can be skipped. Two things help. What lies below a crop need not be decoded. And after
a restart marker decoding starts anew, so between two of them lies an interval of MCUs that can be taken out and put together
with others: a crop-decodable JPEG, which every decoder reads as the ordinary JPEG that it is (ITU-T T.81, sections B and F).

Nothing here looks at the codes themselves: damage outside of what is cut out stays unseen. Checksums and full decoding find it.
"""

import math
import shutil
import struct
import subprocess
from typing import NamedTuple

import numpy as np

from data_pipeline.box import Box

MARGIN = 4  # pixels: chroma upsampling reads one beside the crop, and libjpeg does it otherwise in images up to 4 wide
START_OF_FRAME = {0xFFC0 + kind for kind in range(16)} - {0xFFC4, 0xFFC8, 0xFFCC}
SEQUENTIAL_HUFFMAN = (0xFFC0, 0xFFC1)
DEFINE_RESTART, START_OF_SCAN, APP1, FILL = 0xFFDD, 0xFFDA, 0xFFE1, 0xFFFF
RESTART, END_OF_IMAGE = 0xD0, 0xD9  # second bytes; there are 8 restart markers, used in turn


class Header(NamedTuple):
    """What stands before the first scan of a JPEG. Sizes in pixels, not yet upright."""

    width: int
    height: int
    components: int
    mcu_width: int
    mcu_height: int
    interval: int  # MCUs between restart markers; 0: none
    one_scan: bool  # all is in one scan of 8-bit Huffman codes, top to bottom: what can be cut
    app1: bool  # Exif or XMP, where the orientation stands
    frame: int  # offset of the frame's height and width
    scan: int  # offset of the first code


def read_header(image: bytes) -> Header | None:
    """None: not a JPEG, or one with a damaged header."""
    if not image.startswith(b"\xff\xd8"):
        return None
    try:
        return _read_header(image)
    except struct.error:  # it ends too early
        return None


def _read_header(image: bytes) -> Header | None:
    at, frame, kind, interval, app1 = 2, 0, 0, 0, False
    while True:
        marker, length = struct.unpack_from(">HH", image, at)
        if marker == FILL:
            at += 1
            continue
        if marker < 0xFFC0 or marker == START_OF_SCAN:
            break
        if marker in START_OF_FRAME:
            kind, frame = marker, at + 5
        elif marker == DEFINE_RESTART:
            (interval,) = struct.unpack_from(">H", image, at + 4)
        app1 |= marker == APP1
        at += 2 + length
    if marker != START_OF_SCAN or not frame:
        return None
    precision, height, width, components = struct.unpack_from(">BHHB", image, frame - 1)
    sampling = image[frame + 6 : frame + 5 + 3 * components : 3] if components > 1 else b"\x11"  # one component: MCU = block
    return Header(
        width=width,
        height=height,
        components=components,
        mcu_width=8 * max(1, *(factors >> 4 for factors in sampling)),
        mcu_height=8 * max(1, *(factors & 15 for factors in sampling)),
        interval=interval,
        one_scan=kind in SEQUENTIAL_HUFFMAN and precision == 8 and image[at + 4 : at + 5] == bytes([components]),
        app1=app1,
        frame=frame,
        scan=at + 2 + length,
    )


def has_restarts(image: bytes) -> bool:
    """Whether crops of it may be cut out at restart markers."""
    header = read_header(image)
    return header is not None and header.one_scan and header.interval > 0


def cut(image: bytes, header: Header, box: Box) -> tuple[bytes | bytearray, Box] | None:
    """-> (a smaller JPEG, the place of its pixels in the image). The pixels inside `box` decode as they do in the whole.

    Without restart markers the smaller JPEG has the image's codes to their end, of which a decoder warns after the pixels.
    None: nothing smaller holds the box, or the image is not one scan, or its restart markers are not where they should be.
    """
    if not header.one_scan:
        return None
    return cut_intervals(image, header, box) if header.interval else cut_below(image, header, box)


def cut_below(image: bytes, header: Header, box: Box) -> tuple[bytes, Box] | None:
    """The image down to the row of MCUs that ends the box."""
    _, bottom = _covering(box.y, box.height, header.mcu_height, header.height)
    if bottom == header.height:
        return None
    small = b"".join((image[: header.frame], struct.pack(">H", bottom), image[header.frame + 2 :]))
    return small, Box(0, 0, header.width, bottom)


def cut_intervals(image: bytes, header: Header, box: Box) -> tuple[bytearray, Box] | None:
    """The tiles that cover the box: the smallest rectangles of whole intervals, parts of a row of MCUs or several rows."""
    columns, rows = -(-header.width // header.mcu_width), -(-header.height // header.mcu_height)
    wide = header.interval if columns % header.interval == 0 else columns
    high = header.interval // math.gcd(header.interval, columns)
    tile_width, tile_height = wide * header.mcu_width, high * header.mcu_height
    left, right = _covering(box.x, box.width, tile_width, header.width)
    top, bottom = _covering(box.y, box.height, tile_height, header.height)
    area = Box(left, top, right - left, bottom - top)
    if area[2:] == (header.width, header.height):
        return None
    starts = _intervals(image, header, -(-columns * rows // header.interval))
    if starts is None:
        return None
    per_tile = wide * high // header.interval
    per_row = per_tile * (columns // wide)
    rows_of_tiles = np.arange(top // tile_height, -(-bottom // tile_height))[:, None] * per_row
    first, last = left // tile_width * per_tile, -(-right // tile_width) * per_tile
    return _join(image, header, area, starts, np.minimum(rows_of_tiles + (first, last), len(starts) - 1)), area


def _covering(start: int, length: int, tile: int, limit: int) -> tuple[int, int]:
    """[start, start + length) and the margin, widened to whole tiles."""
    return max(0, start - MARGIN) // tile * tile, min(limit, -(-(start + length + MARGIN) // tile) * tile)


def _intervals(image: bytes, header: Header, count: int) -> np.ndarray | None:
    """Offsets of all `count` intervals and of the end, each interval with the marker behind it."""
    codes = np.frombuffer(image, np.uint8, offset=header.scan)
    at = np.flatnonzero(codes[:-1] == 0xFF)
    after = codes[at + 1]
    found = np.flatnonzero(after)[:count]  # a zero says that 0xFF is part of a code
    expected = RESTART + np.arange(count) % 8
    expected[-1] = END_OF_IMAGE
    if not np.array_equal(after[found], expected):
        return None
    return header.scan + np.concatenate(([0], at[found] + 2))


def _join(image: bytes, header: Header, area: Box, starts: np.ndarray, runs: np.ndarray) -> bytearray:
    """A JPEG of the intervals [first, last) of each run."""
    size = struct.pack(">HH", area.height, area.width)
    parts = [image[: header.frame], size, image[header.frame + 4 : header.scan]]
    parts += [image[start:end] for start, end in starts[runs].tolist()]
    small = bytearray().join(parts)
    lengths = np.concatenate([np.diff(starts[first : last + 1]) for first, last in runs.tolist()])
    markers = RESTART + np.arange(len(lengths)) % 8
    markers[-1] = END_OF_IMAGE
    np.frombuffer(small, np.uint8)[header.scan + np.cumsum(lengths) - 1] = markers
    return small


def restart_interval(width: int, mcu_width: int, wanted: int) -> int:
    """MCUs between restart markers: the divisor of the MCUs per row nearest to `wanted`, at most twice off, else the row.

    Only intervals that divide the row let columns be cut.
    """
    columns = -(-width // mcu_width)
    off, interval = min((max(k / wanted, wanted / k), k) for k in range(1, columns + 1) if columns % k == 0)
    return interval if off <= 2 else columns


def add_restarts(image: bytes, wanted: int) -> bytes | None:
    """The same coefficients, so the same pixels and metadata, as one scan with restart markers (see `restart_interval`).

    None: not a sound JPEG, or the program `jpegtran` (libjpeg-turbo) is not installed.
    """
    header, jpegtran = read_header(image), shutil.which("jpegtran")
    if header is None or jpegtran is None:
        return None
    interval = restart_interval(header.width, header.mcu_width, wanted)
    command = [jpegtran, "-copy", "all", "-optimize", "-restart", f"{interval}B"]
    done = subprocess.run(command, input=image, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None
