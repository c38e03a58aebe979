"""A local copy of what was read from remote files, in aligned chunks, below a limit of bytes, shared by processes.

A chunk is a file of its own: content, then CRC-32. Reading takes no lock: a chunk that is damaged, short or just evicted counts
as missing, one that is open stays readable. Writing, one chunk at a time over all processes, locks the file `total`, which
states the bytes stored. It is raised before a chunk appears and lowered after one has gone, so that a kill leaves it too high
at worst, and the next eviction counts anew. A killed writer's file `partial` is overwritten.
"""

import contextlib
import fcntl
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from isal.isal_zlib import crc32

from data_pipeline.errors import DataError

CHUNK_BYTES = 4 << 20
CRC_BYTES = 4
TOTAL_DIGITS = 20
FREED_AT_ONCE = 1 / 16  # of the limit: looking at every chunk to find the oldest is worth it only for many

log = logging.getLogger(__name__)


class Cache:
    """Chunks of named objects under `directory`, which it owns; least recently used ones go. Safe for threads and processes.

    `limit_bytes` counts the chunks' files. The directory should lie on a local disk.
    """

    def __init__(self, directory: str | Path, limit_bytes: int) -> None:
        if limit_bytes < CHUNK_BYTES + CRC_BYTES:
            raise DataError(
                f"cache {directory}: a limit of {limit_bytes} bytes holds no chunk; give at least {CHUNK_BYTES + CRC_BYTES}, "
                "better what an epoch reads, or leave the cache out"
            )
        self.directory, self.limit_bytes = Path(directory), limit_bytes
        self._full_disk = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._locked() as total:
                _state(total, self._evict_to(limit_bytes))
        except OSError as error:
            raise DataError(f"cache {directory}: {error.strerror}; give a directory that can be written") from None

    def read(self, name: str, size: int, start: int, end: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """The bytes [start, end) of an object of `size` bytes; `fetch(start, end)` reads what is missing, each gap at once.

        `name` says which content it is (a digest, not only a url): the same name must never mean other bytes.
        Those who miss the same chunk at the same time each fetch it.
        """
        assert 0 <= start <= end <= size
        numbers = range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES))
        chunks = {n: self._load(self._path(name, n), min(CHUNK_BYTES, size - n * CHUNK_BYTES)) for n in numbers}
        for missing, gap in itertools.groupby(numbers, lambda number: chunks[number] is None):
            if missing:
                chunks.update(self._fetch(name, size, list(gap), fetch))
        places = ((number * CHUNK_BYTES, chunk) for number, chunk in chunks.items() if chunk)
        return b"".join(chunk[max(start - first, 0) : end - first] for first, chunk in places)

    def forget(self, name: str, start: int, end: int) -> None:
        """Remove the chunks of the bytes [start, end): they hold, as they came, something else than the object."""
        for number in range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES)):
            with contextlib.suppress(OSError):  # never stored, or evicted
                self._path(name, number).unlink()

    def _fetch(self, name: str, size: int, gap: list[int], fetch: Callable[[int, int], bytes]) -> dict[int, memoryview]:
        content = memoryview(fetch(gap[0] * CHUNK_BYTES, min((gap[-1] + 1) * CHUNK_BYTES, size)))
        chunks = {number: content[place * CHUNK_BYTES :][:CHUNK_BYTES] for place, number in enumerate(gap)}
        for number, chunk in chunks.items():
            self._store(self._path(name, number), chunk)
        return chunks

    def _path(self, name: str, number: int) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.directory / digest[:2] / f"{digest[2:]}-{number}.chunk"

    def _load(self, path: Path, length: int) -> memoryview | None:
        """The chunk, now the most recently used one, or None."""
        try:
            stored = memoryview(path.read_bytes())
        except OSError:
            return None
        chunk = stored[:length]
        intact = stored[length:] == _crc(path, chunk)
        with contextlib.suppress(OSError):  # evicted meanwhile
            os.utime(path) if intact else path.unlink()
        return chunk if intact else None

    def _store(self, path: Path, chunk: memoryview) -> None:
        """Write a chunk, room made for it; a disk that is full first is no reason to stop a training."""
        if self._full_disk:
            return
        try:
            with self._locked() as total:
                if not path.exists():
                    self._write(total, path, b"".join((chunk, _crc(path, chunk))))
        except OSError as error:
            self._full_disk = True
            log.warning("cache %s: %s; going on without adding to it", self.directory, error.strerror)

    def _write(self, total: int, path: Path, stored: bytes) -> None:
        room = self.limit_bytes - len(stored)
        text = os.pread(total, TOTAL_DIGITS, 0)
        before = int(text) if text.isdigit() else self.limit_bytes  # in doubt it is counted anew
        if before > room:
            before = self._evict_to(min(room, int(self.limit_bytes * (1 - FREED_AT_ONCE))))
        _state(total, before + len(stored))
        partial = self.directory / "partial"
        try:
            partial.write_bytes(stored)
            path.parent.mkdir(exist_ok=True)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _evict_to(self, limit_bytes: int) -> int:
        """Remove the chunks longest unused until the rest fits; the bytes that are left. Under the lock."""
        found = []
        for path in self.directory.glob("??/*.chunk"):
            with contextlib.suppress(FileNotFoundError):  # damaged, and removed by its reader
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The open file `total`, locked against every other thread and process."""
        file = os.open(self.directory / "total", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def _crc(path: Path, chunk: memoryview) -> bytes:
    """Also of the chunk's name, so that one in another's place is noticed."""
    return crc32(chunk, crc32(path.name.encode())).to_bytes(CRC_BYTES, "little")


def _state(total: int, count: int) -> None:
    os.pwrite(total, b"%0*d" % (TOTAL_DIGITS, count), 0)
