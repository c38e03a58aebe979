"""Which checkpoints a run has, which of them is the best, which are kept. Imports no torch."""

import json
import math
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitscale import fault
from vitscale.config import CheckpointConfig
from vitscale.state import Scores
from vitscale.sums import SUMS


def complete(checkpoints: Path) -> list[Path]:
    """All checkpoints that exist, oldest first."""
    return sorted(path for path in checkpoints.glob("step_" + "[0-9]" * 8) if (path / SUMS).is_file())


def prune(checkpoints: Path, config: CheckpointConfig, keep_every: int, scores: Scores) -> None:
    """Drop all but the newest `keep`, the first of each `keep_every` steps (0 = none), and the best by `scores`."""
    found = complete(checkpoints)
    kept = set(found[-config.keep :])
    if keep_every:
        first = {int(path.name.removeprefix("step_")) // keep_every: path for path in reversed(found)}
        kept |= {path for period, path in first.items() if period > 0}
    if config.best and (winner := best(found, scores, config.best)):
        kept.add(winner)
    for path in sorted(set(found) - kept):
        # Renamed first: a half-deleted checkpoint must not look like one.
        doomed = path.with_name(f".{path.name}.deleted")
        path.rename(doomed)
        fault.at("save.doomed")
        shutil.rmtree(doomed)


def best(found: list[Path], scores: Scores, metric: str) -> Path | None:
    """Of checkpoints in order, the one that scored best, of equals the later; None where none was measured."""
    sign, unknown = -1 if metric.endswith("loss") else 1, {metric: math.nan}
    values = {path: sign * scores.get(path.name, unknown).get(metric, math.nan) for path in reversed(found)}
    known = {path: value for path, value in values.items() if not math.isnan(value)}
    return max(known, key=lambda path: known[path], default=None)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Its state.json; {} where that is damaged, and of a model that was not trained here."""
    with suppress(OSError, ValueError):
        return json.loads((checkpoint / "state.json").read_text())
    return {}


def scores_of(checkpoint: Path) -> Scores:
    """All that was measured when it was saved, of itself and of those before it."""
    return read_state(checkpoint).get("scores", {})
