"""Made pictures, to try things out at any size of a data set: one of four shapes filled with one of four textures."""

import io

import numpy as np
from PIL import Image

from data_pipeline.collection import Collection, Item

SIDE = 64
SHAPES, TEXTURES = ("disc", "square", "triangle", "cross"), ("stripes", "checks", "dots", "rings")
CLASSES = [f"{texture}-{shape}" for shape in SHAPES for texture in TEXTURES]


def shapes(count: int, seed: int = 0) -> Collection:
    """`count` pictures, as many of each class as of any other; picture n depends on (seed, n) only."""
    return Collection([Item(f"shape{n:06d}", "jpg", n % len(CLASSES), _jpeg(n, seed)) for n in range(count)], CLASSES)


def _jpeg(number: int, seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number, seed)).save(file, "JPEG", quality=90)
    return file.getvalue()


def picture(number: int, seed: int) -> np.ndarray:  # -> uint8 HWC
    """A figure somewhere, of some size, turned by up to 30 degrees, in two colours, on two others under noise."""
    draw = np.random.default_rng((seed, number))
    shape, texture = divmod(number % len(CLASSES), len(TEXTURES))
    turn, half = draw.uniform(-np.pi / 6, np.pi / 6), draw.uniform(0.25, 0.45) * SIDE
    y, x = np.mgrid[:SIDE, :SIDE] - draw.uniform(half, SIDE - half, 2)[:, None, None]
    u, v = (x * np.cos(turn) + y * np.sin(turn)) / half, (y * np.cos(turn) - x * np.sin(turn)) / half
    colours = draw.uniform([[140], [0], [60], [60]], [[255], [115], [195], [195]], (4, 3))
    across = (x * np.cos(4 * turn) + y * np.sin(4 * turn)) / SIDE
    background = colours[2] + (colours[3] - colours[2]) * np.clip(across + 0.5, 0, 1)[..., None]
    filled = np.where(_texture(TEXTURES[texture], u, v, draw.uniform(5, 8))[..., None], colours[0], colours[1])
    clean = np.where(_shape(SHAPES[shape], u, v)[..., None], filled, background)
    return np.clip(clean + draw.normal(0, 12, clean.shape), 0, 255).astype(np.uint8)


def _shape(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where it is, in coordinates that reach from -1 to 1."""
    near, far = np.minimum(abs(u), abs(v)), np.maximum(abs(u), abs(v))
    return {
        "disc": u**2 + v**2 < 1,
        "square": far < 0.85,
        "triangle": (v < 0.8) & (v > 2 * abs(u) - 1),
        "cross": (near < 0.33) & (far < 1),
    }[name]


def _texture(name: str, u: np.ndarray, v: np.ndarray, rate: float) -> np.ndarray:
    """Where the first colour is; `rate` radians from the middle to the edge."""
    a, b = np.sin(rate * u), np.sin(rate * v)
    return {"stripes": a > 0, "checks": a * b > 0, "dots": a + b > 0.9, "rings": np.sin(rate * np.hypot(u, v)) > 0}[name]
