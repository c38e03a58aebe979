"""RandAugment's operations against their definitions in TensorFlow, written with numpy, and its draws against their odds."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from data_pipeline.draw import Draw, Purpose
from data_pipeline.randaugment import (
    OPS,
    TIMM_OPS,
    affine,
    autocontrast,
    contrast,
    cutout,
    randaugment,
    rotate,
    sharpness,
    timm_randaugment,
)

F32 = np.float32


def draws(number: int = 0) -> Draw:
    return Draw(0, Purpose.AUGMENT, 0, number)


def blend(low: np.ndarray, high: np.ndarray, factor: float) -> np.ndarray:
    """autoaugment.py's: float32, cut to 0..255, truncated; factors 0 and 1 give an image itself."""
    mixed = low.astype(F32) + F32(factor) * (high.astype(F32) - low.astype(F32))
    return np.clip(mixed, 0, 255).astype(np.uint8)


def tf_autocontrast(image: np.ndarray) -> np.ndarray:
    channels = []
    for channel in np.moveaxis(image, 2, 0).astype(F32):
        low, high = channel.min(), channel.max()
        scale = F32(255) / (high - low) if high > low else F32(1)
        offset = -low * scale if high > low else F32(0)
        channels.append(np.clip(channel * scale + offset, 0, 255).astype(np.uint8))
    return np.stack(channels, 2)


