"""Every encoding against Pillow, and everything else a ValueError."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from data_pipeline.decode import Box, decode, size, to_rgb

ORIENTATION = 0x0112


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: int) -> None:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance


JPEGS = {
    "plain": {},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 2},
    "icc profile": {"icc_profile": b"profile" * 20_000},
    "comment": {"comment": b"Exif\0 in a comment turns nothing"},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize(("width", "height"), [(61, 37), (1, 1), (16, 8)])
def test_jpegs(encode, picture, options, width, height):
    content = encode(picture(width, height), "JPEG", **options)
    assert_close(decode(content), by_pillow(content), tolerance=2)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs(encode, picture, mode):
    content = encode(Image.fromarray(picture(61, 37)).convert(mode), "JPEG")
    assert_close(decode(content), by_pillow(content), tolerance=2)


INK = (0, 200, 100, 50)  # C, M, Y, K of 255
PAINTED = [(255 - ink) * (255 - INK[3]) / 255 for ink in INK[:3]]


def test_cmyk_jpegs_hold_ink_stored_inverted(encode):
    """As Adobe's programs write them, and everybody else since; YCCK is CMYK with its CMY as YCbCr."""
    inks = np.broadcast_to(np.array(INK, np.uint8), (16, 16, 4)).copy()
    cmyk = encode(Image.frombytes("CMYK", (16, 16), inks.tobytes()), "JPEG", quality=95)
    ycck = simplejpeg.encode_jpeg(255 - inks, 95, colorspace="CMYK", colorsubsampling="444")
    for content, colorspace in ((cmyk, "CMYK"), (ycck, "YCCK")):
        assert simplejpeg.decode_jpeg_header(content)[2] == colorspace
        assert_close(decode(content), np.broadcast_to(np.rint(PAINTED).astype(int), (16, 16, 3)), tolerance=3)


def test_jpegs_of_unusual_sampling(encode, picture):
    """Chroma sampled twice as Y and Cb: libjpeg reads it, libjpeg-turbo's simple interface does not."""
    content = bytearray(encode(picture(64, 64), "JPEG", subsampling=0))
    at = content.index(b"\xff\xc0") + 11
    content[at : at + 9 : 3] = b"\x21\x21\x11"
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(content)
    assert_close(decode(bytes(content)), by_pillow(bytes(content)), tolerance=0)


def test_the_first_picture_of_several(encode, picture):
    pictures = [Image.fromarray(picture(31, 17, number)) for number in range(3)]
    for kind, options in {"WEBP": {"lossless": True}, "PNG": {}, "MPO": {"quality": 95}, "GIF": {}}.items():
        content = encode(pictures[0], kind, save_all=True, append_images=pictures[1:], **options)
        assert Image.open(io.BytesIO(content)).n_frames == 3
        assert_close(decode(content), by_pillow(encode(pictures[0], kind if kind != "MPO" else "JPEG", **options)), tolerance=2)


def test_jpegs_stored_as_rgb(encode, picture):
    content = encode(picture(40, 30), "JPEG", keep_rgb=True, quality=95)
    assert_close(decode(content), picture(40, 30), tolerance=8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1"])
def test_pngs(encode, picture, mode):
    content = encode(Image.fromarray(picture(31, 17)).convert(mode), "PNG")
    assert_close(decode(content), by_pillow(content), tolerance=0)


def test_alpha_leaves_colours_as_they_are(encode, picture):
    pixels = picture(31, 17)
    transparent = np.dstack([pixels, np.zeros((17, 31), np.uint8)])
    assert_close(decode(encode(transparent, "PNG")), pixels, tolerance=0)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))], ids=["opaque", "one entry", "by entry"])
def test_palettes(encode, picture, transparency):
    palette = Image.fromarray(picture(31, 17)).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    expected = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(palette)]
    assert_close(decode(encode(palette, "PNG", **options)), expected, tolerance=0)


def test_transparent_colour_of_a_png_without_alpha(encode, picture):
    pixels = picture(31, 17)
    content = encode(pixels, "PNG", transparency=tuple(pixels[0, 0].tolist()))
    assert_close(decode(content), pixels, tolerance=0)


def test_16_bit_grey_keeps_its_levels(encode):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = encode(levels.astype(np.uint16) * 256 + (255 - levels), "PNG")
    assert_close(decode(content), np.dstack(3 * [levels]), tolerance=0)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webps(encode, picture, options, mode):
    content = encode(Image.fromarray(picture(31, 17)).convert(mode), "WEBP", **options)
    assert_close(decode(content), by_pillow(content), tolerance=0)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_turns_are_applied(encode, picture, orientation, kind):
    plain = encode(picture(48, 32), kind)
    content = encode(picture(48, 32), kind, exif=turned(orientation))
    expected = TURNS[orientation](by_pillow(plain))
    assert_close(decode(content), expected, tolerance=2)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
APP1 = {"Exif": turned(6), "XMP": XMP}


@pytest.mark.parametrize(
    "before", [b"", segment(0xED, b"Photoshop" * 100), segment(0xE2, b"\xff\xda" * 5000)], ids=["first", "app13", "app2"]
)
@pytest.mark.parametrize("app1", APP1.values(), ids=APP1)
def test_turns_are_applied_wherever_they_stand_in_the_header(encode, picture, app1, before):
    plain = encode(picture(48, 32), "JPEG")
    content = plain[:2] + before + segment(0xE1, app1) + plain[2:]
    assert by_pillow(content).shape == (48, 32, 3)
    assert_close(decode(content), by_pillow(content), tolerance=2)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "RGB", "grey alpha", "RGBA"])
