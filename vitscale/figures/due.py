"""What a run directory has numbers or weights for, but no picture yet."""

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.manifest import read_manifest
from data_pipeline.stream import Shards
from vitscale import recipe
from vitscale.config import RunConfig
from vitscale.duration import Duration
from vitscale.figures import drawing
from vitscale.retention import complete

NUM_IMAGES = 16  # on which attention is looked at


def draw_due(run_dir: Path) -> None:
    """Draw in `artifacts/` what is due; nothing when nothing is. To be called again after an error, or a kill.

    Confusion matrices of evaluations; and of the newest checkpoint, if it begins a time of `tracking.figures_every`, the model.
    """
    for table in sorted(run_dir.glob("artifacts/eval*/step_*/confusion.csv")):
        draw_confusions(table.parent)
    checkpoint = max(complete(run_dir / "checkpoints"), default=None)
    drawn = max((step_of(path) for path in run_dir.glob("artifacts/figures/step_*")), default=0)
    if checkpoint and step_of(checkpoint) > drawn:
        cfg = recipe.load(run_dir / "recipe.yaml")
        if cfg.tracking.figures_every and begins_time(cfg, cfg.tracking.figures_every, drawn, step_of(checkpoint)):
            draw_checkpoint(checkpoint, cfg, run_dir / "artifacts" / "figures" / checkpoint.name)


def begins_time(cfg: RunConfig, every: Duration, before: int, step: int) -> bool:
    """Whether a multiple of `every` lies after the step before and not after this one."""
    num_samples = sum(read_manifest(source.manifest).num_samples for source in cfg.data.train)
    steps = max(1, every.to_steps(cfg.train.global_batch, num_samples))
    return before // steps < step // steps


def draw_confusions(folder: Path) -> None:
    """`confusion.png` beside `confusion.csv`, if there is one that is newer."""
    table, picture = folder / "confusion.csv", folder / "confusion.png"
    if not table.exists() or (picture.exists() and picture.stat().st_mtime >= table.stat().st_mtime):
        return
    (_, *classes), *rows = csv.reader(io.StringIO(table.read_text()))
    drawing.save(drawing.confusion(np.array([row[1:] for row in rows], dtype=int), classes), picture)


def draw_checkpoint(checkpoint: Path, cfg: RunConfig, out: Path) -> None:
    """Pictures of a checkpoint's model, all or none."""
    from vitscale.figures.model import draw_model  # torch takes its time, and is rarely needed
    from vitscale.pretrained import load_pretrained
    from vitscale.weights.files import whole

    images = some_images(cfg.data.val.manifest, NUM_IMAGES) if cfg.data.val else []
    with whole(out) as partial:
        list(draw_model(load_pretrained(checkpoint), images, partial))


def some_images(manifest: str, count: int) -> list[Image.Image]:
    """So many images of a manifest, or all, evenly spread over it."""
    shards = Shards(read_manifest(manifest))
    numbers = np.linspace(0, len(shards) - 1, min(count, len(shards))).round().astype(int)
    return [Image.open(io.BytesIO(shards.read(int(number)).image)) for number in numbers]


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))
