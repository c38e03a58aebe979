"""Whatever processes do to it at once, and however they die, the cache returns the object's bytes and stays below its limit."""

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipeline import cache
from data_pipeline.cache import Cache
from data_pipeline.errors import DataError

CHUNK = 1000
STORED = CHUNK + cache.CRC_BYTES
SIZE = 10 * CHUNK - 300
CONTENT = random.Random(0).randbytes(SIZE)

HAMMER = """
import random, sys
from data_pipeline import cache
from data_pipeline.cache import Cache
cache.CHUNK_BYTES = 1000
directory, limit, seed, reads = sys.argv[1], *map(int, sys.argv[2:])
draw, store = random.Random(seed), Cache(directory, limit)
for _ in range(reads):
    name = str(draw.randrange(4))
    content = random.Random(name).randbytes(9700)
    start, end = sorted(draw.choices(range(9701), k=2))
    assert store.read(name, 9700, start, end, lambda a, b: content[a:b]) == content[start:end]
"""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_BYTES", CHUNK)


class Object:
    """A remote object that remembers what was fetched of it."""

    def __init__(self):
        self.fetched = []

    def fetch(self, start, end):
        self.fetched.append((start, end))
        return CONTENT[start:end]

    def read(self, store, start, end, name="object"):
        """Read through the cache; what was fetched for it."""
        self.fetched.clear()
        assert store.read(name, SIZE, start, end, self.fetch) == CONTENT[start:end]
        return list(self.fetched)


def stored(directory):
    """{file: bytes} of the chunks and leftovers, as any other program would count them."""
    found = {}
    for path in directory.rglob("*"):
        try:
            if path.is_file() and path.name != "total":
                found[path] = path.stat().st_size
        except FileNotFoundError:  # just evicted
            continue
    return found


def locked_size(directory):
    """Bytes of the chunks at one moment: while nobody may add any."""
    with (directory / "total").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return sum(size for path, size in stored(directory).items() if path.suffix == ".chunk")


def hammer(directory, limit, seed, reads):
    command = [sys.executable, "-c", HAMMER, directory, *map(str, (limit, seed, reads))]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_only_what_is_missing_is_fetched_in_one_read_for_each_gap(tmp_path):
    thing, store = Object(), Cache(tmp_path, 100 * STORED)
    assert thing.read(store, 3100, 3200) == [(3000, 4000)]
    assert thing.read(store, 3000, 4000) == []
    assert thing.read(store, 2999, 4001) == [(2000, 3000), (4000, 5000)]
    assert thing.read(store, 0, SIZE) == [(0, 2000), (5000, SIZE)]
    assert thing.read(store, 0, SIZE) == thing.read(store, SIZE - 1, SIZE) == thing.read(store, 0, 0) == []
    assert thing.read(Cache(tmp_path, 100 * STORED), 0, SIZE) == []
    assert thing.read(store, 0, 1, name="other") == [(0, 1000)]
    assert sum(stored(tmp_path).values()) == SIZE + CHUNK + 11 * cache.CRC_BYTES


def test_a_chunk_that_two_fetched_at_once_counts_once(tmp_path):
    thing, one, other = Object(), Cache(tmp_path, 9 * STORED), Cache(tmp_path, 9 * STORED)

    def fetch(start, end):
        thing.read(other, start, end)
        return CONTENT[start:end]

    assert one.read("object", SIZE, 0, 2000, fetch) == CONTENT[:2000]
    assert int((tmp_path / "total").read_bytes()) == sum(stored(tmp_path).values()) == 2 * STORED


def test_a_failed_fetch_stores_nothing(tmp_path):
    def fail(*_):
        raise DataError("away")

    store = Cache(tmp_path, 10 * STORED)
    with pytest.raises(DataError, match="away"):
        store.read("object", SIZE, 0, 10, fail)
    assert stored(tmp_path) == {}


@pytest.mark.parametrize("damage", ["flip", "shorten", "empty", "lengthen", "another's"])
def test_a_damaged_chunk_is_fetched_again(tmp_path, damage):
    thing, store = Object(), Cache(tmp_path, 10 * STORED)
    thing.read(store, 0, 2000)
    first, second = sorted(stored(tmp_path))
    content = first.read_bytes()
    flipped = content[:500] + bytes([content[500] ^ 1]) + content[501:]
    changed = {"flip": flipped, "shorten": content[:-1], "empty": b"", "lengthen": content + b"x"}
    first.write_bytes(changed[damage] if damage in changed else second.read_bytes())
    assert thing.read(store, 0, 2000) == [(0, 1000)]
    assert thing.read(store, 0, 2000) == []


