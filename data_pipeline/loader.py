"""Batches: samples decoded and cropped by a pool of threads, in planned order, a few steps ahead.

Decoding and resizing release the interpreter lock, so threads do the work of processes without pickling or shared memory.
"""

import operator
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

from data_pipeline.augment import eval_view, train_view
from data_pipeline.config import DataConfig
from data_pipeline.decode import decode
from data_pipeline.draw import Draw, Purpose
from data_pipeline.errors import DataError
from data_pipeline.order import LaneView, Slots
from data_pipeline.stream import Shards

PREFETCH_STEPS = 2


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch. B slots; a slot that only pads the batch has weight 0."""

    images_BHWC: torch.Tensor  # uint8
    labels_B: torch.Tensor  # int64
    flip_B: torch.Tensor  # bool
    mix_B: torch.Tensor  # float32, mixup's weight of the slot's own image
    weight_B: torch.Tensor  # float32, 1 = counts, 0 = padding
    slots: Slots

    def split(self, size: int) -> Iterator["Batch"]:
        """Micro-batches of `size` slots."""
        for start in range(0, len(self.labels_B), size):
            part = slice(start, start + size)
            yield self._each(operator.itemgetter(part), Slots(*(column[part] for column in self.slots)))

    def to(self, device: torch.device) -> "Batch":
        """On the device; copies from pinned memory do not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True), self.slots)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor], slots: Slots) -> "Batch":
        tensors = {field.name: change(getattr(self, field.name)) for field in fields(self) if field.name != "slots"}
        return Batch(**tensors, slots=slots)


class View(NamedTuple):
    """What becomes of one sample."""

    pixels_HWC: np.ndarray
    label: int
    flip: bool


class Loader:
    """Iterable over batches; iterating starts the threads, leaving the iteration stops them."""

    def __init__(
        self, plans: Callable[[], Iterator["Plan"]], view: Callable[[int, int], View], size: int, threads: int, pin: bool
    ) -> None:
        self._plans, self._view, self._size, self._threads, self._pin = plans, view, size, threads, pin

    def __iter__(self) -> Iterator[Batch]:
        # One thread of torch each: the pool is the parallelism; a team of threads per resize would starve the launch thread.
        pool = ThreadPoolExecutor(self._threads, "decode", initializer=torch.set_num_threads, initargs=(1,))
        waiting: deque[tuple[Plan, list[Future[View]]]] = deque()
        try:
            for plan in self._plans():
                waiting.append((plan, [pool.submit(self._view, *slot) for slot in _slots(plan)]))
                if len(waiting) > PREFETCH_STEPS:
                    yield self._collect(*waiting.popleft())
            while waiting:
                yield self._collect(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _collect(self, plan: "Plan", views: list[Future[View]]) -> Batch:
        count = len(plan.weight)
        images = torch.zeros((count, self._size, self._size, 3), dtype=torch.uint8, pin_memory=self._pin)
        labels, flip = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        pixels = images.numpy()
        for slot, future in enumerate(views):
            view = future.result()
            pixels[slot], labels[slot], flip[slot] = view.pixels_HWC, view.label, view.flip
        return Batch(images, labels, flip, torch.from_numpy(plan.mix), torch.from_numpy(plan.weight), plan.slots)


class Plan(NamedTuple):
    """One batch before its samples are read."""

    slots: Slots
    mix: np.ndarray  # float32
    weight: np.ndarray  # float32; slots beyond the samples are padding


def _slots(plan: Plan) -> list[tuple[int, int]]:
    return list(zip(plan.slots.epochs.tolist(), plan.slots.samples.tolist(), strict=True))


def train_loader(
    shards: Shards,
    view: LaneView,
    config: DataConfig,
    size: int,
    seed: int,
    start: int,
    stop: int,
    threads: int,
    pin: bool,
) -> Loader:
    """This rank's share of steps [start, stop), augmented."""

    def sample_view(epoch: int, sample: int) -> View:
        draw = Draw(seed, Purpose.AUGMENT, epoch, sample)
        pixels, label = _read(shards, sample)
        return View(train_view(pixels, size, config, draw), label, config.augment.flip and draw.uniform() < 0.5)

    def plans() -> Iterator[Plan]:
        for step in range(start, stop):
            slots = view.step(step)
            first = view.first_lane * view.order.per_lane
            mix = mix_weights(config, seed, step, first, len(slots.samples))
            yield Plan(slots, mix, np.ones(len(slots.samples), np.float32))

    return Loader(plans, sample_view, size, threads, pin)


def mix_weights(config: DataConfig, seed: int, step: int, first_slot: int, count: int) -> np.ndarray:
    """Mixup's weight of each slot's own image, at least 1/2, one per group of `mix_group` slots of the global batch."""
    if not config.augment.mixup:
        return np.ones(count, np.float32)
    groups = range(first_slot // config.mix_group, (first_slot + count) // config.mix_group)
    weights = [Draw(seed, Purpose.MIX, step, group).beta(config.augment.mixup) for group in groups]
    return np.repeat(np.asarray([max(w, 1 - w) for w in weights], np.float32), config.mix_group)


class EvalView(Protocol):
    """How an evaluated image is resized: part of a recipe's data section, and of a model's own record."""

    @property
    def eval_crop(self) -> float: ...
    @property
    def interpolation(self) -> Literal["bilinear", "bicubic"]: ...


def eval_loader(
    shards: Shards, config: EvalView, size: int, batch: int, rank: int, ranks: int, threads: int, pin: bool
) -> Loader:
    """Every sample exactly once over all ranks, in order; all ranks take equally many equal batches, padded with weight 0."""

    def sample_view(_epoch: int, sample: int) -> View:
        pixels, label = _read(shards, sample)
        return View(eval_view(pixels, size, config.eval_crop, config.interpolation), label, False)

    def plans() -> Iterator[Plan]:
        for start in range(0, len(shards), batch * ranks):
            samples = np.arange(start + rank * batch, min(start + (rank + 1) * batch, len(shards)), dtype=np.int64)
            weight = np.zeros(batch, np.float32)
            weight[: len(samples)] = 1
            yield Plan(Slots(np.zeros_like(samples), samples), np.ones(batch, np.float32), weight)

    return Loader(plans, sample_view, size, threads, pin)


def _read(shards: Shards, sample: int) -> tuple[np.ndarray, int]:
    raw = shards.read(sample)
    try:
        return decode(raw.image), raw.label
    except ValueError as error:
        raise DataError(f"{shards.manifest.path}: sample {raw.key} (number {sample}): {error}") from error
