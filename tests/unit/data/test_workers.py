"""Batches made by processes are those that threads make, and the processes end with whoever wants them, however that ends."""

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

import pytest
from sharding import write_shards

from data_pipeline.config import AugmentConfig, DataConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import Batch, Layout, train_loader
from data_pipeline.manifest import Manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards
from data_pipeline.workers import START, Make, Workers, spread

SIZE, GLOBAL_BATCH, NUM_CLASSES = 16, 24, 3
EVERYTHING = AugmentConfig(three_augment=True, color_jitter=0.3, randaugment_layers=2, erase=0.5, mixup=0.2, cutmix=1.0)


def made_by(manifests: list[Manifest], steps: int = 5, lanes: int = 12, **data: object) -> tuple[Make, Order]:
    """What makes a rank's batches of all these sources, and their order."""
    values = {
        "train": [{"manifest": manifest.location} for manifest in manifests],
        "mix_group": 2,
        "augment": EVERYTHING,
        **data,
    }
    config = DataConfig.model_validate(values)
    order = Order([manifest.samples for manifest in manifests], GLOBAL_BATCH, lanes, 4, 5, repeated=config.repeated)
    return partial(train_loader, Shards(manifests), order, config, SIZE, NUM_CLASSES, 5, range(steps)), order


def columns(batch: Batch) -> list:
    arrays = [value.numpy() for value in vars(batch).values() if hasattr(value, "numpy")]
    return [(array.dtype, array.shape, array.tobytes()) for array in [*arrays, *batch.slots]] + [batch.skips]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    folder, damaged = tmp_path_factory.mktemp("shards"), range(1, 42, 3)
    return [write_shards(folder, [1, 30, 2, 9], damaged=damaged), write_shards(folder, [5, 8], prefix="other", restarts=1)]


def test_processes_make_what_threads_make(sources):
    """Of several sources, with images that are repeated, replaced, changed in every way and mixed; rank 1 of 2."""
    make, _ = made_by(sources, steps=12, repeated=3, mix_group=6, bad_samples={"policy": "replace"})
    layout = Layout(1, 2, threads=4)
    expected = list(map(columns, make(layout)))
    assert len(expected) == 12 and any(skips for *_, skips in expected)
    found = []
    for batch in Workers(make, layout, 2):
        time.sleep(0.05 * (len(found) % 3))  # the workers wait now and then
        found.append(batch)
    assert list(map(columns, found)) == expected  # later batches lie in memory of their own


@pytest.mark.parametrize(
    ("lanes", "ranks", "mix_group", "threads", "wanted", "count", "each"),
    [
        (12, 1, 1, 8, 0, 0, 8),
        (12, 1, 1, 8, 5, 4, 2),
        (12, 2, 1, 8, 5, 3, 3),
        (12, 1, 8, 8, 8, 3, 3),  # parts of whole groups
        (24, 1, 1, 9, 9, 8, 1),  # 8 of 9 threads
        (24, 1, 1, 15, 15, 8, 2),  # not 12 with one thread each
        (24, 1, 1, 24, 99, 24, 1),
        (3, 3, 1, 8, 9, 1, 8),
    ],
)
def test_the_processes_have_equal_parts_and_nearly_all_threads(sources, lanes, ranks, mix_group, threads, wanted, count, each):
    make, order = made_by(sources, lanes=lanes)
    layout = Layout(0, ranks, threads)
    batches = spread(make, layout, order, mix_group, wanted)
    assert (batches.count if isinstance(batches, Workers) else 0) == count
    assert (layout.part(0, count) if count else layout).threads == each


def test_the_threads_and_reads_of_a_rank_are_shared_out():
    parts = [Layout(1, 2, threads=7, pin=True, reads=16).part(number, 3) for number in range(3)]
    assert parts == [Layout(3, 6, 2, False, 6), Layout(4, 6, 2, False, 6), Layout(5, 6, 2, False, 6)]


def test_an_error_is_that_of_the_threads(sources):
    make, _ = made_by(sources)
    for batches in (make(Layout(0, 1, 2)), Workers(make, Layout(0, 1, 2), 1)):
        with pytest.raises(DataError, match=r"k-00\d.tar: sample k\d+: not a readable image .* data.bad_samples.policy"):
            list(batches)


def refuse(_layout: Layout) -> list[Batch]:
    raise KeyError("a bug")


def test_a_bug_is_shown_with_its_place():
    with pytest.raises(RuntimeError, match=r"(?s)test_workers.py.*in refuse.*KeyError: 'a bug'"):
        list(Workers(refuse, Layout(0, 1, 2), 1))


def children(pid: int) -> list[int]:
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()]


def workers_of(pid: int) -> list[int]:
    """Processes that have come so far as to run Python."""
    return [child for child in children(pid) if START.encode() in Path(f"/proc/{child}/cmdline").read_bytes()]


def endless(sources: list[Manifest]) -> Generator[Batch]:
    make, _ = made_by(sources, steps=10**6, bad_samples={"policy": "replace"})
    return iter(Workers(make, Layout(0, 1, 2), 2))


class Unpicklable:
    def __reduce__(self) -> tuple:
        return int, ("not a number",)


def test_what_fails_at_the_start_is_shown_too():
    with pytest.raises(RuntimeError, match=r"(?s)in a process that decodes images.*ValueError: invalid literal"):
        list(Workers(partial(refuse, Unpicklable()), Layout(0, 1, 2), 1))


def test_signals_do_not_end_a_process_that_still_starts(sources):
    make, _ = made_by(sources, bad_samples={"policy": "replace"})
    batches = iter(Workers(make, Layout(0, 1, 2), 1))
    starting = threading.Thread(target=lambda: found.extend(batches))
    found: list[Batch] = []
    starting.start()
    deadline = time.monotonic() + 10
    while not (pids := [pid for pid in workers_of(os.getpid()) if ignores_sigterm(pid)]):
        assert time.monotonic() < deadline
    os.kill(pids[0], signal.SIGTERM)
    starting.join()
    assert len(found) == 5


def ignores_sigterm(pid: int) -> bool:
    (line,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(line, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_killed_process_is_an_error_and_the_others_end(sources):
    batches = endless(sources)
    next(batches)
    found = workers_of(os.getpid())
    assert len(found) == 2
    os.kill(found[1], signal.SIGKILL)
    with pytest.raises(DataError, match=r"ended with status -9 .* hardware.loader_processes"):
        list(batches)
    assert workers_of(os.getpid()) == []


def open_files() -> set[str]:
    gc.collect()
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_signals_leave_them_at_work_and_leaving_ends_them(sources):
    """Ctrl-C and Slurm's scancel reach all processes; training makes its last steps, and saves."""
    before, batches = open_files(), endless(sources)
    next(batches)
    found = workers_of(os.getpid())
    for pid in found:
        assert os.getsid(pid) != os.getsid(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, number)
    for _ in range(20):
        next(batches)
    assert workers_of(os.getpid()) == found and len(found) == 2
    batches.close()
    assert workers_of(os.getpid()) == []
    assert open_files() == before


OWNER = """
import os, sys, time
from data_pipeline.manifest import read_manifest
from test_workers import endless, workers_of
batches = endless([read_manifest(sys.argv[1])])
next(batches)
print(*workers_of(os.getpid()), flush=True)
time.sleep(600)
"""


def test_they_end_when_their_owner_is_killed(sources):
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", OWNER, sources[0].location], stdout=subprocess.PIPE, env=environ) as owner:
        assert owner.stdout
        pids = [int(word) for word in owner.stdout.readline().split()]
        owner.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]:  # of a zombie it cannot be read
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
