"""Contact sheets: pictures in rows, each with its label and key under it."""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.config import DataConfig
from data_pipeline.decode import decode
from data_pipeline.draw import Draw, Purpose
from data_pipeline.errors import BadSampleError
from data_pipeline.pool import in_threads
from data_pipeline.stats import class_name
from data_pipeline.stream import Shards

FONT_SIZE, LINE, GAP = 12, 16, 12  # pixels
BACKGROUND, INK, FAINT, ALARM = "white", "black", "#555555", "#b00020"


class Picture(NamedTuple):
    """What is shown of a sample."""

    pixels_HWC: np.ndarray | None  # uint8; None: it cannot be shown
    label: str
    key: str


class Training(NamedTuple):
    """What a recipe makes of images."""

    config: DataConfig
    size: int
    seed: int


def pictures(shards: Shards, samples: Sequence[int], training: Training | None) -> list[Picture]:
    """The samples as they are, or as a training sees them in its first epoch: cropped, resized, augmented and flipped."""
    return in_threads(lambda sample: _picture(shards, sample, training), samples)


def _picture(shards: Shards, sample: int, training: Training | None) -> Picture:
    block, pixels = shards.load([sample]), None
    try:
        image, label = block.image(sample)
        caption = class_name(label, shards.place(sample).manifest.classes)
        pixels = preview(image, sample, training) if training else decode(image)
    except BadSampleError as error:
        caption = f"damaged: {error}"
    return Picture(pixels, caption, block.keys[sample])


def preview(image: bytes, sample: int, training: Training) -> np.ndarray:
    """HWC uint8: an encoded image as the model will see it, before normalising, erasing and mixing."""
    from data_pipeline.views import train_crop, train_view  # torch takes its time

    draw = Draw(training.seed, Purpose.AUGMENT, 0, sample)
    view = train_view(train_crop(image, training.config, draw), training.size, training.config, draw)
    return view.pixels_HWC[:, ::-1] if view.flip else view.pixels_HWC


def contact_sheet(pictures: Sequence[Picture], size: int) -> bytes:
    """A PNG of the pictures in reading order, each within size x size: larger ones made smaller, small ones enlarged."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = size + GAP, size + 2 * LINE + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), BACKGROUND)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(_cell(picture, size), (GAP + column * width, GAP + row * height))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _cell(picture: Picture, size: int) -> Image.Image:
    """A picture with its label and its key below, of which too long ones show their beginning and their end."""
    cell = Image.new("RGB", (size, size + 2 * LINE), BACKGROUND)
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(FONT_SIZE)
    if picture.pixels_HWC is None:
        draw.rectangle((0, 0, size - 1, size - 1), outline=ALARM, width=2)
    else:
        image = Image.fromarray(picture.pixels_HWC)
        scale = size / max(image.size)
        smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS  # enlarged pixels stay visible as such
        fitted = image.resize([max(1, round(side * scale)) for side in image.size], smooth)
        cell.paste(fitted, ((size - fitted.width) // 2, size - fitted.height))
    draw.text((0, size + 1), picture.label, INK, font)
    draw.text((min(0.0, size - font.getlength(picture.key)), size + 1 + LINE), picture.key, FAINT, font)
    return cell
