"""The model card of a published checkpoint: what it is, from what it was made, what was measured, how to load it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from vitscale import recipe
from vitscale.config import RunConfig
from vitscale.errors import UserError
from vitscale.history import read_log
from vitscale.modelinfo import read_model_info
from vitscale.retention import complete, read_state, scores_of

SHOWN_CLASSES = 20
TEMPLATE = Path(__file__).with_suffix(".md")


def card(checkpoint: Path, name: str, licence: str | None) -> str:
    """Markdown; the same checkpoint gives the same text."""
    info, cfg, state = read_model_info(checkpoint), _recipe(checkpoint), read_state(checkpoint)
    licence = licence or (cfg.publish.licence if cfg and cfg.publish else None)
    more = f" and {len(info.classes) - SHOWN_CLASSES:,} more" if len(info.classes) > SHOWN_CLASSES else ""
    rows = {
        "Model": f"{info.model.name}, {info.model.image_size} px, {info.model.num_classes:,} outputs; all sizes in model.json",
        "Classes": ", ".join(info.classes[:SHOWN_CLASSES]) + more or "without names",
        "Preprocessing": f"short side resized ({info.interpolation}), centre crop {info.eval_crop:g}, "
        f"RGB in [0, 1] less {info.mean}, divided by {info.std}",
        **(_made(cfg, state) if cfg else {}),
        "Accuracy": ", ".join(f"{key} {value:.4f}" for key, value in measured(checkpoint).items()) or "measured: not yet",
        "Speed": _speed(checkpoint, state.get("step", 0)),
        "Licence": licence or "not stated",
    }
    cells = {key: " ".join(value.replace("|", "\\|").split()) for key, value in rows.items()}
    table = "".join(f"| {key} | {value} |\n" for key, value in cells.items())
    return TEMPLATE.read_text().format(name=name, table=table)


def measured(checkpoint: Path) -> dict[str, float]:
    """Its scores; those of an evaluation that was made up for stand in the checkpoints after it only."""
    name = f"step_{read_state(checkpoint).get('step', 0):08d}"
    newest = max(complete(checkpoint.parent), default=checkpoint)
    return scores_of(newest).get(name, {}) or scores_of(checkpoint).get(name, {})


def _recipe(checkpoint: Path) -> RunConfig | None:
    path = checkpoint / "recipe.yaml"
    with suppress(UserError):  # of another version of vitscale; it is published all the same
        return recipe.load(path) if path.exists() else None
    return None


def _made(cfg: RunConfig, state: dict[str, Any]) -> dict[str, str]:
    data = ", ".join(source.manifest for source in cfg.data.train)
    held_out = f"; held out: {cfg.data.val.manifest}" if cfg.data.val else ""
    start = f"from {cfg.init.source}" if cfg.init else "from random weights"
    schedule = f"{cfg.optim.name}, peak learning rate {cfg.optim.lr:g} ({cfg.optim.schedule.name})"
    return {
        "Data": f"{data}{held_out}; SHA-256 of what is in the training shards {state.get('data', '')[:12]}",
        "Recipe": f"recipe.yaml: run {cfg.name}, {cfg.train.loss} loss, {schedule}, batch {cfg.train.global_batch:,}, {start}",
        "Trained": f"step {state.get('step', 0):,}, {state.get('samples', 0):,} images seen",
    }


def _speed(checkpoint: Path, step: int) -> str:
    """The last one measured up to this step, by the log of a checkpoint that lies in its run directory."""
    lines = [line for line in read_log(checkpoint.absolute().parent.parent / "metrics.jsonl") if line["step"] <= step]
    speeds = [line["metrics"]["speed/images_per_s"] for line in lines if "speed/images_per_s" in line["metrics"]]
    return f"{speeds[-1]:,.0f} images/s in training" if speeds else "measured: not yet"
