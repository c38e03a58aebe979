"""Byte ranges of files anywhere: the one door to fsspec, and to local files by descriptor.

A url is a local path (taken literally: `#`, `?`, `%` and spaces are names), file://, or one of REMOTE. Everything here may be
called from any number of threads. What a flaky network does is tried again, ATTEMPTS times over about two minutes; what trying
again cannot change, a missing file or refused credentials, is a DataError at once. Errors never show a url's user or query.
"""

import functools
import logging
import os
import posixpath
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from data_pipeline.errors import DataError

if TYPE_CHECKING:
    from aiohttp import ClientResponse

REMOTE = ("s3", "gs", "http", "https", "hf")
OPEN_FILES = 256  # local descriptors kept; well below the usual limit of 1,024
READ_TIMEOUT_S = 60.0  # of one attempt, and
SLOWEST_BYTES_PER_S = 1_000_000  # what it may take longer for large ranges
ATTEMPTS = 10
FIRST_BACKOFF_S = 0.5  # doubles with each attempt
LONGEST_BACKOFF_S = 30.0
WARN_EVERY_S = 10.0
TRANSIENT_STATUS = (408, 425, 429)  # the only HTTP 4xx that time may heal
CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`; FSSPEC_GS_TOKEN=anon for a public bucket",
    "http": "a signed url, or ~/.netrc",
    "https": "a signed url, or ~/.netrc",
    "hf": "HF_TOKEN or `hf auth login`",
}

T = TypeVar("T")
log = logging.getLogger(__name__)
_lock = threading.Lock()
_warned: set[str] = set()  # grows by one each WARN_EVERY_S at most
_last_warning_s = -WARN_EVERY_S


def is_remote(url: str) -> bool:
    """Whether it takes a network; DataError for `pipe:` and schemes that are not read."""
    scheme = _scheme(url)
    if url.startswith("pipe:") or scheme not in (*REMOTE, "file", ""):
        raise DataError(
            f"{shown(url)}: urls of {scheme or 'pipe'!r} are not read; allowed are local paths, file://, "
            f"{', '.join(f'{name}://' for name in REMOTE)} (a local file of such a name: put ./ before it)"
        )
    return scheme in REMOTE


def join(base: str, relative: str) -> str:
    """What the file at `base` (a manifest) calls `relative`: a url or absolute path as it is, others beside `base`.

    Relative names are names, not urls: under http(s) they are quoted, and a query of `base` is not handed on.
    """
    if _scheme(relative) or relative.startswith("/"):
        return relative
    if not is_remote(base):
        return str(local_path(base).parent / relative)
    scheme, _, place = base.partition("://")
    if scheme in ("http", "https"):
        place, relative = place.partition("?")[0], quote(relative)
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(place), relative))}"


def local_path(url: str) -> Path:
    """The path of a url that is not remote; file:// as `Path.as_uri` writes it, with %20 for a space."""
    return Path(unquote(url.removeprefix("file://"))) if url.startswith("file://") else Path(url)


def shown(url: str) -> str:
    """The url as it may be printed: without user, password, query (which signs) and fragment."""
    if _scheme(url) in ("", "file"):
        return url
    return re.sub(r"://[^/@?#]*@", "://", url).partition("?")[0].partition("#")[0]


def exists(url: str) -> bool:
    """Whether there is such a file."""
    if not is_remote(url):
        return local_path(url).is_file()
    try:
        _retry(url, functools.partial(_operate, url, "info"))
    except _MissingError:
        return False
    return True


def size(url: str) -> int:
    """Bytes of the file."""
    if not is_remote(url):
        return _local(url, lambda path: path.stat().st_size)
    found = _retry(url, functools.partial(_operate, url, "info"))["size"]
    if found is None:
        raise DataError(f"{shown(url)}: the server does not say how large it is (no Content-Length); serve plain files")
    return int(found)


def read(url: str, start: int, end: int) -> bytes:
    """Exactly the bytes [start, end).

    A local file stays open for the next reads: one that was replaced meanwhile is read as it was, unnoticed. One that is
    shorter than asked is a DataError.
    """
    assert 0 <= start <= end
    if start == end:
        return b""
    if is_remote(url):
        return _retry(url, functools.partial(_read_remote, url, start, end))
    content = _local(url, lambda path: _pread(_open(path), start, end - start))
    if len(content) < end - start:
        raise _shorter(url, start + len(content), end)
    return content


def read_all(url: str) -> bytes:
    """The whole file."""
    if not is_remote(url):
        return _local(url, Path.read_bytes)
    length = size(url)
    content = _retry(url, functools.partial(_operate, url, "cat_file", num_bytes=length))
    if len(content) != length:
        raise DataError(f"{shown(url)}: {len(content)} bytes came, the server says it has {length}; was it being replaced?")
    return content


def will_need(url: str, start: int, end: int) -> None:
    """Have the kernel read [start, end) of a local file ahead; returns at once. Nothing for remote ones."""
    if not is_remote(url):
        _local(url, lambda path: os.posix_fadvise(_open(path).number, start, end - start, os.POSIX_FADV_WILLNEED))


def write(url: str, content: bytes) -> None:
    """Create or replace the file: it is there complete or not at all (locally: durable too). Folders are made."""
    if not is_remote(url):
        _local(url, lambda path: _replace(path, content))
    elif _scheme(url) == "hf":
        raise DataError(f"{shown(url)}: hf:// is only read; write to a local folder and send it with `hf upload`")
    else:
        _retry(url, functools.partial(_operate, url, "pipe_file", content, num_bytes=len(content)))


def close() -> None:
    """Let go of every file and connection; they open again when needed."""
    _open.cache_clear()
    _filesystem.cache_clear()


class _OpenFile:
    """A descriptor that lives as long as someone holds it: dropped from the cache, a read in progress still ends well."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(OPEN_FILES)
def _open(path: Path) -> _OpenFile:
    return _OpenFile(path)


def _pread(file: _OpenFile, start: int, length: int) -> bytes:
    """pread, not a map: it reads without the GIL, and a file cut short meanwhile is a short read, not a SIGBUS."""
    content = os.pread(file.number, length, start)
    while len(content) < length and (more := os.pread(file.number, length - len(content), start + len(content))):
        content += more  # Linux reads at most 2 GiB at a time
    return content


def _replace(path: Path, content: bytes) -> None:
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


def _local(url: str, action: Callable[[Path], T]) -> T:
    try:
        return action(local_path(url))
    except OSError as error:
        raise DataError(f"{url}: {error.strerror or error}; check the path, or copy the file anew") from None


def _scheme(url: str) -> str:
    """`s3` of `s3://...`; empty for a path."""
    found = re.match(r"([^/]+)://", url)
    return found[1] if found else ""


