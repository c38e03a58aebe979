"""Batches: samples decoded and cropped by a pool of threads, in planned order, a few steps ahead."""

import dataclasses
import operator
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from data_pipeline.bad_samples import BadSamples, Skip
from data_pipeline.config import DataConfig, Preprocessing
from data_pipeline.decode import decode
from data_pipeline.draw import Draw, Purpose
from data_pipeline.errors import BadSampleError, DataError
from data_pipeline.mixplan import mix_plan
from data_pipeline.order import Order, Slots
from data_pipeline.pool import READ_THREADS
from data_pipeline.stream import PREFETCH_STEPS, Loaded, Shards, reading, steps, where
from data_pipeline.views import View, eval_view, train_crop, train_view

GROUP = 8  # slots decoded, then resized: each library's code and tables stay in the cache; 8 % faster than one by one


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch. B slots; a slot that only pads the batch has weight 0."""

    images_BHWC: torch.Tensor  # uint8
    labels_B: torch.Tensor  # int64
    flip_B: torch.Tensor  # bool
    erase_B4: torch.Tensor  # int32: y, x, height, width of the rectangle to erase; height 0 = none
    noise_B: torch.Tensor  # int64, what the noise in that rectangle follows from
    mix_B: torch.Tensor  # float32, weight of the slot's own image in mixup or cutmix
    cut_B4: torch.Tensor  # int32: y, x, height, width of cutmix's rectangle; height 0 = mixup
    weight_B: torch.Tensor  # float32, 1 = counts, 0 = padding
    slots: Slots
    skips: tuple[Skip, ...] = ()

    def split(self, size: int) -> Iterator["Batch"]:
        """Micro-batches of `size` slots."""
        if size == len(self.labels_B):
            yield self
            return
        for start in range(0, len(self.labels_B), size):
            part = slice(start, start + size)
            yield self._each(operator.itemgetter(part), Slots(*(column[part] for column in self.slots)))

    def to(self, device: torch.device) -> "Batch":
        """On the device; copies from pinned memory do not wait."""
        if device.type == "cpu":
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True), self.slots)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor], slots: Slots) -> "Batch":
        tensors: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if torch.is_tensor(value)}
        return Batch(**tensors, slots=slots)


class Layout(NamedTuple):
    """Whose share of every step it is, and what decodes it."""

    rank: int
    ranks: int
    threads: int
    pin: bool = False  # page-locked memory, for a GPU
    reads: int = READ_THREADS  # under way at a time
    pixels: Callable[[int, int], torch.Tensor] | None = None  # memory for so many images of that size; default: new

    def part(self, number: int, count: int) -> "Layout":
        """That of one of `count` that share the work of this rank."""
        threads, reads = max(1, round(self.threads / count)), -(-self.reads // count)  # equal, as the parts are
        return Layout(self.rank * count + number, self.ranks * count, threads, reads=reads)


class Plan(NamedTuple):
    """A batch to be filled, and by slot the block that holds its sample."""

    batch: Batch
    blocks: list[Future[Loaded]]


class Sample(NamedTuple):
    """A decoded sample."""

    view: Callable[[], View]  # what is left to be done
    label: int


Decode = Callable[[Loaded, int, int], tuple[Sample, Skip | None]]  # (block, epoch, sample number)


class Loader:
    """Iterable over batches; iterating starts the threads, leaving the iteration stops them."""

    def __init__(self, plans: Callable[[], Generator[Plan]], decode: Decode, threads: int) -> None:
        self._plans, self._decode, self._threads = plans, decode, threads

    def __iter__(self) -> Iterator[Batch]:
        # One thread of torch each: the pool is the parallelism; a team of threads per resize would starve the launch thread.
        pool = ThreadPoolExecutor(self._threads, "decode", initializer=torch.set_num_threads, initargs=(1,))
        planner = ThreadPoolExecutor(1, "plan")  # finding out what to decode takes milliseconds of a large batch, too
        plans = self._plans()
        waiting = deque(planner.submit(self._submit, plans, pool) for _ in range(PREFETCH_STEPS + 1))
        try:
            while submitted := waiting.popleft().result():
                yield _collect(*submitted)
                waiting.append(planner.submit(self._submit, plans, pool))
        finally:
            planner.shutdown(cancel_futures=True)
            pool.shutdown(wait=False, cancel_futures=True)
            plans.close()  # cancels reads that decoding threads may wait for
            pool.shutdown()

    def _submit(self, plans: Iterator[Plan], pool: ThreadPoolExecutor) -> tuple[Batch, list[Future[list[Skip]]]] | None:
        """The next batch, and its slots on their way; None: there is none."""
        if (plan := next(plans, None)) is None:
            return None
        slots = list(zip(plan.blocks, *(column.tolist() for column in plan.batch.slots), strict=True))
        groups = ((start, slots[start : start + GROUP]) for start in range(0, len(slots), GROUP))
        return plan.batch, [pool.submit(self._fill, plan.batch, *group) for group in groups]

    def _fill(self, batch: Batch, start: int, slots: list[tuple[Future[Loaded], int, int]]) -> list[Skip]:
        samples = [self._decode(block.result(), epoch, sample) for block, epoch, sample in slots]
        columns = batch.images_BHWC, batch.labels_B, batch.flip_B, batch.erase_B4, batch.noise_B
        images, labels, flip, erase, noise = (column.numpy() for column in columns)
        for slot, (sample, _) in enumerate(samples, start):
            images[slot], flip[slot], erase[slot], noise[slot] = sample.view()
            labels[slot] = sample.label
        return [skip for _, skip in samples if skip]


def _empty(slots: Slots, mix: np.ndarray, cut: np.ndarray, weight: np.ndarray, size: int, layout: Layout) -> Batch:
    """`weight` is 1 for each of `slots`, and 0 for those beyond them."""
    count, pin = len(weight), layout.pin
    images = layout.pixels(count, size) if layout.pixels else new_pixels(count, size, pin)
    images[len(slots.samples) :] = 0

    def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros((count, *shape), dtype=dtype, pin_memory=pin)

    def known(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).pin_memory() if pin else torch.from_numpy(values)

    return Batch(
        images_BHWC=images,
        labels_B=zeros(dtype=torch.int64),
        flip_B=zeros(dtype=torch.bool),
        erase_B4=zeros(4, dtype=torch.int32),
        noise_B=zeros(dtype=torch.int64),
        mix_B=known(mix),
        cut_B4=known(cut),
        weight_B=known(weight),
        slots=slots,
    )


def blank(count: int, size: int) -> Batch:
    """A batch of no images."""
    nothing, uncut = np.zeros(count, np.int64), np.zeros((count, 4), np.int32)
    return _empty(
        Slots(nothing, nothing), np.ones(count, np.float32), uncut, np.zeros(count, np.float32), size, Layout(0, 1, 1)
    )


def new_pixels(count: int, size: int, pin: bool) -> torch.Tensor:
    """Memory whose content is arbitrary: zeroing it would take milliseconds of a large batch."""
    shape = count, size, size, 3
    # Numpy's lies in huge pages, of which the kernel hands out a few, and not 37 small ones per image as of torch's.
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True) if pin else torch.from_numpy(np.empty(shape, np.uint8))


def _collect(batch: Batch, filled: list[Future[list[Skip]]]) -> Batch:
    return dataclasses.replace(batch, skips=tuple(skip for future in filled for skip in future.result()))


def train_loader(
    shards: Shards, order: Order, config: DataConfig, size: int, num_classes: int, seed: int, numbers: range, layout: Layout
) -> Loader:
    """A rank's share of the steps in `numbers`, augmented to size x size."""
    mine = order.lanes_of(layout.rank, layout.ranks)

    def decode_one(block: Loaded, epoch: int, sample: int) -> Sample:
        image, label = usable(block, sample, num_classes)
        draw = Draw(seed, Purpose.AUGMENT, epoch, sample)
        crop = train_crop(image, config, draw)
        return Sample(lambda: train_view(crop, size, config, draw), label)

    def plans() -> Generator[Plan]:
        augment, group = config.augment, config.mix_group
        for step in steps(shards, order, mine, numbers.start, numbers.stop, layout.reads):
            first, count = mine[0] * order.per_lane, len(step.blocks)
            mix, cut = mix_plan(augment.mixup, augment.cutmix, size, group, seed, step.number, first, count)
            yield Plan(_empty(step.slots, mix, cut, np.ones(count, np.float32), size, layout), step.blocks)

    return Loader(plans, BadSamples(config.bad_samples, shards, seed, decode_one).use, layout.threads)


