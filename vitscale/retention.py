"""Which checkpoints a run has, which of them is the best, which are kept. Imports no torch."""

import json
import math
import shutil
from contextlib import suppress
from pathlib import Path

from vitscale import fault
from vitscale.config import CheckpointConfig
from vitscale.sums import SUMS


def complete(checkpoints: Path) -> list[Path]:
    """All checkpoints that exist, oldest first."""
    return sorted(path for path in checkpoints.glob("step_" + "[0-9]" * 8) if (path / SUMS).is_file())


def best(checkpoints: Path, metric: str) -> Path | None:
    """The one that did best when it was saved, of equals the newest; None where none was evaluated."""
    scores = {path: score for path in complete(checkpoints) if (score := _score(path, metric)) is not None}
    return max(scores, key=lambda path: (scores[path], path)) if scores else None


def prune(checkpoints: Path, config: CheckpointConfig, keep_every: int) -> None:
    """Drop all but the newest `keep`, the first of each `keep_every` steps (0 = none), and the best."""
    found = complete(checkpoints)
    kept: set[Path | None] = {*found[-config.keep :]}
    if keep_every:
        first = {int(path.name.removeprefix("step_")) // keep_every: path for path in reversed(found)}
        kept |= {path for period, path in first.items() if period > 0}
    if config.best:
        kept.add(best(checkpoints, config.best))
    for path in found:
        if path not in kept:
            # Renamed first: a half-deleted checkpoint must not look like one.
            doomed = path.with_name(f".{path.name}.deleted")
            path.rename(doomed)
            fault.at("save.doomed")
            shutil.rmtree(doomed)


def _score(path: Path, metric: str) -> float | None:
    """The more the better; None where it was not measured."""
    with suppress(OSError, ValueError):  # a damaged one is no reason to stop
        value = json.loads((path / "state.json").read_text()).get("scores", {}).get(metric, math.nan)
        return None if math.isnan(value) else -value if metric.endswith("loss") else value
    return None
