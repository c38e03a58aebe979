"""How fast a run goes: pure arithmetic on times it is told."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from vitscale.config import RunConfig
from vitscale.model.flops import train_flops

Item = TypeVar("Item")

# Dense bf16 peak in TFLOP/s (NVIDIA's data sheets), by a part of the device's name.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}


class Meter:
    """Images per second, share of time spent waiting for data, MFU and time left."""

    def __init__(self, global_batch: int, flops_per_image: int, peak_flops: float | None, clock: Callable[[], float]) -> None:
        """`peak_flops`: of all devices together, in FLOP/s; None = unknown, and MFU is not reported."""
        self._batch, self._flops, self._peak, self._clock = global_batch, flops_per_image, peak_flops, clock
        self._start = self._begin = clock()
        self._steps = self._all_steps = 0
        self._waited = self._outside = 0.0

    @classmethod
    def of(cls, cfg: RunConfig, device: torch.device, devices: int) -> "Meter":
        """The meter of a run on so many devices of this kind."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_flops(name, cfg.hardware.peak_tflops, devices)
        return cls(cfg.train.global_batch, train_flops(cfg.model), peak, time.monotonic)

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each arrives counts as waiting for data."""
        iterator = iter(items)
        while True:
            before = self._clock()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += self._clock() - before
            yield item

    def step(self) -> None:
        self._steps += 1
        self._all_steps += 1

    def pause(self) -> "Pause":
        """`with meter.pause():` time for evaluation and saving, which is not training time."""
        return Pause(self)

    def images_per_s(self) -> float:
        """Over the whole start, evaluation and saving left out."""
        return self._all_steps * self._batch / max(self._clock() - self._begin - self._outside, 1e-9)

    def seconds_left(self, steps_left: int) -> float:
        return steps_left * self._batch / max(self.images_per_s(), 1e-9)

    def report(self) -> dict[str, float]:
        """Metrics of the steps since the last report, which this ends."""
        seconds = max(self._clock() - self._start, 1e-9)
        rate = self._steps * self._batch / seconds
        metrics = {"speed/images_per_s": rate, "speed/data_wait": self._waited / seconds}
        if self._peak:
            metrics["speed/mfu"] = rate * self._flops / self._peak
        self._start, self._steps, self._waited = self._clock(), 0, 0.0
        return metrics

    def skip(self, seconds: float) -> None:
        """Leave this much time out of the count."""
        self._start += seconds
        self._outside += seconds


class Pause:
    """Time that the meter leaves out."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        self._begin = self._meter._clock()

    def __exit__(self, *_: object) -> None:
        self._meter.skip(self._meter._clock() - self._begin)


def peak_flops(device_name: str, stated_tflops: float | None, devices: int) -> float | None:
    """FLOP/s of all devices together: as stated in the recipe, else from the table, else None."""
    known = (peak for part, peak in PEAK_TFLOPS.items() if part in device_name)
    per_device = stated_tflops or next(known, None)
    return per_device * 1e12 * devices if per_device else None
