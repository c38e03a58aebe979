"""`data_ledger.jsonl`: which images could not be used, by step, for all ranks."""

from pathlib import Path

from data_pipeline.bad_samples import check_fraction
from data_pipeline.config import BadSamplesConfig
from vitscale.history import Log
from vitscale.readings import Settled
from vitscale.state import TrainState
from vitscale.world import World


class Ledger:
    """Collects what the ranks skipped. A run that goes on at a step forgets what was noted after it. Call on every rank."""

    def __init__(self, path: Path, config: BadSamplesConfig, world: World, step: int) -> None:
        self._config, self._world, self._pending = config, world, list[dict]()
        self._log = Log(path) if world.is_main else None
        if self._log:
            self._log.forget_after(step)

    def note(self, made: Settled) -> None:
        """What this rank skipped in a step."""
        self._pending += [{"step": made.step, **skip._asdict()} for skip in made.batch.skips]

    def settle(self, state: TrainState) -> None:
        """Write what all ranks noted, count it, and stop the run when it is too much. Call on every rank."""
        lines = sorted((line for lines in self._world.gather(self._pending) for line in lines), key=lambda line: line["step"])
        self._pending = []
        state.skipped += len(lines)
        with self._world.alone():
            if self._log:
                self._log.add(*lines)
                check_fraction(self._config, state.skipped, state.samples)
