"""Step -> learning rate: pure functions. `step` = global batches consumed before this update, so the first is 0."""

import math
from collections.abc import Callable

from vitscale.config import ScheduleConfig


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    return 1 - progress


def constant(progress: float) -> float:  # noqa: ARG001 - the schedules share one signature
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "linear": linear, "constant": constant}


def learning_rate(step: int, peak: float, schedule: ScheduleConfig, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up from 0 to `peak`, then from `peak` to `end_lr`; progress counts from the end of the warm-up."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return schedule.end_lr + (peak - schedule.end_lr) * SCHEDULES[schedule.name](progress)
