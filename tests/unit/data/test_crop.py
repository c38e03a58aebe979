"""Crops against their distributions in closed form, resizing and evaluation views against Pillow."""

import io
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.box import Box
from data_pipeline.config import AugmentConfig, DataConfig, Preprocessing
from data_pipeline.crop import crop_box, resize, simple_crop
from data_pipeline.draw import Draw, Purpose
from data_pipeline.views import eval_view, train_crop, train_view

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def draws(number: int = 0) -> Draw:
    return Draw(0, Purpose.AUGMENT, number)


def viewed(image: np.ndarray, config: DataConfig, draw: Draw) -> np.ndarray:
    return train_view(train_crop(png(image), config, draw), 32, config, draw).pixels_HWC


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def assert_fits(box: Box, width: int, height: int, area: tuple[float, float], ratio: tuple[float, float]) -> None:
    """In both ranges, as far as whole pixels allow."""
    assert (box.width - 0.5) * (box.height - 0.5) <= area[1] * width * height * (1 + 1e-9)
    assert (box.width + 0.5) * (box.height + 0.5) >= area[0] * width * height * (1 - 1e-9)
    assert (box.width - 0.5) / (box.height + 0.5) <= ratio[1] * (1 + 1e-9)
    assert (box.width + 0.5) / (box.height - 0.5) >= ratio[0] * (1 - 1e-9)


def centre(box: Box, width: int, height: int) -> bool:
    return box.x == (width - box.width) // 2 and box.y == (height - box.height) // 2


ranges = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple)
ratios = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted).map(tuple)


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), area=ranges, ratio=ratios, number=st.integers(0, 2**40))
@example(width=1, height=1, area=(0.05, 1.0), ratio=(0.75, 4 / 3), number=0)
@example(width=3000, height=1, area=(0.05, 1.0), ratio=(0.75, 4 / 3), number=0)
@settings(max_examples=300, deadline=None)
def test_crops_lie_inside_the_image_and_the_ranges(width, height, area, ratio, number):
    box = crop_box(width, height, area, ratio, draws(number))
    assert 0 <= box.x <= box.x + box.width <= width
    assert 0 <= box.y <= box.y + box.height <= height
    assert box.width > 0
    assert box.height > 0
    fallback = box.width == width or box.height == height
    if not (fallback and centre(box, width, height)):
        assert_fits(box, width, height, area, ratio)


@pytest.mark.parametrize("area", [(0.05, 0.5), (0.25, 0.25)])
def test_crops_of_a_square_are_uniform_in_area_log_ratio_and_place(area):
    """Up to half the area no try is ever rejected: sqrt(1/2 * 4/3) < 1."""
    side, ratio, count = 10_000, (3 / 4, 4 / 3), 4_000
    boxes = [crop_box(side, side, area, ratio, draws(number)) for number in range(count)]
    x, y, w, h = np.array(boxes, np.float64).T
    for values, low, high in [
        (w * h / side**2, *area),
        (np.log(w / h), math.log(3 / 4), math.log(4 / 3)),
        (x / (side - w), 0, 1),
        (y / (side - h), 0, 1),
    ]:
        width = high - low
        assert abs(values.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * count) + 1e-3
        assert abs(values.var() - width**2 / 12) < 0.07 * width**2 / 12 + 1e-6
    assert abs(np.corrcoef([w * h, w / h, x / (side - w), y / (side - h)]) - np.eye(4)).max() < 0.08


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1000, 10, Box(493, 0, 13, 10)),  # 10 * 4/3 wide, in the middle of 1000
        (10, 1000, Box(0, 493, 10, 13)),  # 10 / (3/4) high
        (1, 3000, Box(0, 1499, 1, 1)),
    ],
)
def test_images_too_narrow_for_any_crop_give_their_centre(width, height, expected):
    assert crop_box(width, height, (0.5, 1.0), (3 / 4, 4 / 3), draws()) == expected


def test_one_pixel_is_left_where_the_ratio_asks_for_less():
    assert crop_box(1, 1, (0.5, 0.5), (0.4, 0.4), draws()) == Box(0, 0, 1, 1)
    assert crop_box(1, 9, (0.5, 0.5), (3.0, 3.0), draws()) == Box(0, 4, 1, 1)


