"""3-Augment and colour jitter against their definitions in float64."""

import itertools
import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from data_pipeline.augment import augment, color_jitter, three_augment
from data_pipeline.draw import Draw, Purpose
from data_pipeline.randaugment import randaugment, timm_randaugment


class Recipe(NamedTuple):
    three_augment: bool = False
    color_jitter: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 0.0
    randaugment: str = "tf"


def draws(number: int = 0) -> Draw:
    return Draw(0, Purpose.AUGMENT, 0, number)


def luma(image: np.ndarray) -> np.ndarray:
    """ITU-R 601 in whole levels, as three equal channels."""
    grey = np.floor(image @ np.array([0.299, 0.587, 0.114]) + 0.5)
    return np.repeat(grey[:, :, None], 3, axis=2)


def mean_luma(image: np.ndarray) -> np.ndarray:
    return np.full_like(image, math.floor(luma(image).mean() + 0.5))


AWAY_FROM = {"brightness": np.zeros_like, "contrast": mean_luma, "saturation": luma}


def jittered(image: np.ndarray, names: tuple[str, ...], factors: list[float]) -> np.ndarray:
    """Each change in turn: away from its degenerate image by the factor, cut to 0..255, truncated."""
    for name, factor in zip(names, factors, strict=True):
        low = AWAY_FROM[name](image)
        image = np.clip(low + factor * (image - low), 0, 255) // 1
    return image


def difference(found: Image.Image, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found).astype(float) - expected).max())


def test_three_augment_is_grey_or_solarized_or_blurred_alike(picture):
    image = picture(64, 48)
    solarized = np.where(image < 128, image, 255 - image)
    found = Counter()
    for number in range(600):
        result = three_augment(Image.fromarray(image), draws(number))
        kinds = {"grey": difference(result, luma(image)) <= 1, "solarized": difference(result, solarized) == 0}
        found[next((kind for kind, fits in kinds.items() if fits), "blurred")] += 1
    assert all(abs(found[kind] - 200) < 4 * math.sqrt(200 * 2 / 3) for kind in ("grey", "solarized", "blurred"))


def test_blurs_are_gaussian_of_all_radii():
    edge = np.zeros((40, 40, 3), np.uint8)
    edge[:, 20:] = 240
    curves = {sigma: gaussian_filter(edge[0, :, 0].astype(float), sigma) for sigma in np.arange(0.1, 2.05, 0.05)}
    sigmas = []
    for number in range(150):
        result = three_augment(Image.fromarray(edge), draws(number))
        row = np.asarray(result)[20, :, 0].astype(float)
        if np.ptp(np.asarray(result), axis=2).max() == 0 and not 0 < row[19] < row[20] < 240:
            continue  # grey or solarized, or a blur too small to see
        errors = {sigma: np.abs(row - curve).max() for sigma, curve in curves.items()}
        sigmas.append(min(errors, key=errors.__getitem__))
        assert min(errors.values()) < 8  # Pillow's Gaussian is three boxes
    assert min(sigmas) < 0.7
    assert max(sigmas) > 1.85
    assert abs(np.mean([sigma for sigma in sigmas if sigma > 1]) - 1.5) < 0.25


def replayed(draw: Draw, jitter: float) -> tuple[tuple[str, ...], list[float]]:
    order = list(itertools.permutations(AWAY_FROM))[draw.integer(6)]
    return order, [draw.uniform(max(0, 1 - jitter), 1 + jitter) for _ in order]


@pytest.mark.parametrize("jitter", [0.3, 1.0, 1.5])
def test_jitter_is_the_three_changes_in_any_order(picture, jitter):
    image = picture(40, 30)
    orders = set()
    for number in range(40):
        order, factors = replayed(draws(number), jitter)
        orders.add(order)
        result = color_jitter(Image.fromarray(image), jitter, draws(number))
        assert difference(result, jittered(image.astype(float), order, factors)) <= 1 + max(0, jitter)
    assert len(orders) == 6


def test_jitter_is_within_its_range_and_even():
    """Of a grey image away from white only brightness changes the mean, as the mean is its own contrast and its own grey."""
    flat = Image.new("RGB", (4, 4), (100, 100, 100))
    levels = np.array([np.asarray(color_jitter(flat, 0.3, draws(number)))[0, 0, 0] for number in range(2000)], float)
    assert levels.min() == 70
    assert levels.max() == 129
    assert abs(levels.mean() - 99.5) < 4 * 60 / math.sqrt(12 * len(levels))
    assert abs(levels.var() / (60**2 / 12) - 1) < 0.1


def test_nothing_asked_changes_nothing(picture):
    image = picture(20, 20)
    assert augment(image, Recipe(), draws()) is image


def test_augmenting_is_each_change_asked_for_in_order(picture):
    image = picture(32, 24)
    everything = augment(image, Recipe(True, 0.3, 2, 15.0), draws(7))
    draw = draws(7)
    expected = randaugment(color_jitter(three_augment(Image.fromarray(image), draw), 0.3, draw), 2, 15.0, draw)
    assert everything.dtype == np.uint8
    assert np.array_equal(everything, np.asarray(expected))
    assert np.array_equal(
        augment(image, Recipe(randaugment_layers=2, randaugment_magnitude=15.0), draws(7)),
        np.asarray(randaugment(Image.fromarray(image), 2, 15.0, draws(7))),
    )
    timms = Recipe(randaugment="timm", randaugment_layers=2, randaugment_magnitude=9.0)
    expected = timm_randaugment(Image.fromarray(image), 2, 9.0, draws(7))
    assert np.array_equal(augment(image, timms, draws(7)), np.asarray(expected))
    assert np.array_equal(image, picture(32, 24))


def test_augmenting_is_the_samples_draw_and_nothing_else(picture):
    image, recipe = picture(32, 24), Recipe(True, 0.3, 2, 15.0)
    found = [augment(image, recipe, draws(number)).tobytes() for number in (1, 2, 1)]
    assert found[0] == found[2] != found[1]
