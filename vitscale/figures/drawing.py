"""How pictures are drawn and saved, whatever they show; and the one of confusions."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from data_pipeline.storage import replace

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito: colour-blind safe


def save(figure: Figure, path: Path) -> str:
    """As .svg and .png, each whole or not at all; the same figure gives the same bytes."""
    for suffix, unwanted in ((".svg", "Date"), (".png", "Software")):
        content = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": path.name}):
            figure.savefig(content, format=suffix[1:], dpi=150, metadata={unwanted: None})
        replace(path.with_suffix(suffix), content.getvalue())
    return str(path.with_suffix(".png"))


def panels(title: str, caption: str, width: float, height: float, count: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with axes beside each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(textwrap.fill(caption, round(17 * width), break_on_hyphens=False), fontsize=8, color="#444444")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def mosaic(tiles: np.ndarray, gap: int, empty: float) -> np.ndarray:
    """(rows, columns, height, width, ...) -> one picture, with `gap` empty pixels between."""
    margins = [(0, 0), (0, 0), (0, gap), (0, gap), *[(0, 0)] * (tiles.ndim - 4)]
    padded = np.pad(tiles.astype(float), margins, constant_values=empty)
    return rearrange(padded, "rows columns h w ... -> (rows h) (columns w) ...")[:-gap, :-gap]


def gallery(title: str, caption: str, images_BHWC: np.ndarray, columns: int, inches: float) -> Figure:
    """Images of so many inches across, row by row."""
    rows, (height, width) = -(-len(images_BHWC) // columns), images_BHWC.shape[1:3]
    white = np.ones((rows * columns - len(images_BHWC), *images_BHWC.shape[1:]))
    tiles = np.concatenate([images_BHWC, white]).reshape(rows, columns, *images_BHWC.shape[1:])
    figure, (ax,) = panels(title, caption, max(4, inches * columns), 0.7 + inches * height / width * rows)
    ax.imshow(mosaic(tiles, max(1, height // 12), 1.0), interpolation="nearest")
    ax.axis("off")
    return figure


def confusion(images: np.ndarray, classes: Sequence[str]) -> Figure:
    """Images by true class (row) and predicted class (column)."""
    share = images / np.maximum(images.sum(axis=1, keepdims=True), 1)
    few, side = len(classes) <= 20, 3 + min(8, 0.35 * len(classes))
    caption = "Colour: share of the images of a true class." + (" Numbers: images." if few else "")
    figure, (ax,) = panels("Confusion matrix", caption, side + 0.6, side)
    heat = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(len(classes)), [textwrap.shorten(name, 20) for name in classes], fontsize=8 if few else 5)
    ax.tick_params(axis="x", rotation=90 if max(map(len, classes)) > 2 else 0)
    for row, column in np.argwhere(images) if few else ():
        colour = "white" if share[row, column] > 0.5 else "black"
        ax.text(column, row, f"{images[row, column]:,}", ha="center", va="center", color=colour, fontsize=7)
    ax.set(xlabel="Predicted class", ylabel="True class")
    figure.colorbar(heat, ax=ax, shrink=0.75, format=PercentFormatter(1))
    return figure
