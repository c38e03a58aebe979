"""What a person sees while a run goes on: a bar on a terminal, a line every few seconds in a log."""

import contextlib
import math
import sys
import time
from datetime import timedelta
from typing import Self

LINE_EVERY_S = 5.0


def say(text: str, show: bool = True) -> None:
    """One line, at once; `show` is false on all ranks but the first."""
    if show:
        with contextlib.suppress(OSError):  # a log that finds no room is no reason to end
            print(text, flush=True)


class TrainProgress:
    """The course of a run from `start` to `total` steps. With `show` false it does nothing."""

    def __init__(self, name: str, start: int, total: int, show: bool) -> None:
        from rich.console import Console  # every command imports this file, for `say`
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._name, self._total, self._show, self._last = name, total, show, 0.0
        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        self._bar = Progress(*columns, console=Console(file=sys.stdout), disable=not (show and sys.stdout.isatty()))
        self._task = self._bar.add_task(name, total=total, completed=start, text="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def is_due(self, step: int) -> bool:
        """A line each few seconds and at the end, a bar at each step."""
        return not self._bar.disable or (self._show and (time.monotonic() - self._last > LINE_EVERY_S or step == self._total))

    def update(self, step: int, loss: float, images_per_s: float, seconds_left: float) -> None:
        known = "" if math.isnan(loss) else f"loss {loss:.3f}  "  # it comes one step late
        text = f"{known}{images_per_s:,.0f} images/s  {timedelta(seconds=round(seconds_left))} left"
        if not self._bar.disable:
            self._bar.update(self._task, completed=step, text=text)
        else:
            self._last = time.monotonic()
            say(f"{self._name}  step {step}/{self._total}  {text}")
