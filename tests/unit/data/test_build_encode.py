"""What images become on their way into a shard: their own bytes where they will do, else smaller JPEGs that can be cut."""

import io
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from data_pipeline import jpeg
from data_pipeline.build import build
from data_pipeline.collection import Collection
from data_pipeline.decode import decode
from data_pipeline.encode import Encoding, encode, fit
from data_pipeline.errors import DataError


@pytest.fixture
def encoded_by_pillow(request: pytest.FixtureRequest) -> Callable[..., bytes]:
    """The fixture `encode`, which here is the name of what is tested."""
    return request.getfixturevalue("encode")


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def as_jpeg(image: Image.Image) -> np.ndarray:
    """The pixels of an image after Pillow has made a JPEG of it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling="4:2:0")
    return np.asarray(opened(file.getvalue()))


@pytest.mark.parametrize(
    ("extension", "kind", "options"),
    [
        ("jpg", "JPEG", {}),
        ("jpeg", "JPEG", {"progressive": True}),
        ("jpg", "JPEG", {"subsampling": "4:4:4", "quality": 40}),
        ("png", "PNG", {}),
        ("webp", "WEBP", {}),
    ],
)
def test_what_fits_keeps_its_bytes(encoded_by_pillow, picture, extension, kind, options):
    image = encoded_by_pillow(picture(40, 30), kind, **options)
    for encoding in (Encoding(), Encoding(longest=40, shortest=30), Encoding(longest=90), Encoding(shortest=31)):
        assert encode(image, extension, encoding) == (image, extension, 40, 30, "kept")


@pytest.mark.parametrize(("kind", "named"), [("PNG", "jpeg"), ("JPEG", "png"), ("WEBP", "jpg")])
def test_the_ending_is_that_of_the_content(encoded_by_pillow, picture, kind, named):
    """ImageNet has a PNG that is called .JPEG."""
    found = encode(encoded_by_pillow(picture(20, 20), kind), named, Encoding())
    assert found.extension == {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[kind]


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((500, 375), {"shortest": 256}, (341, 256)),  # 341.33
        ((375, 500), {"shortest": 256}, (256, 341)),
        ((500, 375), {"longest": 256}, (256, 192)),
        ((500, 375), {"longest": 256, "shortest": 256}, (256, 192)),
        ((500, 375), {"longest": 400, "shortest": 256}, (341, 256)),
        ((500, 375), {"shortest": 500}, (500, 375)),  # never larger
        ((4000, 3), {"longest": 100}, (100, 1)),  # never nothing
        ((7, 7), {}, (7, 7)),
    ],
)
def test_sizes_by_hand(size, limits, expected):
    assert fit(*size, Encoding(**limits)) == expected


SIDES = st.integers(1, 20_000)
LIMITS = st.none() | st.integers(1, 5_000)


@given(SIDES, SIDES, LIMITS, LIMITS)
def test_sizes_are_within_the_limits_and_the_largest_such(width, height, longest, shortest):
    new_width, new_height = fit(width, height, Encoding(longest, shortest))
    assert max(new_width, new_height) <= (longest or 20_000)
    assert min(new_width, new_height) <= (shortest or 20_000)
    scale = min(
        [1, *([longest / max(width, height)] if longest else []), *([shortest / min(width, height)] if shortest else [])]
    )
    for new, old in ((new_width, width), (new_height, height)):
        assert abs(new - old * scale) <= 0.5 + 1e-9 or (new == 1 and old * scale < 1)


def test_a_large_image_becomes_pillows_bicubic_as_a_jpeg_that_can_be_cut(encoded_by_pillow):
    pixels = load_sample_images().images[0]
    found = encode(encoded_by_pillow(pixels, "PNG"), "png", Encoding(shortest=256, quality=90, restart_interval=4))
    assert (found.extension, found.width, found.height, found.change) == ("jpg", 384, 256, "reencoded")
    expected = Image.fromarray(pixels).resize((384, 256), Image.Resampling.BICUBIC)
    plain = encoded_by_pillow(expected, "JPEG", quality=90, subsampling="4:2:0")
    assert np.array_equal(np.asarray(opened(found.content)), np.asarray(opened(plain)))
    header = jpeg.read_header(found.content)
    assert (header.interval, header.mcu_width, header.mcu_height, header.one_scan) == (4, 16, 16, True)
    assert len(found.content) < 1.05 * len(plain)


@pytest.mark.parametrize(("width", "wanted", "interval"), [(384, 4, 4), (384, 100, 24), (352, 4, 2), (368, 4, 23), (16, 4, 1)])
def test_restart_intervals_divide_the_row(encoded_by_pillow, picture, width, wanted, interval):
    """24, 22, a prime 23 of blocks, and one: the divisor nearest to what is wanted, or the row."""
    image = encoded_by_pillow(picture(width, 64), "BMP")
    found = encode(image, "bmp", Encoding(restart_interval=wanted))
    assert jpeg.read_header(found.content).interval == interval


def test_exif_orientation_is_applied_when_encoding_anew_and_kept_otherwise(encoded_by_pillow, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = encoded_by_pillow(picture(80, 40), "JPEG", quality=95, exif=exif)
    kept = encode(image, "jpg", Encoding())
    assert (kept.content, kept.width, kept.height) == (image, 40, 80)
    small = encode(image, "jpg", Encoding(longest=40))
    assert (small.width, small.height, opened(small.content).size) == (20, 40, (20, 40))
    assert 0x0112 not in opened(small.content).getexif()
    expected = opened(image).transpose(Image.Transpose.ROTATE_270).resize((20, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(opened(small.content)), as_jpeg(expected))


@pytest.mark.parametrize(
    ("kind", "mode", "extension"),
    [("JPEG", "CMYK", "jpg"), ("BMP", "RGB", "bmp"), ("GIF", "P", "gif"), ("TIFF", "RGB", "tif"), ("TIFF", "CMYK", "tiff")],
)
def test_what_not_every_reader_has_right_becomes_rgb(encoded_by_pillow, picture, kind, mode, extension):
    source = encoded_by_pillow(Image.fromarray(picture(64, 48)).convert(mode), kind)
    found = encode(source, extension, Encoding())
    assert (found.extension, found.change) == ("jpg", "reencoded")
    image = opened(found.content)
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 48))
    assert np.array_equal(np.asarray(image), as_jpeg(opened(source).convert("RGB")))


needs_jpegtran = pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran (libjpeg-turbo-progs) is not installed")


@needs_jpegtran
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"quality": 50}])
def test_restart_markers_without_loss(encoded_by_pillow, options):
    image = encoded_by_pillow(load_sample_images().images[1], "JPEG", **options)
    found = encode(image, "jpg", Encoding(restart_all=True))
    assert found.change == "marked"
    assert found.content != image
    assert jpeg.has_restarts(found.content)
    assert np.array_equal(np.asarray(opened(found.content)), np.asarray(opened(image)))
    again = encode(found.content, "jpg", Encoding(restart_all=True))
    assert (again.content, again.change) == (found.content, "kept")


def test_without_jpegtran_they_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="--restart-all needs the program jpegtran; install"):
        build(Collection([], []), tmp_path, 0.0, [1], 0, encoding=Encoding(restart_all=True))


def test_restart_markers_are_for_jpegs(encoded_by_pillow, picture):
    image = encoded_by_pillow(picture(64, 48), "PNG")
    assert encode(image, "png", Encoding(restart_all=True)).content == image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_cannot_be_decoded_is_an_error(encoded_by_pillow, picture, kind):
    image = encoded_by_pillow(picture(64, 48), kind)
    for bad in (b"", b"text", image[: len(image) // 2], image[:20]):
        with pytest.raises(ValueError):
            encode(bad, "jpg", Encoding())


def test_pixels_of_what_is_kept_are_those_of_the_source(encoded_by_pillow, picture):
    image = encoded_by_pillow(picture(64, 48), "JPEG")
    assert np.array_equal(decode(encode(image, "jpg", Encoding(restart_all=True)).content), decode(image))
