"""`data_ledger.jsonl`: which images could not be used, by step, for all ranks."""

import json
from pathlib import Path

from data_pipeline.bad_samples import Skip, check_fraction
from data_pipeline.config import BadSamplesConfig
from vitscale.history import read_log
from vitscale.rundir import append, replace_text
from vitscale.state import TrainState
from vitscale.world import World


class Ledger:
    """Collects what the ranks skipped. A run that goes on at a step forgets what was noted after it. Call on every rank."""

    def __init__(self, path: Path, config: BadSamplesConfig, world: World, step: int) -> None:
        self.path, self.config, self.world = path, config, world
        self._pending, self._unwritten = list[dict](), b""
        if world.is_main and path.exists():
            kept = [line for line in read_log(path) if line["step"] <= step]
            replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def note(self, step: int, skips: tuple[Skip, ...]) -> None:
        """What this rank skipped in the step that ended as number `step`."""
        self._pending += [{"step": step, **skip._asdict()} for skip in skips]

    def settle(self, state: TrainState) -> None:
        """Write what all ranks noted, count it, and stop the run when it is too much. Call on every rank."""
        lines = sorted((line for lines in self.world.gather(self._pending) for line in lines), key=lambda line: line["step"])
        self._pending = []
        state.skipped += len(lines)
        with self.world.alone():
            if self.world.is_main and (self._unwritten or lines):
                self._unwritten += "".join(json.dumps(line) + "\n" for line in lines).encode()
                self._unwritten = append(self.path, self._unwritten)
                check_fraction(self.config, state.skipped, state.samples)
