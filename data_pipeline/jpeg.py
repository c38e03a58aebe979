"""Small JPEGs cut out of larger ones, so that a crop costs only the decoding of its neighbourhood; docs/design.md says why.

A JPEG is a stream of MCUs, tiles of 8x8 to 32x32 pixels, row by row. What lies below a crop need not be decoded, and an
interval of MCUs between two restart markers can be taken out and put together with others (ITU-T T.81, sections B and F).
Nothing here looks at the codes themselves: damage outside of what is cut out stays unseen. Checksums and full decoding find it.
"""

import math
import shutil
import struct
import subprocess
from typing import NamedTuple

import numpy as np

from data_pipeline.box import Box

# Chroma upsampling reads 1 pixel around; in images up to 4 wide libjpeg does it in another way, so none may become that narrow.
MARGIN_X, MARGIN_Y = 4, 1
START_OF_FRAME = {0xFFC0 + kind for kind in range(16)} - {0xFFC4, 0xFFC8, 0xFFCC}
SEQUENTIAL_HUFFMAN = (0xFFC0, 0xFFC1)
LOWEST, START_OF_SCAN, RESTART_INTERVAL, APP1, FILL = 0xFFC0, 0xFFDA, 0xFFDD, 0xFFE1, 0xFFFF
RESTARTS, END_OF_IMAGE = bytes(range(0xD0, 0xD8)), b"\xd9"  # second bytes of markers

_marker_and_length = struct.Struct(">HH").unpack_from


class Header(NamedTuple):
    """What stands before the first scan of a JPEG. Sizes in pixels, not yet upright."""

    width: int
    height: int
    sampling: bytes  # (horizontal << 4 | vertical) factor of each component; of a single one always 1 x 1
    mcu_width: int
    mcu_height: int
    interval: int  # MCUs between restart markers; 0: none
    one_scan: bool  # all is in one scan of 8-bit Huffman codes, top to bottom: what can be cut
    app1: bool  # Exif or XMP, where the orientation stands
    frame: int  # offset of the height and the width
    codes: int  # offset of the first code


def read_header(image: bytes) -> Header | None:
    """None: not a JPEG, or one with a damaged header."""
    try:
        segments = _segments(image) if image.startswith(b"\xff\xd8") else {}
        (kind,) = START_OF_FRAME & segments.keys()
        frame, scan, restart = segments[kind], segments[START_OF_SCAN], segments.get(RESTART_INTERVAL)
        precision, height, width, components = struct.unpack_from(">BHHB", image, frame)
        (interval,) = struct.unpack_from(">H", image, restart) if restart else (0,)
        length, in_scan = struct.unpack_from(">HB", image, scan - 2)
    except (ValueError, struct.error):  # no frame or several, or an early end
        return None
    sampling = image[frame + 7 : frame + 6 + 3 * components : 3] if components > 1 else b"\x11"
    return Header(
        width,
        height,
        sampling,
        mcu_width=8 * max([1, *[factors >> 4 for factors in sampling]]),
        mcu_height=8 * max([1, *[factors & 15 for factors in sampling]]),
        interval=interval,
        one_scan=kind in SEQUENTIAL_HUFFMAN and precision == 8 and in_scan == components,
        app1=APP1 in segments,
        frame=frame + 1,
        codes=scan - 2 + length,
    )


def _segments(image: bytes) -> dict[int, int]:
    """Marker -> offset of the content of its last segment, up to the first scan."""
    segments: dict[int, int] = {}
    at, marker = 2, 0
    while marker != START_OF_SCAN:
        marker, length = _marker_and_length(image, at)
        if marker < LOWEST:
            raise ValueError("no marker")
        segments[marker] = at + 4
        at += 1 if marker == FILL else 2 + length
    return segments


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
    if header.interval:
        return cut_intervals(image, header, box)
    _, bottom = _covering(box.y, box.height, MARGIN_Y, header.mcu_height, header.height)
    if bottom == header.height:
        return None
    area = Box(0, 0, header.width, bottom)
    return b"".join((_head(image, header, area), memoryview(image)[header.codes :])), area


