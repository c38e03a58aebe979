"""`runs/<name>/`: the directory of a run, its one owner, and what it promises to continue."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from data_pipeline.storage import replace
from vitscale import recipe
from vitscale.config import RunConfig
from vitscale.errors import RecipeError

# Sections that decide the result; the others may change between two starts of a run.
SCIENCE = ("seed", "model", "init", "data", "train", "optim")


class RunDir:
    """Paths of a run directory, and its status."""

    def __init__(self, cfg: RunConfig) -> None:
        self.path = Path(cfg.runs).expanduser().absolute() / cfg.name
        self.checkpoints = self.path / "checkpoints"
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.ledger = self.path / "data_ledger.jsonl"
        self.model_info = self.path / "model.json"
        self.mlflow_run_id = self.path / "mlflow_run_id"
        self.init = self.path / "init"
        self.transfer = self.path / "transfer.txt"
        self._owner: IO[str] | None = None

    def claim(self) -> None:
        """Become the owner, or fail: two trainings must never write here. Call on rank 0 only."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._owner = (self.path / "owner").open("a+")
        self._lock(self._owner)
        self._owner.truncate(0)
        self._owner.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._owner.flush()

    def check_free(self) -> None:
        """Nobody owns it now."""
        if (self.path / "owner").exists():
            with (self.path / "owner").open("a+") as owner:
                self._lock(owner)

    def _lock(self, owner: IO[str]) -> None:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it however this process ends
        except BlockingIOError:
            with owner:
                owner.seek(0)
                name = owner.read().strip() or "another process"
            raise RecipeError(f"{self.path}: in use by {name}; wait for it, stop it, or choose another name=...") from None

    def check(self, cfg: RunConfig) -> None:
        """What is here was started with the same science."""
        if not self.recipe.exists():
            return
        before, now = (_science(config) for config in (recipe.load(self.recipe), cfg))
        if changed := _differences(before, now):
            raise RecipeError(
                f"{self.path}: was started with another recipe: {'; '.join(changed)}. To continue that run give it its own "
                f"{self.recipe}; for a new one choose another name=... or remove the directory"
            )

    @property
    def status(self) -> dict[str, Any]:
        """`status.json`, or {} before the first."""
        path = self.path / "status.json"
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, ValueError):  # never written, or damaged: it is written anew
            return {}

    def write_status(self, state: str, **values: Any) -> None:
        """`state` is starting, running, stopped or finished; one that dies stays running."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.path / "status.json", json.dumps({**self.status, "state": state, **values}, indent=1) + "\n")


def _science(cfg: RunConfig) -> dict:
    """What decides the result. Where shards lie does not (checkpoints hold the digest of what is in them), nor limits."""
    values = cfg.model_dump(include=set(SCIENCE), by_alias=True)
    for source in _sources(values["data"]):
        source.pop("manifest", None)
        source.pop("samples", None)
    for limit in ("max_fraction", "max_run"):
        values["data"]["bad_samples"].pop(limit)
    return values


def _sources(data: dict) -> list[dict]:
    train = data["train"] if isinstance(data["train"], list) else [data["train"]]
    return [*train, data["val"] or {}]


def _differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """`train.global_batch was 64, is 128` for every leaf that differs."""
    changed = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(f"{prefix}{key} was {old}, is {new}")
    return changed


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part, also after a power cut."""
    replace(path, text.encode())
