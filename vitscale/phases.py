"""What a process is doing: every moment since the run began belongs to one phase."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from vitscale.state import TrainState

Phase = Literal["start", "data", "train", "eval", "checkpoint"]
# As goodput is reported; `restart` is also what a kill threw away, and the time until the next start.
GOODPUT = {"restart": "start", "data": "data", "productive": "train", "eval": "eval", "checkpoint": "checkpoint"}


class Phases:
    """The phase of the main thread, the step it is at, and how long each phase took."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, age_s: float = 0.0) -> None:
        """`age_s`: how long the process has been there."""
        self._clock = clock
        self.name: Phase = "start"
        self.step, self.step_s = 0, 0.0  # and how long the one before took
        self.since = self._began = clock() - age_s  # `since`: last sign of progress
        self._spent: dict[str, float] = dict.fromkeys(get_args(Phase), 0.0)
        launched = float(os.environ.get("VITSCALE_LAUNCHED") or 0)
        launching_s = {"launcher": time.time() - age_s - launched} if launched else {}
        self.start_s = {**launching_s, "imports": age_s}  # by part of the start, in their order
        self._part_since = clock()

    def part(self, name: str) -> None:
        """The next part of the start is over."""
        now = self._clock()
        self.start_s[name], self._part_since = now - self._part_since, now

    def enter(self, name: Phase) -> None:
        now = self._clock()
        self._spent[self.name] += now - self.since
        self.name, self.since = name, now

    @contextmanager
    def during(self, name: Phase) -> Iterator[None]:
        before = self.name
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> dict[str, float]:
        """Time spent in each phase until now."""
        self.enter(self.name)
        return dict(self._spent)

    def goodput(self) -> dict[str, float]:
        """`goodput/...`: share of each phase in the time since the run began."""
        spent = self.seconds()
        return {f"goodput/{name}": spent[phase] / max(self.since - self._began, 1e-9) for name, phase in GOODPUT.items()}

    def take_up(self, state: TrainState) -> None:
        """Count on from where the state stood; what it does not account for since the run began is `start`."""
        self.step = state.step
        if not state.began:
            state.began = time.time() - (self._clock() - self._began)
            return
        wall = max(time.time() - state.began, sum(state.seconds.values()))
        self._spent |= state.seconds
        self.enter(self.name)
        self._spent["start"] += wall - sum(self._spent.values())
        self._began = self.since - wall


def process_age_s() -> float:
    """Seconds since this process was started, its imports included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # proc(5): field 22 of 52
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
