"""Time and memory of a device, fairly: entries take turns, and each is freed before the next needs its room."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

Row = dict[str, Any]
GIB = 2**30


@dataclass
class Setting:
    """Where and for how long a part measures."""

    device: torch.device
    tiny: bool
    seconds: float  # for the whole part
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    @property
    def dtype(self) -> torch.dtype:
        """What is trained in: bf16, and fp32 on CPUs, which are slow in bf16."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give back what nothing refers to any more, and count the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def allocated(device: torch.device, peak: bool = False) -> int:
    """Bytes; 0 on CPUs, which do not count them."""
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)


def fits(action: Callable[[], object], device: torch.device) -> bool:
    """Whether there is memory enough for it. The error, whose frames hold the tensors, is gone before they are freed."""
    try:
        action()
        wait(device)
    except torch.OutOfMemoryError:
        enough = False
    else:
        return True
    free(device)
    return enough


def seconds_of(action: Callable[[], object], device: torch.device, times: int) -> list[float]:
    """Of each of so many calls: by events on the device, so that the host may run ahead as it does in training."""
    if device.type != "cuda":
        return [_host_seconds(action) for _ in range(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    events[0].record()
    for event in events[1:]:
        action()
        event.record()
    torch.cuda.synchronize(device)
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]


def _host_seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def taking_turns(
    actions: dict[str, Callable[[], object]], device: torch.device, seconds: float, most: int = 10, times: int = 4
) -> dict[str, list[float]]:
    """Seconds of every action, in rounds until time is up, one at least; after each change of turn one call is not counted."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    begin = time.monotonic()
    for number in range(most):
        spent = time.monotonic() - begin
        if number and spent * (number + 1) / number > seconds:
            break
        for name, action in actions.items():
            action()
            found[name] += seconds_of(action, device, times)
    return found


def median(values: list[float]) -> float:
    return statistics.median(values)
