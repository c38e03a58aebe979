"""`bad_steps.jsonl`: steps whose loss or gradient was not finite, and the images of each rank. Never applied."""

import math
from bisect import bisect_right
from pathlib import Path

from data_pipeline.loader import Batch
from data_pipeline.stream import Shards
from vitscale.errors import DivergedError
from vitscale.history import Log
from vitscale.readings import Settled
from vitscale.state import TrainState
from vitscale.world import World

WINDOW = 1000


class BadSteps:
    """Reports them, and stops a run that has too many. Call on every rank."""

    def __init__(self, path: Path, limit: int, shards: Shards, world: World, step: int) -> None:
        self._path, self._limit, self._shards, self._world = path, limit, shards, world
        self._log = Log(path) if world.is_main else None
        if self._log:
            self._log.forget_after(step)

    def note(self, made: Settled, state: TrainState) -> None:
        """Note a step that is bad, and what has found no room so far; DivergedError when there were too many of late."""
        if not math.isfinite(made.grad_norm):
            self._note(made, state)
        if self._log:
            self._log.add()

    def _note(self, bad: Settled, state: TrainState) -> None:
        state.bad_steps.append(bad.step)
        with self._world.alone():
            samples = self._keys(bad.batch)
        ranks = self._world.gather({"rank": self._world.rank, "loss": bad.loss, "samples": samples})
        loss = sum(rank["loss"] for rank in ranks) / len(ranks)
        told = [{**rank, "loss": str(rank["loss"])} for rank in ranks]
        with self._world.alone():
            if self._log:
                self._log.add({"step": bad.step, "loss": str(loss), "grad_norm": str(bad.grad_norm), "ranks": told})
                self._check(bad.step, state)

    def _keys(self, batch: Batch) -> list[str]:
        """The keys of a rank's images in the order of its slots, as `data_ledger.jsonl` names them where they were replaced."""
        keys, instead = self._shards.keys(batch.slots.samples), {skip.key: skip.replaced_by for skip in batch.skips}
        return [instead.get(keys[sample], keys[sample]) for sample in batch.slots.samples.tolist()]

    def _check(self, last: int, state: TrainState) -> None:
        recent = state.bad_steps[bisect_right(state.bad_steps, last - WINDOW) :]
        if len(recent) >= self._limit:
            raise DivergedError(
                f"train.max_bad_steps: {len(recent)} of the last {WINDOW:,} steps had a loss or gradient that was not finite; "
                f"{self._path} names their images, the last is step {recent[-1]:,}. Look at those; or lower optim.lr, "
                "lengthen the warm-up or clip more, under another name=...; or raise train.max_bad_steps and go on"
            )