def test_the_longest_unused_go_first(tmp_path):
    thing, store = Object(), Cache(tmp_path, 3 * STORED)
    for place in (0, 1000, 2000, 0, 3000):  # a hit on 0: 1000 is the longest unused when 3000 comes
        thing.read(store, place, place + 1)
        time.sleep(0.02)  # file times have the kernel's tick
    assert [place for place in (0, 2000, 3000) if thing.read(store, place, place + 1)] == []
    assert thing.read(store, 1000, 1001) == [(1000, 2000)]


def test_a_lower_limit_holds_from_the_start(tmp_path):
    Object().read(Cache(tmp_path, 100 * STORED), 0, SIZE)
    Cache(tmp_path, 2 * STORED)
    assert 0 < sum(stored(tmp_path).values()) <= 2 * STORED


def test_a_limit_below_one_chunk_is_refused(tmp_path):
    with pytest.raises(DataError, match="a limit of 1003 bytes holds no chunk; give at least 1004"):
        Cache(tmp_path, STORED - 1)
    assert Object().read(Cache(tmp_path, STORED), 0, SIZE) == [(0, SIZE)]
    assert sum(stored(tmp_path).values()) <= STORED


def test_a_directory_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Not a directory; give a directory that can be written"):
        Cache(tmp_path / "file" / "cache", STORED)


@pytest.mark.parametrize("garbage", [b"", b"what?" * 9, b"9" * 20])
def test_a_total_in_doubt_is_counted_anew(tmp_path, garbage):
    thing, store = Object(), Cache(tmp_path, 3 * STORED)
    thing.read(store, 0, 3000)
    (tmp_path / "total").write_bytes(garbage)
    assert thing.read(store, 5000, 6000) == [(5000, 6000)]
    assert thing.read(store, 5000, 6000) == []
    assert 0 < sum(stored(tmp_path).values()) <= 3 * STORED
    assert int((tmp_path / "total").read_bytes()[:20]) == sum(stored(tmp_path).values())


def test_processes_at_once_stay_below_the_limit_with_right_bytes(tmp_path):
    limit = 6 * STORED
    Cache(tmp_path, limit)
    processes = [hammer(tmp_path, limit, seed, 400) for seed in range(4)]
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, locked_size(tmp_path))
        time.sleep(0.001)
    assert [process.communicate()[1] for process in processes] == [""] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert 3 * STORED < most <= limit
    assert sum(stored(tmp_path).values()) <= limit


def test_processes_killed_at_any_moment_do_no_harm(tmp_path):
    limit, draw = 6 * STORED, random.Random(0)
    Cache(tmp_path, limit)
    witness = hammer(tmp_path, limit, 99, 2500)
    for seed in range(6):
        process = hammer(tmp_path, limit, seed, 10**9)
        time.sleep(0.25 + draw.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        assert process.communicate() == (None, "")
        assert process.returncode == -signal.SIGKILL
        assert locked_size(tmp_path) <= limit
    assert witness.communicate() == (None, "")
    assert witness.returncode == 0
    Object().read(Cache(tmp_path, limit), 0, SIZE)
    assert (tmp_path / "partial") not in stored(tmp_path)
    assert sum(stored(tmp_path).values()) <= limit


def test_threads_share_one_cache(tmp_path):
    store, draw = Cache(tmp_path, 4 * STORED), random.Random(0)
    ranges = [sorted(draw.choices(range(SIZE + 1), k=2)) for _ in range(300)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: store.read("x", SIZE, *pair, lambda a, b: CONTENT[a:b]), ranges))
    assert found == [CONTENT[start:end] for start, end in ranges]
    assert sum(stored(tmp_path).values()) <= 4 * STORED


FULL_DISK = """
import resource, signal, sys
from data_pipeline.cache import Cache, CHUNK_BYTES
store = Cache(sys.argv[1], 100 * CHUNK_BYTES)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # every longer write fails, as on a full disk
for _ in range(2):
    for start in (0, CHUNK_BYTES):
        assert store.read("x", 2 * CHUNK_BYTES, start, start + 9, lambda a, b: bytes(b - a)) == bytes(9)
"""


def test_a_disk_that_refuses_is_said_once_and_done_without(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"cache {tmp_path}: {os.strerror(errno.EFBIG)}; going on without adding to it\n"
    assert stored(tmp_path) == {}


def test_files_of_others_are_left_alone(tmp_path):
    others = [tmp_path / "notes.txt", tmp_path / "ab" / "notes.txt"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10 * STORED))
    Object().read(Cache(tmp_path, STORED), 0, SIZE)
    assert all(Path(path).stat().st_size == 10 * STORED for path in others)
