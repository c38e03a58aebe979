"""The processes of a run: who they are, what they agree on, and when they stop."""

import os
import random
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Self, TypeVar

import torch
import torch.distributed as dist

from vitscale import stopsignal
from vitscale.config import HardwareConfig
from vitscale.errors import LaunchError
from vitscale.phases import Phases, process_age_s
from vitscale.stopsignal import STOP_SIGNALS

Item = TypeVar("Item")


class World:
    """All ranks of a run, from this one's point of view. `with World(...)` joins and leaves; call on every rank."""

    def __init__(self, hardware: HardwareConfig, seed: int) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.device = torch.device("cuda", self.local_rank) if choose_device(hardware) == "cuda" else torch.device("cpu")
        self.seed, self.deterministic = seed, hardware.deterministic
        self.generator = torch.default_generator  # of what is drawn on the device
        self.phases = Phases(age_s=process_age_s())
        self.stop_requested = False  # of this rank
        self.stop_reason = "signal"
        self.stopping = False  # all ranks have agreed to
        self.save_s = 30.0  # what a checkpoint takes, until the first is written
        self._waiting = False

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        self.stop_requested = bool(stopsignal.received)
        torch.set_num_threads(self.cores)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.cuda.init()
            self.generator = torch.cuda.default_generators[self.local_rank]
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # else torch.compile chooses kernels by their times
            torch.use_deterministic_algorithms(True)
            # It would write every new tensor full of NaN, DeepSpeed's buckets in each step among them (docs/benchmarks.md).
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        self._join()
        self.phases.part("rendezvous")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # after an error the others may never come: let the process end, and the launcher end them
            dist.destroy_process_group()

    def _join(self) -> None:
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:  # started by hand as one process
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.stop_requested = True
        if self._waiting:
            self._waiting = False  # a second signal may not interrupt the cleaning up after the first
            raise _StopWaitingError

    def request_stop(self) -> None:
        """As a stop signal to this process; may be called from any thread."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def until_stop(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items until all ranks agree to stop, which they ask each other before each; `stopping` says that they did.

        A rank that is asked to stop while it waits for an item waits no longer. Call on every rank, with equally many items.
        It is for evaluation: asking takes a round trip.
        """
        iterator = iter(items)
        while not self.stopping:
            item = self._next(iterator)
            self.phases.enter(self.phases.name)  # a sign of progress
            self.stopping = self.any(self.stop_requested)
            if item is None or self.stopping:
                return
            yield item

    def or_none(self, items: Iterable[Item], count: int) -> Iterator[Item | None]:
        """`count` items, or None for each once this rank was asked to stop, until all ranks are `stopping`.

        For training, where they learn of it by a step that was lost (readings.py), unasked; who is alone stops at once.
        """
        iterator = iter(items)
        for _ in range(count):
            item = None if self.stopping else self._next(iterator)
            self.phases.enter(self.phases.name)  # a sign of progress
            assert item is not None or self.stop_requested or self.stopping
            self.stopping = self.stopping or (item is None and self.size == 1)
            if self.stopping:
                return
            yield item

    def _next(self, iterator: Iterator[Item]) -> Item | None:
        """The next item, or None: there is none, or this rank was asked to stop."""
        try:
            try:
                self._waiting = True
                return None if self.stop_requested else next(iterator, None)
            finally:
                self._waiting = False
        except _StopWaitingError:  # also one that came in `finally`
            return None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def cores(self) -> int:
        """CPU cores of this machine for each of its ranks."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank; small and of plain Python types."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank; small and of plain Python types."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank, on every rank."""
        if self.size == 1:
            return flag
        answer = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(answer, dist.ReduceOp.MAX)
        return bool(answer)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block that each rank runs for itself; an error on any rank is raised on every rank, so that none waits for it."""
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        said = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, text in enumerate(said):
            if text is not None:
                raise OtherRankFailedError(f"rank {rank} failed: {text}")


class _StopWaitingError(BaseException):
    """Raised by a stop signal where the main thread waits for data."""


class OtherRankFailedError(RuntimeError):
    """Raised where nothing is wrong, because another rank, which says what, cannot go on."""


def is_consequence(error: BaseException) -> bool:
    """Whether it says no more than that another rank is gone; that one, or the launcher, says what happened."""
    lost = isinstance(error, OtherRankFailedError | dist.DistError)
    return lost or (isinstance(error, RuntimeError) and "gloo" in str(error))


def end_process(status: int) -> NoReturn:
    """End this process without Python's own teardown.

    DeepSpeed keeps process groups to the end, and gloo's threads with them. One that lets go of a tensor while Python is torn
    down under it aborts the process, and a run that had finished would count as failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def choose_device(hardware: HardwareConfig) -> str:
    """`cpu` or `cuda`."""
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise LaunchError("hardware.device: cuda, but torch sees no GPU here; use cpu or auto, or a torch built for CUDA")
    if hardware.device != "auto":
        return hardware.device
    return "cuda" if torch.cuda.is_available() else "cpu"
