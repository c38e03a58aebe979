"""Decoding in processes of its own: threads would share one lock of Python with the thread that launches the training.

A worker is a rank of a finer layout: its slots are a part of the rank's, and what is in them follows from the order alone.
"""

import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import DataError
from data_pipeline.loader import Batch, Layout, pixel_memory
from data_pipeline.order import Order, Slots

Make = Callable[[Layout], Iterable[Batch]]

START = "from data_pipeline.workers import work; work()"


def spread(make: Make, layout: Layout, order: Order, mix_group: int, processes: int) -> Iterable[Batch]:
    """The batches of `make(layout)`, made by at most so many processes, as equal parts allow; 0: by threads of this one."""
    lanes = order.lanes // layout.ranks
    fitting = (n for n in range(1, processes + 1) if not (lanes % n or lanes * order.per_lane // n % mix_group))
    count = max(fitting, default=0)
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
    """A process that decodes a part of every batch. It sends the small columns pickled, then the pixels as they are."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        with theirs:  # a session of its own: Ctrl-C is for the training, which needs its data until it has ended in good order
            command = [sys.executable, "-c", START, str(theirs.fileno())]
            self.process = subprocess.Popen(command, env=environ, pass_fds=[theirs.fileno()], start_new_session=True)

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

    def read_into(self, images: np.ndarray) -> None:
        left = images.reshape(-1).data
        while left:
            count = os.readv(self.pipe.fileno(), [left])
            if not count:
                raise self._ended()
            left = left[count:]

    def close(self) -> None:
        self.pipe.close()
        self.process.wait()

    def _ended(self) -> DataError:
        return DataError(
            f"a process that decodes images ended with status {self.process.wait()} (-9: it was killed, most often for want of "
            "memory: fewer hardware.loader_processes need less); start again, the run goes on from its last checkpoint"
        )


def _joined(workers: list[Worker], pin: bool) -> Batch | None:
    """The next batch, in memory of its own; None: there is none."""
    parts = [part for worker in workers if (part := worker.columns())]
    if not parts:
        return None
    ends = np.cumsum([len(part["labels_B"]) for part in parts])
    images = pixel_memory(int(ends[-1]), int(ends[-1]), parts[0].pop("size"), pin)
    for worker, view in zip(workers, np.split(images.numpy(), ends[:-1]), strict=True):
        worker.read_into(view)

    def column(name: str) -> torch.Tensor:
        whole = torch.from_numpy(np.concatenate([part[name] for part in parts]))
        return whole.pin_memory() if pin else whole

    slots = Slots(*map(np.concatenate, zip(*(part.pop("slots") for part in parts), strict=True)))
    skips = tuple(skip for part in parts for skip in part.pop("skips"))
    return Batch(images_BHWC=images, **{name: column(name) for name in parts[0]}, slots=slots, skips=skips)


def work() -> None:
    """What a worker does, until there is no more to do or nobody who wants it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # as above, where a scheduler signals all processes
    torch.set_num_threads(1)
    pipe = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with_training, args=[pipe], daemon=True).start()
    make, layout = (pickle.loads(pipe.recv_bytes()) for _ in range(2))
    try:
        for batch in make(layout):
            _send(pipe, batch)
        last: Exception | None = None
    except DataError as error:
        last = error
    except Exception:
        last = RuntimeError(f"in a process that decodes images:\n{traceback.format_exc()}")
    pipe.send_bytes(pickle.dumps(last))


def _end_with_training(pipe: Connection) -> None:
    hung_up = select.poll()
    hung_up.register(pipe, 0)
    hung_up.poll()
    os._exit(0)


def _send(pipe: Connection, batch: Batch) -> None:
    columns = {name: value.numpy() if torch.is_tensor(value) else value for name, value in vars(batch).items()}
    images = columns.pop("images_BHWC")
    pipe.send_bytes(pickle.dumps(columns | {"size": images.shape[1], "slots": tuple(batch.slots)}))
    left = images.reshape(-1).data
    while left:
        left = left[os.write(pipe.fileno(), left) :]