class _MissingError(DataError):
    """There is no such remote file."""


def _shorter(url: str, found: int, end: int) -> DataError:
    return DataError(
        f"{shown(url)}: it ends at byte {found}, but bytes up to {end} were asked for; it is truncated or was replaced: "
        "copy it anew, or write a new manifest with `vitscale data index`"
    )


def _read_remote(url: str, start: int, end: int) -> bytes:
    content = _operate(url, "cat_file", start=start, end=end, num_bytes=end - start)
    if len(content) > end - start:
        raise _no_ranges(url)
    if len(content) < end - start:
        if (found := size(url)) < end:
            raise _shorter(url, found, end)
        raise ConnectionError(f"{len(content)} of {end - start} bytes came")
    return content


def _operate(url: str, operation: str, *args: Any, num_bytes: int = 0, **options: Any) -> Any:
    """One attempt at an operation of the url's file system, on fsspec's own thread so that it can time out."""
    from fsspec.asyn import sync

    scheme = _scheme(url)
    if scheme == "hf":  # as https: its own file system asks the hub several times per read, and cannot time out
        from huggingface_hub.utils import build_hf_headers

        url, options["headers"] = _hf_to_http(url), build_hf_headers()
    with _lock:
        system = _filesystem("http" if scheme in ("https", "hf") else scheme)
    timeout_s = READ_TIMEOUT_S + num_bytes / SLOWEST_BYTES_PER_S
    path = url if scheme in ("http", "https", "hf") else url.partition("://")[2]
    return sync(system.loop, getattr(system, f"_{operation}"), path, *args, timeout=timeout_s, **options)


