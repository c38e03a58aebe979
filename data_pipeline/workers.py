"""Decoding in processes of its own: threads would share one lock of Python with the thread that launches the training.

A worker is a rank of a finer layout: its slots are a part of the rank's, and what is in them follows from the order alone.
"""

import contextlib
import math
import mmap
import os
import pickle
import select
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

import numpy as np
import torch

from data_pipeline.errors import DataError
from data_pipeline.loader import Batch, Layout, new_pixels
from data_pipeline.order import Order, Slots
from data_pipeline.stream import PREFETCH_STEPS

Make = Callable[[Layout], Iterable[Batch]]

# Signals to stop are for the training, which needs its data until it has ended in good order; a scheduler sends them to all.
START = """import signal
for number in signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2:
    signal.signal(number, signal.SIG_IGN)
from data_pipeline.workers import work
work()"""
ROUNDING = 0.15  # of the threads: as many may be too few or too many, so that all processes have equally many
SLOTS = PREFETCH_STEPS + 2  # batches that are decoded or wait, and one that is read


def spread(make: Make, layout: Layout, order: Order, mix_group: int, processes: int) -> Iterable[Batch]:
    """The batches of `make(layout)`, by so many processes as can have equal parts and nearly all threads; 0: by this one."""
    lanes, threads = order.lanes // layout.ranks, layout.threads
    equal = [n for n in range(1, min(processes, threads) + 1) if not (lanes % n or lanes * order.per_lane // n % mix_group)]
    count = max((n for n in equal if abs(n * round(threads / n) - threads) <= ROUNDING * threads), default=0)
    return Workers(make, layout, count) if count else make(layout)


class Workers:
    """Iterable over batches put together from the parts of `count` processes; leaving the iteration ends these."""

    def __init__(self, make: Make, layout: Layout, count: int) -> None:
        self.make, self.layout, self.count = make, layout, count

    def __iter__(self) -> Generator[Batch]:
        workers: list[Worker] = []
        collector = ThreadPoolExecutor(1, "collect")
        try:
            workers.extend(Worker() for _ in range(self.count))
            ahead = collector.submit(self._first, workers)
            while batch := ahead.result():
                ahead = collector.submit(_joined, workers, self.layout.pin)
                yield batch
        finally:
            for worker in workers:
                worker.process.kill()
            collector.shutdown()
            for worker in workers:
                worker.close()

    def _first(self, workers: list["Worker"]) -> Batch | None:
        make = pickle.dumps(self.make)
        for number, worker in enumerate(workers):
            worker.send(make, pickle.dumps(self.layout.part(number, self.count)))
        return _joined(workers, self.layout.pin)


class Worker:
    """A process that decodes a part of every batch into memory that both see, and sends the rest pickled."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        self.memory = os.memfd_create("pixels")  # not in /dev/shm, which is small in many containers
        self.slots: np.ndarray | None = None
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        with theirs:  # a session of its own, which Ctrl-C does not reach
            given = theirs.fileno(), self.memory
            command = [sys.executable, "-c", START, *map(str, given)]
            self.process = subprocess.Popen(command, env=environ, pass_fds=given, start_new_session=True)

    def send(self, *messages: bytes) -> None:
        try:
            for message in messages:
                self.pipe.send_bytes(message)
        except OSError:
            raise self._ended() from None

    def columns(self) -> dict[str, Any] | None:
        """All of the next part but its pixels; None: there is none."""
        try:
            columns = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(columns, Exception):
            raise columns
        return columns

    def read(self, pixels: "Pixels", images: np.ndarray) -> None:
        """Copy a part's pixels; the worker may then use their slot again."""
        if self.slots is None:
            self.slots = mapped(self.memory, pixels.slots)
        np.copyto(images, self.slots[pixels.slot])
        self.send(pixels.slot.to_bytes(1))

    def close(self) -> None:
        self.slots = None
        self.pipe.close()
        os.close(self.memory)
        self.process.wait()

    def _ended(self) -> DataError:
        status = self.process.wait()
        why = "killed, often for want of memory: fewer hardware.loader_processes need less" if status == -9 else "see above"
        found = f"a process that decodes images ended with status {status} ({why})"
        return DataError(f"{found}; start again: the run goes on from its last checkpoint")


def _joined(workers: list[Worker], pin: bool) -> Batch | None:
    """The next batch, in memory of its own; None: there is none."""
    parts = [part for worker in workers if (part := worker.columns())]
    if not parts:
        return None
    pixels: list[Pixels] = [part.pop("pixels") for part in parts]
    ends = np.cumsum([each.slots[1] for each in pixels])
    images = new_pixels(int(ends[-1]), pixels[0].slots[2], pin)
    for worker, each, view in zip(workers, pixels, np.split(images.numpy(), ends[:-1]), strict=True):
        worker.read(each, view)

    def column(name: str) -> torch.Tensor:
        whole = torch.from_numpy(np.concatenate([part[name] for part in parts]))
        return whole.pin_memory() if pin else whole

    slots = Slots(*map(np.concatenate, zip(*(part.pop("slots") for part in parts), strict=True)))
    skips = tuple(skip for part in parts for skip in part.pop("skips"))
    return Batch(images_BHWC=images, **{name: column(name) for name in parts[0]}, slots=slots, skips=skips)


class Pixels(NamedTuple):
    """Where the pixels of a worker's part are, in the memory that the training sees too."""

    slots: tuple[int, ...]  # its shape: slots, images, height, width, channels
    slot: int


def mapped(memory: int, shape: tuple[int, ...]) -> np.ndarray:
    """The memory of this file descriptor."""
    return np.frombuffer(mmap.mmap(memory, math.prod(shape)), np.uint8).reshape(shape)


class Memory:
    """Slots for the pixels of batches; those that the training has read are used again."""

    def __init__(self, memory: int, pipe: Connection) -> None:
        self.memory, self.pipe, self.free, self.slots = memory, pipe, list(range(SLOTS)), torch.empty(0)

    def take(self, count: int, size: int) -> torch.Tensor:
        if not self.slots.numel():
            shape = SLOTS, count, size, size, 3
            os.ftruncate(self.memory, math.prod(shape))
            self.slots = torch.from_numpy(mapped(self.memory, shape))
        assert self.slots.shape[1:3] == (count, size)
        return self.slots[self.free.pop() if self.free else self.pipe.recv_bytes()[0]]

    def pixels(self, images: torch.Tensor) -> Pixels:
        return Pixels(tuple(self.slots.shape), images.storage_offset() // images.numel())


def work() -> None:
    """What a worker does, until there is no more to do or nobody who wants it."""
    torch.set_num_threads(1)
    pipe, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with_training, args=[pipe], daemon=True).start()
    last: Exception | None = None
    try:
        make, layout = (pickle.loads(pipe.recv_bytes()) for _ in range(2))
        slots = Memory(memory, pipe)
        for batch in make(layout._replace(pixels=slots.take)):
            columns = {name: value.numpy() if torch.is_tensor(value) else value for name, value in vars(batch).items()}
            del columns["images_BHWC"]
            pipe.send_bytes(pickle.dumps(columns | {"pixels": slots.pixels(batch.images_BHWC)}))
    except DataError as error:
        last = error
    except Exception:
        last = RuntimeError(f"in a process that decodes images:\n{traceback.format_exc()}")
    with contextlib.suppress(OSError):  # nobody wants it
        pipe.send_bytes(pickle.dumps(last))
        _end_with_training(pipe)  # which still answers to the last batches


def _end_with_training(pipe: Connection) -> None:
    hung_up = select.poll()
    hung_up.register(pipe, 0)
    hung_up.poll()
    os._exit(0)
