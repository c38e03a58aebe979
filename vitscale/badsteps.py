"""`bad_steps.jsonl`: steps whose loss or gradient was not finite, and the images of each rank. Never applied."""

from collections import deque
from pathlib import Path
from typing import NamedTuple

from data_pipeline.loader import Batch
from data_pipeline.stream import Shards
from vitscale.errors import DivergedError
from vitscale.history import Log
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

    def __init__(self, path: Path, limit: int, shards: Shards, world: World, step: int) -> None:
        self._path, self._limit, self._shards, self._world = path, limit, shards, world
        self._seen = deque[tuple[int, Batch]](maxlen=2)  # numbers reach the host one step late
        self._log = Log(path) if world.is_main else None
        if self._log:
            self._log.forget_after(step)

    def note(self, step: int, batch: Batch) -> None:
        """What this rank saw in the step that ended as number `step`."""
        self._seen.append((step, batch))

    def settle(self, found: list[BadStep], state: TrainState) -> None:
        """Note each, and what has found no room so far; DivergedError when there were too many of late."""
        for bad in found:
            with self._world.alone():
                samples = self._keys(dict(self._seen)[bad.step])
            ranks = self._world.gather({"rank": self._world.rank, "loss": str(bad.rank_loss), "samples": samples})
            numbers = {"step": bad.step, "loss": str(bad.loss), "grad_norm": str(bad.grad_norm), "ranks": ranks}
            with self._world.alone():
                if self._log:
                    self._log.add(numbers)
                    self._check(bad.step, state)
        if self._log:
            self._log.add()

    def _keys(self, batch: Batch) -> list[str]:
        """The keys of a rank's images in the order of its slots, as `data_ledger.jsonl` names them where they were replaced."""
        keys, instead = self._shards.keys(batch.slots.samples), {skip.key: skip.replaced_by for skip in batch.skips}
        return [instead.get(keys[sample], keys[sample]) for sample in batch.slots.samples.tolist()]

    def _check(self, last: int, state: TrainState) -> None:
        recent = [step for step in state.bad_steps if last - WINDOW < step <= last]
        if len(recent) >= self._limit:
            raise DivergedError(
                f"train.max_bad_steps: {len(recent)} of the last {WINDOW:,} steps had a loss or gradient that was not finite; "
                f"{self._path} names their images, the last is step {recent[-1]:,}. Look at those; or lower optim.lr, "
                "lengthen the warm-up or clip more, under another name=...; or raise train.max_bad_steps and go on"
            )
