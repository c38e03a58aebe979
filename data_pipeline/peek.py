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
from data_pipeline.order import Slots
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


def pictures(shards: Shards, slots: Slots, training: Training | None) -> list[Picture]:
    """The samples as they are, or as a training sees them in their epochs: cropped, resized, augmented and flipped."""
    wanted = zip(slots.epochs.tolist(), slots.samples.tolist(), strict=True)
    return in_threads(lambda slot: _picture(shards, *slot, training), list(wanted))


def _picture(shards: Shards, epoch: int, sample: int, training: Training | None) -> Picture:
    block, pixels = shards.load([sample]), None
    try:
        image, label = block.image(sample)
        caption = class_name(label, shards.place(sample).manifest.classes)
        pixels = preview(image, epoch, sample, training) if training else decode(image)
    except BadSampleError as error:
        caption = f"damaged: {error}"
    return Picture(pixels, caption, block.keys()[sample])


def preview(image: bytes, epoch: int, sample: int, training: Training) -> np.ndarray:
    """HWC uint8: an encoded image as the model will see it, before normalising, erasing and mixing."""
    from data_pipeline.views import train_crop, train_view  # torch takes its time

    draw = Draw(training.seed, Purpose.AUGMENT, epoch, sample)
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
        _place(sheet, picture, GAP + column * width, GAP + row * height, size)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _place(sheet: Image.Image, picture: Picture, x: int, y: int, size: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    if picture.pixels_HWC is None:
        draw.rectangle((x, y, x + size - 1, y + size - 1), outline=ALARM, width=2)
    else:
        image = Image.fromarray(picture.pixels_HWC)
        scale = size / max(image.size)
        smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS  # enlarged pixels stay visible as such
        fitted = image.resize([max(1, round(side * scale)) for side in image.size], smooth)
        sheet.paste(fitted, (x + (size - fitted.width) // 2, y + size - fitted.height))
    draw.text((x, y + size + 1), _fit(picture.label, font, size), INK, font)
    draw.text((x, y + size + 1 + LINE), _fit(picture.key, font, size), FAINT, font)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, its middle left out where it is too long; keys differ at their ends."""
    shown = text
    for kept in range(len(text), -1, -1):
        if font.getbbox(shown)[2] <= width:
            break
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return shown