def test_16_bit_pngs_keep_the_upper_bytes(colour, channels):
    values = np.random.default_rng(0).integers(0, 2**16, (5, 7, channels)).astype(">u2")
    expected = (values >> 8)[..., : 3 if channels > 2 else 1].astype(np.uint8)
    found = decode(png(7, 5, 16, colour, [row.tobytes() for row in values]))
    assert_close(found, np.broadcast_to(expected, (5, 7, 3)), tolerance=0)


def test_a_turn_behind_the_pixels_of_a_png(picture, encode):
    plain = encode(picture(48, 32), "PNG")
    content = plain[:-12] + chunk(b"eXIf", turned(6).removeprefix(b"Exif\0\0")) + plain[-12:]
    assert size(content) == (32, 48)
    assert_close(decode(content), np.rot90(picture(48, 32), -1), tolerance=0)


def samples(encode, picture) -> dict[str, bytes]:
    pixels = picture(48, 32)
    image = Image.fromarray(pixels)
    return {
        **{f"JPEG turned {turn}": encode(pixels, "JPEG", exif=turned(turn), restart_marker_blocks=1) for turn in TURNS},
        **{f"{kind} turned 6": encode(pixels, kind, exif=turned(6)) for kind in ("PNG", "WEBP")},
        **{f"JPEG {name}": encode(pixels, "JPEG", **options) for name, options in JPEGS.items()},
        **{f"JPEG {mode}": encode(image.convert(mode), "JPEG", restart_marker_blocks=1) for mode in ("L", "CMYK")},
        **{f"PNG {mode}": encode(image.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "1", "P")},
        "JPEG with XMP": encode(pixels, "JPEG", xmp=XMP.split(b"\0")[1]),
        "16 bits": encode(pixels[..., 0].astype(np.uint16) * 256, "PNG"),
        "WEBP": encode(pixels, "WEBP"),
    }


def test_sizes_and_crops_are_those_of_the_whole(encode, picture):
    rng = np.random.default_rng(0)
    for name, content in samples(encode, picture).items():
        whole = decode(content)
        width, height = size(content)
        assert whole.shape == (height, width, 3), name
        assert (width, height) == ((32, 48) if name.endswith(("5", "6", "7", "8", "XMP")) else (48, 32)), name
        for _ in range(5):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
            box = Box(x, y, int(rng.integers(1, width - x + 1)), int(rng.integers(1, height - y + 1)))
            crop = decode(content, box)
            np.testing.assert_array_equal(crop, whole[y : y + box.height, x : x + box.width], name)
            assert crop.flags.writeable and crop.flags.c_contiguous


def png_of_size(width: int, height: int) -> bytes:
    return png(width, height, 8, 2, [])


def test_images_too_large_are_refused(encode, picture):
    jpeg = bytearray(encode(picture(16, 16), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    for content in (png_of_size(20_000, 20_000), bytes(jpeg)):
        for read in (decode, size):
            with pytest.raises(ValueError, match="400000000 pixels"):
                read(content)


GARBAGE = [
    b"",
    b"\xff",
    b"\xff\xd8",
    b"\xff\xd8\xff",
    b"\xff\xd8\xff\xe1",
    b"\xff\xd8\xff\xd9",
    b"hello" * 100,
    b"RIFF0000WEBP",
    bytes(1000),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",  # a program, which Pillow would run
]


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: repr(content[:12]))
def test_garbage_is_a_value_error(content):
    for read in (decode, size):
        with pytest.raises(ValueError, match="not a readable image"):
            read(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_cut_images_are_a_value_error(encode, kind, part):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    content = encode(noise, kind)
    with pytest.raises(ValueError):
        decode(content[: int(len(content) * part)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "JPEG with Exif", "palette"])
def test_damaged_images_decode_or_are_a_value_error(encode, kind):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (80, 100, 3), np.uint8))
    content = {
        "JPEG with Exif": lambda: encode(image, "JPEG", exif=turned(6)),
        "palette": lambda: encode(image.quantize(8), "PNG", transparency=bytes(8)),
    }.get(kind, lambda: encode(image, kind))()
    refused = 0
    for _ in range(60):
        damaged = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, len(damaged) if rng.random() < 0.5 else 200, rng.integers(1, 6))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            pixels = decode(damaged.tobytes())
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
        except ValueError:
            refused += 1
    assert refused > 0


def test_a_broken_png_chunk_is_a_value_error(encode):
    """Pillow raises SyntaxError for it, while it loads the pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 260, 3), np.uint8)
    content = encode(noise, "PNG")
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    with pytest.raises(ValueError, match="not a readable image"):
        decode(content[:second] + b"\x81\xb9\x19\xe6" + content[second + 4 :])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixels_may_be_written_to(encode, picture, kind):
    """torch warns of, and may misuse, arrays that may not."""
    assert decode(encode(picture(9, 9), kind)).flags.writeable


def test_a_model_at_prediction_sees_what_it_saw_in_training():
    ramp = Image.fromarray(np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64))
    file = io.BytesIO()
    ramp.save(file, "PNG")
    np.testing.assert_array_equal(to_rgb(Image.open(io.BytesIO(file.getvalue()))), decode(file.getvalue()))


SHORT_OF_MEMORY = """
import io, resource
from PIL import Image
from data_pipeline import decode
file = io.BytesIO()
Image.new("L", (9000, 9000)).save(file, "PNG")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)
try:
    decode.decode(file.getvalue())
except MemoryError:
    print("no memory")
"""


def test_want_of_memory_is_no_bad_image():
    """Or what takes the place of what would depend on the machine."""
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, check=False)
    assert done.stdout == "no memory\n", done.stderr[-500:]
