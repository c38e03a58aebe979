"""`runs/<name>/`: the directory of a run, its one owner, and what it promises to continue."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from data_pipeline.storage import replace
from vitscale import failure, recipe
from vitscale.config import RunConfig
from vitscale.errors import RecipeError
from vitscale.phases import process_age_s

# Sections that decide the result; the others may change between two starts of a run.
SCIENCE = ("seed", "model", "init", "data", "train", "optim")
ENDLESS = ("rsqrt", "constant")  # schedules that do not depend on the length of the run until their cool-down
ENDING = ("error", "final", "reason")  # what a status says of an end
OWNER_EVERY_S = 10.0


class RunDir:
    """Paths of a run directory, and its status."""

    def __init__(self, cfg: RunConfig) -> None:
        self.path = Path(cfg.runs).expanduser().absolute() / cfg.name
        self.checkpoints = self.path / "checkpoints"
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.ledger = self.path / "data_ledger.jsonl"
        self.model_info = self.path / "model.json"
        self.attempts = self.path / "attempts.jsonl"
        self.artifacts = self.path / "artifacts"
        self.mlflow_run_id = self.path / "mlflow_run_id"
        self.mlflow_sent = self.path / ".mlflow_sent"
        self.init = self.path / "init"
        self.transfer = self.path / "transfer.txt"
        self.bad_steps = self.path / "bad_steps.jsonl"
        self.hang = self.path / "hang"
        self.stop = self.path / "stop"
        self._owner: IO[str] | None = None
        self._released, self._writing = threading.Event(), threading.Lock()

    def claim(self) -> None:
        """Become the owner, or fail: two trainings must never write here. Call on rank 0 only."""
        self._owner = self._open()
        self._thread = threading.Thread(target=self._stay_owner, args=(time.time(),), name="owner", daemon=True)
        self._sign(time.time())
        self._thread.start()
        (self.path / failure.NAME).unlink(missing_ok=True)  # of the owner before
        launched = float(os.environ.get("VITSCALE_LAUNCHED") or time.time() - process_age_s())
        with contextlib.suppress(FileNotFoundError):
            if self.stop.stat().st_mtime < launched:  # meant for the owner before, not for us
                self.stop.unlink()

    @property
    def owned(self) -> bool:
        """By this process."""
        return self._owner is not None and not self._released.is_set()

    def _stay_owner(self, since: float) -> None:
        """The thread: signs of life, until the end, for machines that do not see the lock."""
        while not self._released.wait(OWNER_EVERY_S / 4):
            with contextlib.suppress(OSError):  # of a full disk, say: another sign follows
                self._sign(since)

    def _sign(self, since: float) -> None:
        assert self._owner
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "seen": time.time()}
        self._owner.seek(0)
        self._owner.write(json.dumps({**owner, "every_s": OWNER_EVERY_S}) + "\n")
        self._owner.truncate()
        self._owner.flush()

    def release(self) -> None:
        """In good order, so that no other machine waits for signs of life."""
        assert self._owner
        self._released.set()
        self._thread.join()
        with self._owner as owner:
            owner.truncate(0)

    def check_free(self) -> None:
        """Nobody owns it now; where it does not exist, it can be made."""
        if os.access(self.path, os.F_OK):
            self._open().close()
            return
        parent = next(path for path in self.path.parents if os.access(path, os.F_OK))
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise RecipeError(f"{self.path}: cannot be made, {parent} is no folder to write to; choose another with runs=...")

    def _open(self) -> IO[str]:
        """The file `owner`, locked."""
        path = self.path / "owner"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            path.touch()
            owner = path.open("r+")
        except OSError as error:
            raise RecipeError(
                f"{self.path}: cannot be written to ({error.strerror}); mend that, or choose another folder with runs=..."
            ) from None
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it however this process ends
            self._outlast(path)
        except BlockingIOError:
            owner.close()
            raise RecipeError(
                f"{self.path}: in use by {_name(_read_owner(path))}; wait for it, stop it, or choose another name=..."
            ) from None
        return owner

    def _outlast(self, path: Path) -> None:
        """BlockingIOError while an owner on another machine, where the lock may not be seen, gives signs of life."""
        owner = _read_owner(path)
        if owner.get("host", socket.gethostname()) == socket.gethostname():
            return
        patience, begin = 3 * owner["every_s"], time.monotonic()
        while time.time() - owner["seen"] < patience and time.monotonic() - begin < patience:  # clocks may differ
            time.sleep(owner["every_s"] / 4)
            if _read_owner(path) != owner:
                raise BlockingIOError
        print(f"warning: {self.path}: taken over from {_name(owner)}, which gives no sign of life", file=sys.stderr, flush=True)

    def check(self, cfg: RunConfig) -> None:
        """What is here was started with the same science."""
        if not self.recipe.exists():
            return
        before, now = (_science(config) for config in (recipe.load(self.recipe), cfg))
        differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed := [f"{key} was {before.get(key)}, is {now.get(key)}" for key in differing]:
            raise RecipeError(
                f"{self.path}: was started with another recipe: {'; '.join(changed)}. To continue that run give it its own "
                f"{self.recipe}; for a new one choose another name=... or remove the directory"
            )

    @property
    def newest_step(self) -> int:
        """Of the checkpoints, sound or not; 0 where there is none."""
        return max((int(path.name.removeprefix("step_")) for path in self.checkpoints.glob("step_" + "[0-9]" * 8)), default=0)

    @property
    def status(self) -> dict[str, Any]:
        """`status.json`, or {} before the first."""
        path = self.path / "status.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):  # never written, or damaged: it is written anew
            return {}

    def write_status(self, state: str = "", **values: Any) -> None:
        """`state` is starting, running, stopped, finished or failed, "" as before; one that is killed stays running."""
        with self._writing:  # threads save, and watch
            status = self.status
            before = status.get("state")
            if state in ("starting", "running") and before not in (None, "starting"):  # how the start before ended
                ends = {"running": "killed", "failed": status.get("error")}
                values["ended"] = ends.get(before, before)
            if state:
                status = {key: value for key, value in status.items() if key not in ENDING} | {"state": state}
            replace_text(self.path / "status.json", json.dumps(status | values, indent=1) + "\n")


def _read_owner(path: Path) -> dict[str, Any]:
    """What the owner says of itself; {} where nobody does."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return {}


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    since, seen = (datetime.fromtimestamp(owner[key]).astimezone().isoformat(" ", "seconds") for key in ("since", "seen"))
    return f"process {owner['pid']} on {owner['host']} since {since} (last seen {seen})"


def _science(cfg: RunConfig) -> dict[str, Any]:
    """What decides the result. Where shards lie does not (checkpoints hold the digest of what is in them), nor limits."""
    train = {"max_bad_steps"}
    if cfg.optim.schedule.name in ENDLESS:  # vitscale/preflight.py looks whether the cool-down allows it
        train.add("total")
    other: dict[str, Any] = {"train": train, "data": {"train": True, "val": True, "bad_samples": {"max_fraction", "max_run"}}}
    values = recipe.flatten(cfg.model_dump(include=set(SCIENCE), exclude=other, by_alias=True))
    data = {"data.train (weights)": [source.weight for source in cfg.data.train], "data.val (given)": cfg.data.val is not None}
    return {**values, **data}


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part, also after a power cut."""
    replace(path, text.encode())