def cut_intervals(image: bytes, header: Header, box: Box) -> tuple[bytearray, Box] | None:
    """The tiles that cover the box: the smallest rectangles of whole intervals, part of a row of MCUs or several rows."""
    columns, rows = -(-header.width // header.mcu_width), -(-header.height // header.mcu_height)
    wide = header.interval if columns % header.interval == 0 else columns
    high = header.interval // math.gcd(header.interval, columns)
    width, height = wide * header.mcu_width, high * header.mcu_height
    left, right = _covering(box.x, box.width, MARGIN_X, width, header.width)
    top, bottom = _covering(box.y, box.height, MARGIN_Y, height, header.height)
    if (right - left, bottom - top) == (header.width, header.height):
        return None
    bounds = _intervals(image, header, -(-columns * rows // header.interval))
    if bounds is None:
        return None
    per_tile = wide * high // header.interval
    per_row = per_tile * (columns // wide)
    run = slice(left // width * per_tile, -(-right // width) * per_tile)
    firsts = np.arange(top // height, -(-bottom // height)) * per_row + run.start
    area = Box(left, top, right - left, bottom - top)
    return _join(image, bounds, firsts, run.stop - run.start, _head(image, header, area)), area


def _covering(start: int, length: int, margin: int, tile: int, limit: int) -> tuple[int, int]:
    """[start, start + length) and the margin, widened to whole tiles."""
    return max(0, start - margin) // tile * tile, min(limit, -(-(start + length + margin) // tile) * tile)


def _head(image: bytes, header: Header, area: Box) -> bytes:
    """All before the codes, for an image of another size."""
    size = struct.pack(">HH", area.height, area.width)
    return b"".join((image[: header.frame], size, image[header.frame + 4 : header.codes]))


def _intervals(image: bytes, header: Header, count: int) -> np.ndarray | None:
    """count + 1 offsets: where an interval starts and the one before it ends, its marker included."""
    codes = np.frombuffer(image, np.uint8, offset=header.codes)
    (at,) = (codes[:-1] == 0xFF).nonzero()
    second = codes[1:].take(at)
    marker = second.nonzero()[0][:count]  # else a part of a code
    if second.take(marker).tobytes() != _markers(count):
        return None
    return np.concatenate(([header.codes], at.take(marker) + header.codes + 2))


def _join(image: bytes, bounds: np.ndarray, firsts: np.ndarray, run: int, head: bytes) -> bytearray:
    """A JPEG of runs of intervals; the last run of an image may be short."""
    edges = bounds.take(firsts[:, None] + np.arange(run + 1), mode="clip")
    starts, ends = edges[:, 0], edges[:, -1]
    codes = memoryview(image)
    small = bytearray().join([head, *map(codes.__getitem__, map(slice, starts.tolist(), ends.tolist()))])
    moved = len(head) + (ends - starts).cumsum() - ends  # where the codes of each run went
    markers = (edges[:, 1:] + moved[:, None]).ravel() - 1  # behind a short last run all at its end, where the last one counts
    np.frombuffer(small, np.uint8)[markers] = np.frombuffer(_markers(len(markers)), np.uint8)
    return small


def _markers(count: int) -> bytes:
    """The second bytes of the markers behind `count` intervals."""
    return (RESTARTS * (count // 8 + 1))[: count - 1] + END_OF_IMAGE


def restart_interval(width: int, mcu_width: int, wanted: int) -> int:
    """MCUs between restart markers: the divisor of the MCUs per row nearest to `wanted`, at most twice off, else the row."""
    columns = -(-width // mcu_width)  # only intervals that divide the row let columns be cut
    off, interval = min((max(k / wanted, wanted / k), k) for k in range(1, columns + 1) if columns % k == 0)
    return interval if off <= 2 else columns


def add_restarts(image: bytes, wanted: int) -> bytes | None:
    """The same pixels and metadata as one scan with restart markers. None: not a sound JPEG, or there is no `jpegtran`."""
    header, jpegtran = read_header(image), shutil.which("jpegtran")
    if header is None or jpegtran is None:
        return None
    interval = restart_interval(header.width, header.mcu_width, wanted)
    command = [jpegtran, "-copy", "all", "-optimize", "-restart", f"{interval}B"]
    done = subprocess.run(command, input=image, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None
