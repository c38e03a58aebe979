"""Crops cut out of JPEGs against the same crop of the whole, decoded by libjpeg-turbo and by Pillow."""

import io
import shutil

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from data_pipeline import jpeg
from data_pipeline.box import Box
from data_pipeline.decode import decode

needs_jpegtran = pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran (libjpeg-turbo-progs) is not installed")
SAMPLINGS = ["grey", "4:4:4", "4:2:2", "4:2:0"]


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def part(pixels: np.ndarray, box: Box) -> np.ndarray:
    return pixels[box.y : box.y + box.height, box.x : box.x + box.width]


def encoded(pixels: np.ndarray, sampling: str, interval: int, quality: int = 90) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(pixels)
    options = {} if sampling == "grey" else {"subsampling": sampling}
    image = image.convert("L") if sampling == "grey" else image
    image.save(file, "JPEG", quality=quality, restart_marker_blocks=interval, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@st.composite
def boxes(draw, max_width=90, max_height=90):
    """(width, height, a box inside)"""
    width, height = draw(st.integers(1, max_width)), draw(st.integers(1, max_height))
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return width, height, Box(x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y)))


@given(
    place=boxes(),
    sampling=st.sampled_from(SAMPLINGS),
    interval=st.one_of(st.sampled_from([0, 1, 2, 4]), st.integers(0, 60)),
    quality=st.integers(1, 100),
    seed=st.integers(0, 99),
)
@example(place=(20, 20, Box(17, 17, 3, 3)), sampling="4:2:0", interval=1, quality=90, seed=0)  # a last MCU 4 pixels wide
@example(place=(80, 80, Box(32, 32, 16, 16)), sampling="4:2:0", interval=1, quality=90, seed=0)  # one MCU exactly
@example(place=(80, 80, Box(0, 0, 80, 32)), sampling="4:2:0", interval=0, quality=90, seed=0)
@settings(max_examples=500, deadline=None)
def test_a_crop_is_bit_identical_to_the_part_of_the_whole(place, sampling, interval, quality, seed):
    width, height, box = place
    content = encoded(noise(width, height, seed), sampling, interval, quality)
    expected = part(simplejpeg.decode_jpeg(content, "RGB"), box)
    np.testing.assert_array_equal(decode(content, box), expected)
    smaller = jpeg.cut(content, jpeg.read_header(content), box)
    if smaller and interval:
        small, area = smaller
        inside = box._replace(x=box.x - area.x, y=box.y - area.y)
        np.testing.assert_array_equal(part(simplejpeg.decode_jpeg(small, "RGB"), inside), expected)
        np.testing.assert_array_equal(part(by_pillow(small), inside), part(by_pillow(content), box))


