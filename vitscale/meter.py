"""How fast a run goes: pure arithmetic on the times of its phases."""

import resource
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch.utils.benchmark import Timer

from vitscale.config import HardwareConfig, RunConfig
from vitscale.devices import DEVICES
from vitscale.model.flops import train_flops
from vitscale.optim import DTYPES
from vitscale.phases import Phases
from vitscale.world import World

Item = TypeVar("Item")

QUANTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}


class Meter:
    """Images per second, waiting for data, step times, MFU and time left. Evaluating and saving are not training time."""

    def __init__(self, global_batch: int, flops_per_image: int, peaks: dict[str, float], phases: Phases) -> None:
        """`peaks`: by metric, FLOP/s of all devices together that 1 stands for."""
        self._batch, self._flops, self._peaks, self._phases = global_batch, flops_per_image, peaks, phases
        self._begin = self._last_step = self._training_s()
        self._num_steps, self._step_times = 0, list[float]()
        self._waited_s = phases.seconds()["data"]  # until the last report

    @classmethod
    def of(cls, cfg: RunConfig, world: World) -> "Meter":
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        stated = peak_flops(name, cfg.hardware, world.size)
        measured = measure_flops(world.device, DTYPES[cfg.hardware.precision]) * world.size
        peaks = {"speed/mfu_measured": measured, **({"speed/mfu": stated} if stated else {})}
        return cls(cfg.train.global_batch, train_flops(cfg.model), peaks, world.phases)

    def _training_s(self) -> float:
        spent = self._phases.seconds()
        return spent["train"] + spent["data"]

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each arrives counts as waiting for data, that for the first as starting."""
        for item in items:
            self._phases.enter("train")
            yield item
            self._phases.enter("data")

    def step(self) -> None:
        now = self._training_s()
        self._phases.step_s = now - self._last_step
        self._step_times.append(self._phases.step_s)
        self._last_step = now
        self._num_steps += 1
        self._phases.step += 1

    def images_per_s(self) -> float:
        """Since the start of the process."""
        return self._num_steps * self._batch / max(self._training_s() - self._begin, 1e-9)

    def seconds_left(self, steps_left: int) -> float:
        return steps_left * self._batch / max(self.images_per_s(), 1e-9)

    def report(self, steps_left: int) -> dict[str, float]:
        """Metrics of the steps since the last report, which this ends; goodput since the run began."""
        seconds, waited_s = max(sum(self._step_times), 1e-9), self._phases.seconds()["data"]
        rate = len(self._step_times) * self._batch / seconds
        times = np.percentile(self._step_times or [0.0], list(QUANTILES.values())).tolist()
        metrics = {
            "speed/images_per_s": rate,
            "speed/data_wait": (waited_s - self._waited_s) / seconds,
            "speed/left_s": self.seconds_left(steps_left),
            **{f"speed/step_s_{name}": value for name, value in zip(QUANTILES, times, strict=True)},
            **{name: rate * self._flops / peak for name, peak in self._peaks.items()},
            **self._phases.goodput(),
        }
        self._step_times, self._waited_s = [], waited_s
        return metrics


def peak_flops(device_name: str, hardware: HardwareConfig, devices: int) -> float | None:
    """FLOP/s of all devices together: as stated in the recipe, else from the table, else None."""
    known = (device.tflops[hardware.precision] for name, device in DEVICES.items() if name.upper() in device_name)
    per_device = hardware.peak_tflops or next(known, None)
    return per_device * 1e12 * devices if per_device else None


def measure_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of this process in multiplying large square matrices; takes a fraction of a second."""
    side = 8192 if device.type == "cuda" else 512
    matrix = torch.randn(side, side, generator=torch.Generator(device), device=device).to(dtype)
    timer = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=torch.get_num_threads())
    return 2 * side**3 / min(timer.blocked_autorange(min_run_time=0.1).times)


def peak_memory_gib() -> float:
    """The most that this process has held at a time, of its GPU where it uses one."""
    if most := torch.cuda.max_memory_allocated():
        return most / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
