"""Byte ranges of files anywhere: local ones by descriptor, the others by data_pipeline/remote.py.

A url is a local path, taken literally (`#`, `?`, `%` and spaces are part of the name), file://, or one that `remote` reads.
Everything here may be called from any number of threads.
"""

import functools
import os
import posixpath
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from data_pipeline import remote
from data_pipeline.errors import DataError

OPEN_FILES = 256  # local descriptors kept; well below the usual limit of 1,024

T = TypeVar("T")


@functools.lru_cache(OPEN_FILES)
def is_remote(url: str) -> bool:
    """Whether it takes a network; DataError for `pipe:` and schemes that are not read."""
    scheme = "pipe" if url.startswith("pipe:") else remote.scheme_of(url)
    if scheme not in (*remote.CREDENTIALS, "file", ""):
        raise DataError(
            f"{remote.shown(url)}: {scheme}: is not read; allowed are local paths, file://, "
            f"{', '.join(f'{name}://' for name in remote.CREDENTIALS)} (a local file of such a name: put ./ before it)"
        )
    return scheme in remote.CREDENTIALS


def join(base: str, relative: str) -> str:
    """What the file at `base` (a manifest) calls `relative`: a url or absolute path as it is, others beside `base`.

    Relative names are names, not urls: under http(s) they are quoted, and a query of `base` is not handed on.
    """
    if remote.scheme_of(relative) or relative.startswith("/"):
        return relative
    if not is_remote(base):
        return str(local_path(base).parent / relative)
    scheme, _, place = base.partition("://")
    if scheme in ("http", "https"):
        place, relative = place.partition("?")[0], quote(relative)
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(place), relative))}"


def local_path(url: str) -> Path:
    """The path of a url that is not remote; file:// as `Path.as_uri` writes it, with %20 for a space."""
    path = unquote(url.removeprefix("file://")) if url.startswith("file://") else url
    if "\0" in path:
        raise DataError(f"{path!r}: holds a zero byte, which no name of a file may")
    return Path(path)


def exists(url: str) -> bool:
    """Whether there is such a file."""
    return remote.exists(url) if is_remote(url) else local_path(url).is_file()


def size(url: str) -> int:
    """Bytes of the file."""
    return remote.size(url) if is_remote(url) else _local(url, lambda: local_path(url).stat().st_size)


def read(url: str, start: int, end: int) -> bytes:
    """Exactly the bytes [start, end), else DataError.

    A local file stays open for the next reads: one that was replaced meanwhile is read as it was, unnoticed.
    """
    assert 0 <= start <= end
    if start == end:
        return b""
    if is_remote(url):
        return remote.read(url, start, end)
    content = _local(url, lambda: _open(url).read(start, end - start))
    if len(content) < end - start:
        raise remote.too_short(url, start + len(content), end)
    return content


def read_all(url: str) -> bytes:
    """The whole file."""
    return remote.read_all(url) if is_remote(url) else _local(url, local_path(url).read_bytes)


def will_need(url: str, start: int, end: int) -> None:
    """Have the kernel read [start, end) of a local file ahead; returns at once. Nothing for remote ones."""
    if not is_remote(url):
        _local(url, lambda: _open(url).will_need(start, end))


def write(url: str, content: bytes) -> None:
    """Create or replace the file, whole or not at all; a local one survives a power cut. Folders are made."""
    if is_remote(url):
        remote.write(url, content)
    else:
        _local(url, lambda: replace(local_path(url), content))


class _OpenFile:
    """A descriptor that lives as long as someone holds it: when others push it out, a read in progress still ends well."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, length: int) -> bytes:
        """By pread, not a map: it waits for the disk without the GIL, and a file cut short is a short read, not a SIGBUS."""
        content = os.pread(self.number, length, start)
        while len(content) < length and (more := os.pread(self.number, length - len(content), start + len(content))):
            content += more  # Linux reads at most 2 GiB at a time
        return content

    def will_need(self, start: int, end: int) -> None:
        os.posix_fadvise(self.number, start, end - start, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(OPEN_FILES)
def _open(url: str) -> _OpenFile:
    return _OpenFile(local_path(url))


def replace(path: Path, content: bytes) -> None:
    """`write` for a path, with the errors of the system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _local(url: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        raise DataError(f"{url}: {error.strerror or error}; check the path, or copy the file anew") from None
