"""One function over many tasks, in several processes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from data_pipeline.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, title: str) -> Iterator[Result]:
    """The results in the order of the tasks, with a bar on a terminal. With one worker or task it happens here.

    The first error ends all; so does a worker that dies.
    """
    console = Console(stderr=True)
    results = _results(function, tasks, min(workers, len(tasks)))
    yield from track(results, title, len(tasks), console=console, disable=not console.is_terminal)


def _results(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    if workers <= 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool:
        raise DataError(
            f"one of {workers} worker processes died: it was killed, perhaps for want of memory; run the same command again "
            "with fewer --workers, what is finished is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """End at once on Ctrl-C, and when the parent has died."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def default_workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