def usable(block: Loaded, sample: int, num_classes: int) -> tuple[bytes, int]:
    """An encoded image and a label that exists."""
    image, label = block.image(sample)
    if not 0 <= label < num_classes:
        raise BadSampleError(f"label {label} (-1 = none) is not within 0..{num_classes - 1}")
    return image, label


def eval_loader(
    shards: Shards, config: Preprocessing, size: int, batch: int, num_classes: int, layout: Layout, first: int | None = None
) -> Loader:
    """Every sample, or the `first`, exactly once over all ranks, in order; all ranks take equally many equal batches, padded
    with weight 0.

    A bad sample is an error here, whatever the policy: an accuracy on fewer images is another accuracy.
    """

    def decode_or_fail(block: Loaded, _epoch: int, sample: int) -> tuple[Sample, None]:
        try:
            image, label = usable(block, sample, num_classes)
            pixels = decode(image)
        except BadSampleError as error:
            raise DataError(f"{where(shards, sample)}: {error}; evaluation needs every image: mend the shard") from error
        return Sample(lambda: View(eval_view(pixels, size, config)), label), None

    def plans() -> Generator[Plan]:
        with reading(PREFETCH_STEPS) as pool:
            global_batch, count = batch * layout.ranks, min(len(shards), first or len(shards))
            for start in range(layout.rank * batch, -(-count // global_batch) * global_batch, global_batch):
                samples = np.arange(start, max(start, min(start + batch, count)), dtype=np.int64)
                blocks = [pool.submit(shards.load, samples)] * len(samples) if len(samples) else []
                unmixed, uncut = np.ones(batch, np.float32), np.zeros((batch, 4), np.int32)
                weight = (np.arange(batch) < len(samples)).astype(np.float32)
                slots = Slots(np.zeros_like(samples), samples)
                yield Plan(_empty(slots, unmixed, uncut, weight, size, layout), blocks)

    return Loader(plans, decode_or_fail, layout.threads)