def tf_equalize(image: np.ndarray) -> np.ndarray:
    channels = []
    for channel in np.moveaxis(image, 2, 0):
        counts = np.bincount(channel.reshape(-1), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        table = np.arange(256)
        if step:
            table = np.clip(np.concatenate([[0], (np.cumsum(counts) + step // 2) // step])[:256], 0, 255)
        channels.append(table[channel].astype(np.uint8))
    return np.stack(channels, 2)


def tf_grey(image: np.ndarray) -> np.ndarray:
    """floor of (.2989 R + .587 G + .114 B) * 255.5 / 255, in whole numbers."""
    weighted = image.astype(np.int64) @ [2989, 5870, 1140]
    return np.repeat((weighted * 511 // 5_100_000)[:, :, None], 3, axis=2)


def tf_smooth(image: np.ndarray) -> np.ndarray:
    smooth, wide = image.copy(), image.astype(np.int64)
    for y, x in itertools.product(range(1, image.shape[0] - 1), range(1, image.shape[1] - 1)):
        smooth[y, x] = (wide[y - 1 : y + 2, x - 1 : x + 2].sum((0, 1)) + 4 * wide[y, x]) // 13
    return smooth


def tf_transform(image: np.ndarray, a: float, b: float, c: float, d: float, e: float, f: float) -> np.ndarray:
    """The pixel nearest to (ax + by + c, dx + ey + f), a half rounded up, 128 where there is none."""
    height, width, _ = image.shape
    result = np.full_like(image, 128)
    for y, x in itertools.product(range(height), range(width)):
        u, v = (math.floor(place + 0.5 + 1e-9) for place in (a * x + b * y + c, d * x + e * y + f))
        if 0 <= u < width and 0 <= v < height:
            result[y, x] = image[v, u]
    return result


def tf_rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """tensorflow_addons' angles_to_projective_transforms."""
    h, w = image.shape[0] - 1, image.shape[1] - 1
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return tf_transform(image, cos, -sin, (w - (cos * w - sin * h)) / 2, sin, cos, (h - (sin * w + cos * h)) / 2)


def tf_cutouts(image: np.ndarray, half: int) -> list[np.ndarray]:
    """One for every centre."""
    results = []
    for y, x in itertools.product(range(image.shape[0]), range(image.shape[1])):
        result = image.copy()
        result[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 128
        results.append(result)
    return results


def expected(name: str, image: np.ndarray, magnitude: float) -> list[np.ndarray]:
    """All results the operation may have, each as likely; positive signs first."""
    m = magnitude / 10
    enhance, constant = 1.8 * m + 0.1, min(image.shape[0] * image.shape[1] // 256, 255)
    shift = min(8 - int(m * 4), 7)
    threshold = {0: 0, 5: 128, 10: 0, 15: 128, 20: 0}.get(int(magnitude), int(256 * m))
    wide = image.astype(np.int64)
    signs = [sign * m for sign in (1, -1)]
    cases = {
        "AutoContrast": lambda: [tf_autocontrast(image)],
        "Equalize": lambda: [tf_equalize(image)],
        "Invert": lambda: [255 - image],
        "Rotate": lambda: [tf_rotate(image, 30 * s) for s in signs],
        "Posterize": lambda: [image >> shift << shift],
        "Solarize": lambda: [np.where(image < threshold, image, 255 - image)],
        "Color": lambda: [blend(tf_grey(image), image, enhance)],
        "Contrast": lambda: [blend(np.full_like(image, constant), image, enhance)],
        "Brightness": lambda: [blend(np.zeros_like(image), image, enhance)],
        "Sharpness": lambda: [blend(tf_smooth(image), image, enhance)],
        "ShearX": lambda: [tf_transform(image, 1, 0.3 * s, 0, 0, 1, 0) for s in signs],
        "ShearY": lambda: [tf_transform(image, 1, 0, 0, 0.3 * s, 1, 0) for s in signs],
        "TranslateX": lambda: [tf_transform(image, 1, 0, 100 * s, 0, 1, 0) for s in signs],
        "TranslateY": lambda: [tf_transform(image, 1, 0, 0, 0, 1, 100 * s) for s in signs],
        "Cutout": lambda: tf_cutouts(image, int(40 * m)),
        "SolarizeAdd": lambda: [np.where(wide < 128, np.minimum(wide + int(110 * m), 255), wide).astype(np.uint8)],
    }
    assert list(cases) == list(OPS)
    return cases[name]()


def noise(height: int, width: int, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(height).integers(low, high, (height, width, 3), np.uint8)


def pixels(image: Image.Image) -> bytes:
    return image.tobytes()


@pytest.mark.parametrize("magnitude", [0.0, 2.0, 5.0, 10.0, 15.0, 20.0])
@pytest.mark.parametrize("name", OPS)
def test_operations_are_tensorflows(name, magnitude):
    for image in (noise(37, 41), noise(24, 16, 90, 190)):
        allowed = [result.tobytes() for result in expected(name, image, magnitude)]
        found = {pixels(OPS[name](Image.fromarray(image), magnitude / 10, draws(number))) for number in range(12)}
        assert found <= set(allowed)
        if len(allowed) == 2:
            assert found == set(allowed)


@pytest.mark.parametrize("name", OPS)
def test_operations_stand_flat_and_tiny_images(name):
    for image in (np.full((9, 7, 3), 77, np.uint8), noise(1, 1), noise(2, 2), noise(1, 5)):
        allowed = [result.tobytes() for result in expected(name, image, 10.0)]
        assert pixels(OPS[name](Image.fromarray(image), 1.0, draws())) in allowed


def test_equalizing_many_pixels_is_tensorflows(picture):
    """Enough pixels that a step is several, which is where rounding happens."""
    image = picture(60, 50)
    assert pixels(OPS["Equalize"](Image.fromarray(image), 1.0, draws())) == tf_equalize(image).tobytes()


def test_autocontrast_stretches_from_black_to_white_or_just_below():
    for low, high in itertools.combinations(range(0, 256, 15), 2):
        levels = np.linspace(low, high, 12).astype(np.uint8).reshape(3, 4, 1).repeat(3, 2)
        found = np.asarray(autocontrast(Image.fromarray(levels))).astype(float)
        exact = (levels - float(low)) * 255 / (high - low)
        assert np.all((exact - 1.001 < found) & (found < exact + 1e-3))


def test_sharpness_leaves_flat_images_at_every_level():
    for level in range(256):
        flat = np.full((5, 5, 3), level, np.uint8)
        assert np.array_equal(np.asarray(sharpness(Image.fromarray(flat), 1.9)), flat)


@pytest.mark.parametrize(("side", "constant"), [(224, 196), (160, 100), (300, 255)])
def test_contrast_is_about_the_number_of_pixels(side, constant):
    flat = Image.new("RGB", (side, side), (50, 50, 50))
    assert np.unique(contrast(flat, 1.9)).tolist() == [max(0, math.floor(constant + 1.9 * (50 - constant)))]
    assert np.unique(contrast(flat, 0.1)).tolist() == [math.floor(constant + 0.1 * (50 - constant))]


NINE = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)


def moved(change) -> list[list[int]]:
    return np.asarray(change(Image.fromarray(NINE[:, :, None].repeat(3, 2))))[:, :, 0].tolist()


def test_small_pictures_move_as_by_hand():
    grey = 128
    assert moved(lambda image: rotate(image, 90)) == [[3, 6, 9], [2, 5, 8], [1, 4, 7]]  # counter-clockwise
    assert moved(lambda image: rotate(image, 180)) == [[9, 8, 7], [6, 5, 4], [3, 2, 1]]
    assert moved(lambda image: affine(image, row_x=(1, 0, 1))) == [[2, 3, grey], [5, 6, grey], [8, 9, grey]]
    assert moved(lambda image: affine(image, row_y=(0, 1, -1))) == [[grey] * 3, [1, 2, 3], [4, 5, 6]]
    assert moved(lambda image: affine(image, row_x=(1, 1, 0))) == [[1, 2, 3], [5, 6, grey], [9, grey, grey]]
    assert moved(lambda image: affine(image, row_y=(0.5, 1, 0))) == [[1, 5, 6], [4, 8, 9], [7, grey, grey]]


def test_cutout_is_about_every_pixel_alike():
    image = Image.fromarray(noise(6, 8))
    results = [result.tobytes() for result in tf_cutouts(np.asarray(image), 2)]
    counts = Counter(pixels(cutout(image, 2, draws(number))) for number in range(48 * 60))
    assert set(counts) == set(results)
    assert len(set(results)) == 48
    squares = sum((count - 60) ** 2 / 60 for count in counts.values())
    assert squares < 47 + 4 * math.sqrt(2 * 47)  # chi-squared


def test_all_operations_are_drawn_alike():
    image, magnitude, count = noise(40, 48), 3.0, 16 * 150
    names = {
        result.tobytes(): (name, sign)
        for name in OPS
        for sign, result in enumerate(expected(name, image, magnitude))
        if name != "Cutout"
    }
    assert len(names) == 10 + 2 * 5  # all differ
    results = [pixels(randaugment(Image.fromarray(image), 1, magnitude, draws(number))) for number in range(count)]
    found = Counter(names.get(result, ("Cutout", 0)) for result in results)
    totals = [sum(found[name, sign] for sign in (0, 1)) for name in OPS]
    assert sum((total - 150) ** 2 / 150 for total in totals) < 15 + 4 * math.sqrt(2 * 15)  # chi-squared


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_both_signs_are_as_likely(name):
    image, count = noise(24, 24), 1500
    positive, negative = (result.tobytes() for result in expected(name, image, 2.0))
    found = Counter(pixels(OPS[name](Image.fromarray(image), 0.2, draws(number))) for number in range(count))
    assert found[positive] + found[negative] == count
    assert abs(found[positive] - found[negative]) < 4 * math.sqrt(count)


def test_layers_follow_each_other_with_replacement():
    image = Image.fromarray(noise(8, 8))
    twice = randaugment(image, 2, 10.0, draws(5))
    draw = draws(5)
    assert pixels(randaugment(randaugment(image, 1, 10.0, draw), 1, 10.0, draw)) == pixels(twice)
    assert pixels(randaugment(image, 0, 10.0, draws())) == pixels(image)
    inverted_twice = (pixels(randaugment(image, 2, 10.0, draws(number))) == pixels(image) for number in range(1500))
    assert any(inverted_twice)  # Invert or Solarize, and again


# timm's


def timm_moved(image: np.ndarray, rows: tuple[float, ...]) -> np.ndarray:
    options = {"resample": Image.Resampling.BICUBIC, "fillcolor": (124, 116, 104)}
    return np.asarray(Image.fromarray(image).transform(image.shape[1::-1], Image.Transform.AFFINE, rows, **options))


def timm_expected(name: str, image: np.ndarray, level: float) -> list[np.ndarray]:
    """By the level functions of timm/data/auto_augment.py: what may come out, of both signs where there are any."""
    part, picture = level / 10, Image.fromarray(image)
    height, width = image.shape[:2]
    signs = (part, -part)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        factors = [max(0.1, 1 + 0.9 * signed) for signed in signs]
        return [np.asarray(getattr(ImageEnhance, name)(picture).enhance(factor)) for factor in factors]
    if name == "Rotate":
        turned = (picture.rotate(30 * s, resample=Image.Resampling.BICUBIC, fillcolor=(124, 116, 104)) for s in signs)
        return [np.asarray(rotated) for rotated in turned]
    rows = {
        "ShearX": lambda s: (1, 0.3 * s, 0, 0, 1, 0),
        "ShearY": lambda s: (1, 0, 0, 0.3 * s, 1, 0),
        "TranslateX": lambda s: (1, 0, 0.45 * s * width, 0, 1, 0),
        "TranslateY": lambda s: (1, 0, 0, 0, 1, 0.45 * s * height),
    }
    if name in rows:
        return [timm_moved(image, rows[name](signed)) for signed in signs]
    bits, threshold, addition = 4 - int(part * 4), 256 - int(part * 256), int(part * 110)
    plain = {
        "AutoContrast": lambda: np.asarray(ImageOps.autocontrast(picture)),
        "Equalize": lambda: np.asarray(ImageOps.equalize(picture)),
        "Invert": lambda: 255 - image,
        "Posterize": lambda: image // 2 ** (8 - bits) * 2 ** (8 - bits) if bits else np.zeros_like(image),
        "Solarize": lambda: np.where(image < threshold, image, 255 - image),
        "SolarizeAdd": lambda: np.where(image < 128, np.minimum(image.astype(int) + addition, 255), image).astype(np.uint8),
    }
    return [plain[name]()]


TIMM_NAMES = sorted(TIMM_OPS)


@pytest.mark.parametrize("level", [0, 2.6, 8.2, 9, 9.7, 10])
@pytest.mark.parametrize("name", TIMM_NAMES)
def test_operations_are_timms(name, level, picture):
    image = picture(60, 44)
    known = {result.tobytes() for result in timm_expected(name, image, level)}
    found = {pixels(TIMM_OPS[name](Image.fromarray(image), level / 10, draws(number))) for number in range(16)}
    assert found == known
    assert set(TIMM_NAMES) == (set(OPS) - {"Cutout"})


def test_timms_layers_are_left_out_half_the_time_and_drawn_alike():
    """Magnitudes about 99 are cut off to 10."""
    image, count = noise(40, 48) // 2 + 60, 15 * 200
    known = {result.tobytes(): name for name in TIMM_NAMES for result in timm_expected(name, image, 10)}
    assert len(known) == 6 + 2 * 9 - 1  # Invert is Solarize at 10
    found = Counter(pixels(timm_randaugment(Image.fromarray(image), 1, 99.0, draws(number))) for number in range(count))
    assert set(found) <= {*known, image.tobytes()}
    assert abs(found.pop(image.tobytes()) - count / 2) < 4 * math.sqrt(count / 4)
    totals = Counter({known[result]: 0 for result in known})
    for result, times in found.items():
        totals[known[result]] += times
    shares = [100 * (1 + (name == known[(255 - image).tobytes()])) for name in totals]
    assert sum((total - share) ** 2 / share for total, share in zip(totals.values(), shares, strict=True)) < 14 + 4 * math.sqrt(
        28
    )


def test_timms_magnitude_is_normal_about_the_one_asked_for():
    """And seen in what SolarizeAdd adds."""
    draw = draws(3)
    drawn = np.array([draw.normal(9.0, 0.5) for _ in range(4000)])
    assert abs(drawn.mean() - 9) < 4 * 0.5 / math.sqrt(4000)
    assert abs(drawn.std() - 0.5) < 4 * 0.5 / math.sqrt(2 * 4000)
    assert abs((drawn > 10).mean() - 0.02275) < 4 * math.sqrt(0.02275 / 4000)
    assert abs((drawn < 8.5).mean() - 0.15866) < 4 * math.sqrt(0.15866 * 0.84 / 4000)
    dark = noise(16, 16) // 2
    results = (timm_randaugment(Image.fromarray(dark), 1, 9.0, draws(number)) for number in range(3000))
    differences = (np.asarray(result).astype(int) - dark for result in results)
    added = [int(change.min()) for change in differences if change.min() == change.max() > 0]  # int(11 m) everywhere
    assert len(added) > 60 and 75 < min(added) < 90 and 105 < max(added) <= 110 and len(set(added)) > 12
