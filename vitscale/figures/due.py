"""What a run directory has numbers or weights for, but no picture yet."""

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.manifest import read_manifest
from data_pipeline.stream import Shards
from vitscale import recipe
from vitscale.config import RunConfig
from vitscale.figures import drawing
from vitscale.sums import SUMS

NUM_IMAGES = 16  # on which attention is looked at


def draw_due(run_dir: Path) -> None:
    """Draw in `artifacts/` what is due; nothing when nothing is. To be called again after an error, or a kill.

    Confusion matrices of evaluations; and of the newest checkpoint, if it begins a time of `tracking.figures_every`, the model.
    """
    for table in sorted(run_dir.glob("artifacts/eval*/step_*/confusion.csv")):
        draw_confusions(table.parent)
    checkpoints = sorted(path.parent for path in run_dir.glob(f"checkpoints/step_{'[0-9]' * 8}/{SUMS}"))
    drawn = [0, *(step_of(path) for path in run_dir.glob("artifacts/figures/step_*"))]
    if not checkpoints or step_of(checkpoints[-1]) <= max(drawn):
        return
    cfg = recipe.load(run_dir / "recipe.yaml")
    if cfg.tracking.figures_every is None:
        return
    num_samples = sum(read_manifest(source.manifest).num_samples for source in cfg.data.train)
    every = max(1, cfg.tracking.figures_every.to_steps(cfg.train.global_batch, num_samples))
    if step_of(checkpoints[-1]) // every > max(drawn) // every:
        draw_checkpoint(checkpoints[-1], cfg, run_dir / "artifacts" / "figures" / checkpoints[-1].name)


def draw_confusions(folder: Path) -> None:
    """`confusion.png` beside `confusion.csv`, if there is one that is newer."""
    table, picture = folder / "confusion.csv", folder / "confusion.png"
    if not table.exists() or (picture.exists() and picture.stat().st_mtime >= table.stat().st_mtime):
        return
    (_, *classes), *rows = csv.reader(table.read_text().splitlines())
    drawing.save(drawing.confusion(np.array([row[1:] for row in rows], dtype=int), classes), picture)


def draw_checkpoint(checkpoint: Path, cfg: RunConfig, out: Path) -> None:
    """Pictures of a checkpoint's model, all or none."""
    from vitscale.figures.model import draw_model  # torch takes its time, and is rarely needed
    from vitscale.pretrained import load_pretrained

    images = some_images(cfg.data.val.manifest, NUM_IMAGES) if cfg.data.val else []
    with tempfile.TemporaryDirectory(dir=checkpoint.parents[1], prefix=".figures.") as folder:
        list(draw_model(load_pretrained(checkpoint), images, Path(folder) / "whole"))
        out.parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / "whole").rename(out)


def some_images(manifest: str, count: int) -> list[Image.Image]:
    """So many images of a manifest, or all, evenly spread over it."""
    shards = Shards(read_manifest(manifest))
    numbers = np.linspace(0, len(shards) - 1, min(count, len(shards))).round().astype(int)
    return [Image.open(io.BytesIO(shards.read(int(number)).image)) for number in numbers]


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))