@functools.cache
def _filesystem(scheme: str) -> Any:
    """One per process: fsspec's own cache has one, with its connections, per thread."""
    import fsspec

    options: dict[str, dict] = {
        "http": {
            "encoded": True,  # a signed url is sent as it is
            "client_kwargs": {
                "raise_for_status": _refuse_whole_file,
                "headers": {"Accept-Encoding": "identity"},
                "trust_env": True,  # proxies and ~/.netrc
            },
        },
        "s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}},
    }
    system = fsspec.filesystem(scheme, skip_instance_cache=True, **options.get(scheme, {}))
    system.retries = 1  # of s3fs; we do it
    return system


@functools.lru_cache(65_536)
def _hf_to_http(url: str) -> str:
    from huggingface_hub import HfFileSystem, hf_hub_url

    hub = HfFileSystem()
    place = hub.resolve_path(url)
    return hf_hub_url(
        place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision, endpoint=hub.endpoint
    )


async def _refuse_whole_file(response: "ClientResponse") -> None:
    """Called by aiohttp before the body is read, which may be a shard of a gigabyte."""
    if response.status == 200 and "Range" in response.request_info.headers:
        response.close()
        raise _no_ranges(str(response.url))


def _no_ranges(url: str) -> DataError:
    return DataError(
        f"{shown(url)}: the server ignores Range and sends the whole file for every block; use one that serves byte ranges "
        "(nginx, Apache, any object store), or copy the shards to a local disk"
    )


def _retry(url: str, attempt: Callable[[], T]) -> T:
    """The result of the first attempt that succeeds."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except DataError:
            raise
        except ImportError:
            raise DataError(
                f"{shown(url)}: a package that reads {_scheme(url)}:// is missing; pip install 'vitscale[remote]'"
            ) from None
        except Exception as error:
            causes = _causes(error)
            found = _describe(causes)
            if hopeless := _hopeless(url, causes, found):
                raise hopeless from None
            if number == ATTEMPTS:
                raise DataError(f"{shown(url)}: {found}, {ATTEMPTS} times; is the server up and the network well?") from None
            _warn(url, found)
        time.sleep(min(FIRST_BACKOFF_S * 2 ** (number - 1), LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what caused it, outermost first: fsspec dresses whatever went wrong as FileNotFoundError."""
    return [error, *_causes(error.__cause__)] if error.__cause__ else [error]


def _status(causes: list[BaseException]) -> int | None:
    """The HTTP status behind an error of botocore (a dictionary), huggingface_hub, aiohttp or gcsfs."""
    for error in causes:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        status = getattr(response, "status_code", None) or getattr(error, "status", None) or getattr(error, "code", None)
        if str(status).isdigit():
            return int(status)
    return None


def _describe(causes: list[BaseException]) -> str:
    """What happened, in words that cannot hold a url."""
    if status := _status(causes):
        return f"HTTP {status}"
    if isinstance(causes[0], TimeoutError):
        return "no answer in time"
    root = causes[-1]
    return (isinstance(root, OSError) and root.strerror) or type(root).__name__


def _hopeless(url: str, causes: list[BaseException], found: str) -> DataError | None:
    """The error to raise where trying again cannot help."""
    status, root, name = _status(causes), causes[-1], shown(url)
    if status == 404 or (status is None and isinstance(root, FileNotFoundError)):
        return _MissingError(f"{name}: does not exist on the server; check the url, or copy the file there")
    # gcsfs raises a bare OSError("Forbidden: ...").
    refused = isinstance(root, PermissionError) or "Credentials" in type(root).__name__ or str(root).startswith("Forbidden")
    if status in (401, 403) or (status is None and refused):
        return DataError(f"{name}: may not be accessed ({found}); credentials come from {CREDENTIALS[_scheme(url)]}")
    if status == 416:
        return DataError(f"{name}: it ends before the bytes asked for; it is truncated or was replaced: copy it anew")
    client_error = status is not None and 400 <= status < 500 and status not in TRANSIENT_STATUS
    if client_error or (status is None and isinstance(root, ValueError | TypeError | NotImplementedError)):
        return DataError(f"{name}: the request is refused ({found}); check the url and what the server allows")
    return None


def _warn(url: str, found: str) -> None:
    """Once per url, and for all urls together not more often than WARN_EVERY_S."""
    global _last_warning_s
    with _lock:
        now = time.monotonic()
        if url in _warned or now < _last_warning_s + WARN_EVERY_S:
            return
        _warned.add(url)
        _last_warning_s = now
    log.warning("%s: %s; trying again, %d times at most", shown(url), found, ATTEMPTS - 1)
