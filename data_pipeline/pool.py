"""One function over many tasks, in several processes or threads."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data_pipeline.errors import DataError

READ_THREADS = 16  # reads under way at a time

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None, title: str) -> Iterator[Result]:
    """The results in the order of the tasks, with a bar on a terminal; by default a worker per processor, one works here."""
    workers = min(workers or len(os.sched_getaffinity(0)), len(tasks))
    yield from _with_bar(_results(work, tasks, workers), len(tasks), title)


def in_threads(work: Callable[[Task], Result], tasks: Sequence[Task], title: str = "") -> list[Result]:
    """The results in the order of the tasks, for what waits or releases the lock; with a title there is a bar."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        results = pool.map(work, tasks)
        return list(_with_bar(results, len(tasks), title) if title else results)


def _with_bar(results: Iterator[Result], count: int, title: str) -> Iterator[Result]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(results, title, count, console=console, disable=not console.is_terminal)


def _results(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    if workers <= 1:
        yield from map(work, tasks)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield from pool.map(work, tasks)
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