def test_the_whole_of_a_square_is_a_crop():
    assert crop_box(64, 64, (1.0, 1.0), (1.0, 1.0), draws()) == Box(0, 0, 64, 64)


def difference(found: np.ndarray, expected: np.ndarray) -> int:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    return int(np.abs(found.astype(int) - expected.astype(int)).max())


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize(("width", "height"), [(64, 64), (200, 131), (33, 500), (20, 10), (1, 1), (224, 32)])
def test_resizing_is_pillows(interpolation, width, height):
    image = noise(width, height)
    expected = np.asarray(Image.fromarray(image).resize((48, 32), RESAMPLING[interpolation]))
    assert difference(resize(image, 32, 48, interpolation), expected) <= 2


def test_resized_pixels_lie_in_reading_order():
    """Copying them into a batch took as long as resizing when they did not."""
    for height, width in ((90, 70), (16, 16), (300, 20)):
        assert resize(noise(width, height), 32, 32, "bicubic").flags.c_contiguous


def test_interpolations_differ():
    assert difference(resize(noise(64, 64), 32, 32, "bicubic"), resize(noise(64, 64), 32, 32, "bilinear")) > 5


def config(interpolation: str = "bicubic", **augment: object) -> DataConfig:
    return DataConfig(train=({"manifest": ""},), interpolation=interpolation, augment=AugmentConfig(**augment))


@pytest.mark.parametrize("interpolation", RESAMPLING)
def test_training_views_are_the_crop_resized_by_pillow(picture, interpolation):
    image = picture(90, 70)
    for number in range(20):
        box = crop_box(90, 70, (0.05, 1.0), (3 / 4, 4 / 3), draws(number))
        corners = (box.x, box.y, box.x + box.width, box.y + box.height)
        expected = Image.fromarray(image).crop(corners).resize((32, 32), RESAMPLING[interpolation])
        assert difference(viewed(image, config(interpolation), draws(number)), np.asarray(expected)) <= 2


def test_training_views_use_the_ranges_of_the_recipe(picture):
    square = picture(64, 64)
    expected = np.asarray(Image.fromarray(square).resize((32, 32), RESAMPLING["bicubic"]))
    whole = config(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert difference(viewed(square, whole, draws()), expected) <= 2
    assert difference(viewed(square, config(crop_area=(0.05, 0.1)), draws()), expected) > 20


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("eval_crop", [0.875, 1.0, 0.5])
@pytest.mark.parametrize(("width", "height"), [(100, 80), (80, 100), (61, 37), (17, 300), (56, 56), (10, 10)])
def test_evaluation_views_are_pillows_resized_centre(interpolation, eval_crop, width, height):
    image, size = noise(width, height), 56
    short = round(size / eval_crop)
    wide = round(width * short / min(width, height)), round(height * short / min(width, height))
    left, top = (wide[0] - size) // 2, (wide[1] - size) // 2
    resized = Image.fromarray(image).resize(wide, RESAMPLING[interpolation])
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    assert difference(eval_view(image, size, Preprocessing(eval_crop=eval_crop, interpolation=interpolation)), expected) <= 2


@pytest.mark.parametrize("shape", [(10_000_000, 1), (1, 10_000_000)])
def test_a_line_of_pixels_is_not_resized_in_full_length(shape):
    line = np.broadcast_to(np.array([1, 2, 3], np.uint8), (*shape, 3))
    for view in (eval_view(line, 32, Preprocessing()), simple_crop(line, 32, "bicubic", Draw(0, Purpose.AUGMENT, 0, 0))):
        assert (view == [1, 2, 3]).all()
        assert view.shape == (32, 32, 3)


@pytest.mark.parametrize("size", [224, 225, 384])
def test_short_sides_lose_no_pixel_to_rounding(size):
    for eval_crop in (0.875, 0.9, 0.95, 1.0):
        for side in (199, 200, 333):
            assert eval_view(noise(side, side + 7), size, Preprocessing(eval_crop=eval_crop)).shape == (size, size, 3)