@given(place=boxes(), sampling=st.sampled_from(["444", "422", "420", "440", "411", "Gray"]), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_what_lies_below_a_crop_changes_nothing(place, sampling, seed):
    width, height, box = place
    pixels = noise(width, height, seed)
    options = {"colorspace": "GRAY"} if sampling == "Gray" else {"colorsubsampling": sampling}
    content = simplejpeg.encode_jpeg(pixels[..., :1].copy() if sampling == "Gray" else pixels, 90, **options)
    np.testing.assert_array_equal(decode(content, box), part(simplejpeg.decode_jpeg(content, "RGB"), box))


@pytest.mark.parametrize("interval", [0, 4, 40])
@pytest.mark.parametrize("number", [0, 1])
def test_photos(number, interval):
    """640 x 427 in 40 x 27 MCUs."""
    content = encoded(load_sample_images().images[number], "4:2:0", interval, 95)
    whole = simplejpeg.decode_jpeg(content, "RGB")
    rng = np.random.default_rng(number)
    for _ in range(15):
        width, height = rng.integers(1, 640), rng.integers(1, 427)
        box = Box(*map(int, (rng.integers(0, 640 - width), rng.integers(0, 427 - height), width, height)))
        np.testing.assert_array_equal(decode(content, box), part(whole, box))


AREAS = {
    "columns of four MCUs": (4, Box(64, 64, 64, 64), Box(0, 48, 192, 96)),  # the neighbours are needed for their edges
    "columns of one MCU": (1, Box(70, 70, 4, 4), Box(64, 64, 16, 16)),
    "whole rows": (16, Box(70, 70, 4, 4), Box(0, 64, 256, 16)),
    "two rows": (32, Box(70, 70, 4, 4), Box(0, 64, 256, 32)),
    "no divisor: three rows of 16 are four intervals of 12": (12, Box(70, 60, 4, 4), Box(0, 48, 256, 48)),
    "no divisor, last rows": (12, Box(70, 250, 4, 4), Box(0, 240, 256, 16)),
    "no markers": (0, Box(70, 70, 4, 4), Box(0, 0, 256, 80)),
}


@pytest.mark.parametrize(("interval", "box", "area"), AREAS.values(), ids=AREAS)
def test_what_is_cut_out_of_16_by_16_mcus(interval, box, area):
    content = encoded(noise(256, 256), "4:2:0", interval)
    header = jpeg.read_header(content)
    small, found = jpeg.cut(content, header, box)
    assert found == area
    assert jpeg.read_header(small)[:2] == (area.width, area.height)
    if interval:
        codes = (len(small) - header.codes) / (len(content) - header.codes)
        assert codes == pytest.approx(area.width * area.height / 256**2, rel=0.1)


@pytest.mark.parametrize("interval", [0, 1, 4, 16, 1000])
def test_there_is_nothing_to_cut_from_the_whole(interval):
    content = encoded(noise(256, 256), "4:2:0", interval)
    assert jpeg.cut(content, jpeg.read_header(content), Box(0, 0, 256, 256)) is None
    assert jpeg.cut(content, jpeg.read_header(content), Box(1, 1, 255, 255)) is None


def test_headers():
    pixels = noise(60, 50)
    for sampling, mcu in [("grey", (8, 8)), ("4:4:4", (8, 8)), ("4:2:2", (16, 8)), ("4:2:0", (16, 16))]:
        content = encoded(pixels, sampling, 3)
        header = jpeg.read_header(content)
        assert (header.width, header.height, header.mcu_width, header.mcu_height) == (60, 50, *mcu)
        assert (header.interval, header.one_scan, header.app1) == (3, True, False)
        assert jpeg.has_restarts(content)
        assert not jpeg.has_restarts(encoded(pixels, sampling, 0))


def test_several_scans_and_12_bits_are_not_cut():
    content = encoded(noise(64, 64), "4:2:0", 1)
    frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
    for at, value in ((frame + 4, 12), (scan + 4, 1)):  # bits; components in the first scan
        changed = content[:at] + bytes([value]) + content[at + 1 :]
        assert not jpeg.has_restarts(changed)
        assert jpeg.cut(changed, jpeg.read_header(changed), Box(0, 0, 4, 4)) is None


def test_the_factors_of_a_single_component_mean_nothing():
    """T.81 A.2.2: the MCU of a scan of one component is one block."""
    content = encoded(noise(64, 64), "grey", 2)
    at = content.index(b"\xff\xc0") + 11
    changed = content[:at] + b"\x22" + content[at + 1 :]
    box = Box(20, 20, 9, 9)
    _, area = jpeg.cut(changed, jpeg.read_header(changed), box)
    assert area == Box(16, 16, 32, 16)
    np.testing.assert_array_equal(decode(changed, box), part(simplejpeg.decode_jpeg(content, "RGB"), box))


def test_progressive_jpegs_are_not_cut(encode):
    content = encode(noise(64, 64), "JPEG", progressive=True, restart_marker_blocks=1)
    header = jpeg.read_header(content)
    assert (header.width, header.height, header.one_scan) == (64, 64, False)
    assert not jpeg.has_restarts(content)
    assert jpeg.cut(content, header, Box(20, 20, 4, 4)) is None
    np.testing.assert_array_equal(decode(content, Box(20, 20, 4, 4)), simplejpeg.decode_jpeg(content, "RGB")[20:24, 20:24])


def without_one_marker(content: bytes) -> bytes:
    at = content.index(b"\xff\xd1")
    return content[:at] + content[at + 2 :]


def with_another_number(content: bytes) -> bytes:
    at = content.index(b"\xff\xd1")
    return content[: at + 1] + b"\xd2" + content[at + 2 :]


DAMAGE = {
    "a marker missing": without_one_marker,
    "a wrong number": with_another_number,
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut in its last interval": lambda content: content[:-3],
    "cut in the header": lambda content: content[:300],
    "another interval announced": lambda content: content.replace(b"\xff\xdd\x00\x04\x00\x01", b"\xff\xdd\x00\x04\x00\x02"),
    "only a header": lambda content: content[: jpeg.read_header(content).codes],
    "nothing behind the scan's marker": lambda content: content[: content.index(b"\xff\xda") + 2],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_jpegs_are_not_cut_and_are_errors(damage):
    content = damage(encoded(noise(64, 64), "4:2:0", 1))
    header = jpeg.read_header(content)
    assert header is None or jpeg.cut(content, header, Box(0, 0, 4, 4)) is None
    with pytest.raises(ValueError):
        decode(content, Box(0, 0, 4, 4))


def test_fill_bytes_are_not_cut_and_change_nothing():
    """T.81 B.1.1.2: any marker may be preceded by bytes 0xFF."""
    content = encoded(noise(64, 64), "4:2:0", 1)
    whole, box = simplejpeg.decode_jpeg(content, "RGB"), Box(20, 20, 4, 4)
    filled = content.replace(b"\xff\xd1", b"\xff\xff\xd1")
    assert jpeg.cut(filled, jpeg.read_header(filled), box) is None
    np.testing.assert_array_equal(decode(filled, box), part(whole, box))
    filled = content.replace(b"\xff\xda", b"\xff\xff\xff\xda")
    assert jpeg.cut(filled, jpeg.read_header(filled), box)
    np.testing.assert_array_equal(decode(filled, box), part(whole, box))


def test_what_follows_the_image_changes_nothing():
    for interval in (0, 1):
        content = encoded(noise(64, 64), "4:2:0", interval)
        longer = content + content + b"\xff\xd0\xff\xd9"
        whole = simplejpeg.decode_jpeg(content, "RGB")
        np.testing.assert_array_equal(decode(longer, Box(20, 20, 4, 4)), whole[20:24, 20:24])


@pytest.mark.parametrize("end", [0.3, 0.6, 0.999])
def test_jpegs_that_end_too_early_are_errors_wherever_the_crop_lies(end):
    content = encoded(noise(64, 256), "4:2:0", 0)
    for y in (0, 100, 250):
        with pytest.raises(ValueError):
            decode(content[: int(len(content) * end)], Box(0, y, 4, 4))


@pytest.mark.parametrize("interval", [0, 1])
def test_what_lies_outside_of_a_crop_is_not_decoded(interval):
    content = encoded(noise(64, 256), "4:2:0", interval)
    at = len(content) * 9 // 10
    damaged = content[:at] + bytes(8) + content[at + 8 :]
    with pytest.raises(ValueError, match="Corrupt"):
        decode(damaged)
    np.testing.assert_array_equal(decode(damaged, Box(5, 5, 50, 60)), decode(content)[5:65, 5:55])


@pytest.mark.parametrize("interval", [0, 1])
def test_codes_too_many_in_a_crop_are_an_error_as_in_the_whole(interval):
    content = encoded(noise(64, 64), "4:2:0", interval)
    longer = content[:-2] + bytes(8) + content[-2:]
    for box in (None, Box(50, 50, 14, 14)):
        with pytest.raises(ValueError, match="extraneous bytes"):
            decode(longer, box)


@pytest.mark.parametrize("interval", [0, 1, 4])
def test_damage_in_a_crop_is_never_other_pixels_than_those_of_the_whole(interval):
    """Where the whole decodes without a warning so does every crop of it, and alike."""
    rng, content = np.random.default_rng(0), encoded(noise(128, 128), "4:2:0", interval)
    errors = 0
    for _ in range(300):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content) if rng.random() < 0.7 else 650, rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        try:
            whole = decode(bytes(damaged))
        except ValueError:
            errors += 1
            continue
        y, x = (int(rng.integers(0, max(1, side - 20))) for side in whole.shape[:2])
        box = Box(x, y, min(20, whole.shape[1]), min(20, whole.shape[0]))
        np.testing.assert_array_equal(decode(bytes(damaged), box), part(whole, box))
    assert 30 < errors < 300


@given(st.binary(max_size=200).map(lambda tail: b"\xff\xd8\xff" + tail))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_header_or_none(content):
    header = jpeg.read_header(content)
    assert header is None or jpeg.cut(content, header, Box(0, 0, 1, 1)) is None


@pytest.mark.parametrize(
    ("width", "wanted", "expected"),
    [
        (500, 4, 4),  # 32 MCUs
        (333, 4, 3),  # 21 = 3 * 7
        (481, 4, 31),  # a prime
        (400, 4, 5),  # 25 = 5 * 5
        (96, 4, 3),  # 6: 3 is nearer to 4 than 6
        (160, 3, 2),  # 10: 2 is nearer to 3 than 5
        (16, 4, 1),
        (1, 1, 1),
        (512, 100, 32),  # the row itself
    ],
)
def test_intervals_divide_the_row(width, wanted, expected):
    assert jpeg.restart_interval(width, 16, wanted) == expected


@needs_jpegtran
@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411"])
def test_restarts_are_added_without_loss(sampling):
    pixels = noise(100, 70)
    content = simplejpeg.encode_jpeg(pixels, 90, colorsubsampling=sampling)
    marked, whole = jpeg.add_restarts(content, 2), simplejpeg.decode_jpeg(content, "RGB")
    assert jpeg.has_restarts(marked)
    np.testing.assert_array_equal(decode(marked), whole)
    for box in (Box(40, 30, 9, 9), Box(0, 0, 30, 70), Box(96, 60, 4, 10), Box(50, 0, 50, 20)):
        np.testing.assert_array_equal(decode(marked, box), part(whole, box))


@needs_jpegtran
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_restarts_are_added_to_progressive_jpegs_and_metadata_kept(encode, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(100, 70)).convert(mode)
    content = encode(image, "JPEG", progressive=True, exif=exif, icc_profile=b"profile")
    marked = jpeg.add_restarts(content, 2)
    assert jpeg.has_restarts(marked)
    np.testing.assert_array_equal(by_pillow(marked), by_pillow(content))
    opened = Image.open(io.BytesIO(marked))
    assert (opened.mode, opened.getexif()[0x0112], opened.info["icc_profile"]) == (mode, 6, b"profile")


def test_no_restarts_are_added_to_what_is_no_sound_jpeg_or_without_the_program(encode, monkeypatch):
    content = encode(noise(50, 50), "JPEG")
    assert jpeg.add_restarts(encode(noise(50, 50), "PNG"), 4) is None
    assert jpeg.add_restarts(content[: len(content) // 2], 4) is None
    monkeypatch.setenv("PATH", "")
    assert jpeg.add_restarts(content, 4) is None
