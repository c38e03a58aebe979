"""Step -> learning rate: pure functions. `step` = global batches consumed before this update, so the first is 0."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Spans(NamedTuple):
    """A schedule's durations in steps."""

    total: int
    warmup: int = 0
    cooldown: int = 0
    timescale: int = 10_000


def cosine(step: int, spans: Spans) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress(step, spans)))


def linear(step: int, spans: Spans) -> float:
    return 1 - progress(step, spans)


def rsqrt(step: int, spans: Spans) -> float:
    """Zhai et al. 2022 (Scaling Vision Transformers), as in big_vision: it knows no end, so a run can be prolonged."""
    return (1 + (step - spans.warmup) / spans.timescale) ** -0.5


def constant(step: int, spans: Spans) -> float:  # noqa: ARG001 - the schedules share one signature
    return 1.0


Schedule = Callable[[int, Spans], float]
SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear, "rsqrt": rsqrt, "constant": constant}


def progress(step: int, spans: Spans) -> float:
    """0 at the end of the warm-up, 1 at the end of the run."""
    return min((step - spans.warmup) / max(spans.total - spans.warmup, 1), 1.0)


def learning_rate(step: int, peak: float, end: float, name: str, spans: Spans) -> float:
    """Linear warm-up from 0 to `peak`; then the schedule between `peak` and `end`; in the cool-down linearly down to `end`."""
    rise = min(1.0, step / spans.warmup) if spans.warmup else 1.0
    left = min(1.0, max(0.0, (spans.total - step) / spans.cooldown)) if spans.cooldown else 1.0
    return rise * (end + (peak - end) * SCHEDULES[name](max(step, spans.warmup), spans) * left)
