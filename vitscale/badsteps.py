"""`bad_steps/step_XXXXXXXX.json`: steps whose loss or gradient was not finite, and the images of each rank. Never applied."""

import json
from collections import deque
from pathlib import Path
from typing import NamedTuple

from data_pipeline.loader import Batch
from data_pipeline.stream import Shards
from vitscale.errors import DivergedError
from vitscale.progress import say
from vitscale.rundir import LATER, replace_text
from vitscale.state import TrainState
from vitscale.world import World

WINDOW = 1000


class BadStep(NamedTuple):
    """Numbers that are not all finite."""

    step: int
    loss: float  # of the global batch
    grad_norm: float
    rank_loss: float  # of this rank's share


class BadSteps:
    """Reports them, and stops a run that has too many. Call on every rank."""

    def __init__(self, folder: Path, limit: int, shards: Shards, world: World) -> None:
        self._folder, self._limit, self._shards, self._world = folder, limit, shards, world
        self._seen = deque[tuple[int, Batch]](maxlen=2)  # numbers reach the host one step late
        self._unwritten: list[tuple[str, str]] = []  # reports that found no room

    def note(self, step: int, batch: Batch) -> None:
        """What this rank saw in the step that ended as number `step`."""
        self._seen.append((step, batch))

    def settle(self, found: list[BadStep], state: TrainState) -> None:
        """Write a report for each; DivergedError when there were too many of late."""
        for bad in found:
            with self._world.alone():
                samples = self._keys(dict(self._seen)[bad.step])
            ranks = self._world.gather({"rank": self._world.rank, "loss": str(bad.rank_loss), "samples": samples})
            numbers = {"step": bad.step, "loss": str(bad.loss), "grad_norm": str(bad.grad_norm), "ranks": ranks}
            with self._world.alone():
                if self._world.is_main:
                    self._unwritten.append((f"step_{bad.step:08d}.json", json.dumps(numbers, indent=1) + "\n"))
                    self._write(warn=True)
                    self._check(bad.step, state)
        self._write(warn=False)

    def _keys(self, batch: Batch) -> list[str]:
        """The keys of a rank's images in the order of its slots, as `data_ledger.jsonl` names them where they were replaced."""
        keys, instead = self._shards.keys(batch.slots.samples), {skip.key: skip.replaced_by for skip in batch.skips}
        return [instead.get(keys[sample], keys[sample]) for sample in batch.slots.samples.tolist()]

    def _write(self, warn: bool) -> None:
        try:
            while self._unwritten:
                name, report = self._unwritten[0]
                replace_text(self._folder / name, report)
                del self._unwritten[0]
        except OSError as error:
            say(f"warning: {self._folder}: {error.strerror}; {LATER}", warn)

    def _check(self, last: int, state: TrainState) -> None:
        recent = [step for step in state.bad_steps if last - WINDOW < step <= last]
        if len(recent) >= self._limit:
            raise DivergedError(
                f"train.max_bad_steps: {len(recent)} of the last {WINDOW:,} steps had a loss or gradient that was not finite; "
                f"{self._folder} names their images, the last is step {recent[-1]:,}. Look at those; or lower optim.lr, "
                "lengthen the warm-up or clip more, under another name=...; or raise train.max_bad_steps and go on"
            )
