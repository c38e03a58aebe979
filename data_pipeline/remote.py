"""What storage.py does, for remote files: the one door to fsspec, with our own time limits and retries.

What a flaky network does is tried again (for about 90 s, and up to TIMEOUT_S for each attempt that gets no answer); what trying
again cannot change, a missing file or refused credentials, is a DataError at once. Errors never show a url's user or query.
"""

import concurrent.futures
import functools
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from data_pipeline.errors import DataError

CREDENTIALS = {  # by scheme: where they are looked for
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`; FSSPEC_GS_TOKEN=anon for a public bucket",
    "http": "a signed url, or ~/.netrc",
    "https": "a signed url, or ~/.netrc",
    "hf": "HF_TOKEN or `hf auth login`",
}
TIMEOUT_S = 60.0  # of one attempt, and
SLOWEST_BYTES_PER_S = 1_000_000  # what it may take longer for large ranges
ATTEMPTS = 10
FIRST_BACKOFF_S = 0.5  # doubles with each attempt
LONGEST_BACKOFF_S = 30.0
WARN_EVERY_S = 10.0
POLL_S = 0.2  # between looks at whether a read is still wanted
TRANSIENT_STATUS = (408, 425, 429)  # the only HTTP 4xx that time may heal

T = TypeVar("T")
log = logging.getLogger(__name__)
_lock = threading.Lock()
_last_warning_s = -WARN_EVERY_S
_thread = threading.local()  # .unwanted: the event that this thread's reads end at
_systems: dict[str, Any] = {}  # one per process: fsspec's own cache has one, with its connections, per thread


def obey(unwanted: threading.Event) -> None:
    """From now on reads of this thread end soon after the event is set: nobody wants them any more."""
    _thread.unwanted = unwanted


def scheme_of(url: str) -> str:
    """`s3` of `s3://...`; empty for a path."""
    found = re.match(r"([^/]+)://", url)
    return found[1] if found else ""


def shown(url: str) -> str:
    """The url as it may be printed: without user and password, and under http(s) without query, which may sign."""
    if scheme_of(url) in ("", "file"):
        return url
    url = re.sub(r"://[^/?#]*@", "://", url)
    return re.split("[?#]", url)[0] if url.startswith("http") else url


def exists(url: str) -> bool:
    try:
        _retry(url, functools.partial(_operate, url, "info"))
    except _MissingError:
        return False
    return True


def size(url: str) -> int:
    found = _retry(url, functools.partial(_operate, url, "info"))["size"]
    if found is None:
        raise DataError(f"{shown(url)}: the server does not say how large it is (no Content-Length); serve plain files")
    return int(found)


def read(url: str, start: int, end: int) -> bytes:
    """Exactly the bytes [start, end), start < end."""
    return _retry(url, functools.partial(_read_once, url, start, end))


def read_all(url: str) -> bytes:
    """The whole file; the server need not know ranges."""
    length = size(url)
    content = _retry(url, functools.partial(_operate, url, "cat_file", num_bytes=length))
    if len(content) != length:
        raise DataError(f"{shown(url)}: {len(content)} bytes came, the server says it has {length}; was it being replaced?")
    return content


def write(url: str, content: bytes) -> None:
    if scheme_of(url) == "hf":
        raise DataError(f"{shown(url)}: hf:// is only read; write to a local folder and send it with `hf upload`")
    _retry(url, functools.partial(_operate, url, "pipe_file", content, num_bytes=len(content)))


def too_short(url: str, found: int, end: int) -> DataError:
    """The error where a file ends before the bytes asked for."""
    return DataError(
        f"{shown(url)}: it ends at byte {found}, but bytes up to {end} were asked for; it is truncated or was replaced: "
        "copy it anew, or write a new manifest with `vitscale data index`"
    )


class _MissingError(DataError):
    """There is no such remote file."""


def _read_once(url: str, start: int, end: int) -> bytes:
    content = _operate(url, "cat_file", start=start, end=end, num_bytes=end - start)
    if len(content) > end - start:
        raise _no_ranges(url)
    if len(content) < end - start:
        if (found := size(url)) < end:
            raise too_short(url, found, end)
        raise ConnectionError(f"{len(content)} of {end - start} bytes came")
    return content


def _operate(url: str, operation: str, *args: Any, num_bytes: int = 0, **options: Any) -> Any:
    """One attempt at an operation of the url's file system, on fsspec's own thread so that it can time out."""
    scheme, _, path = url.partition("://")
    if scheme == "hf":  # as https: its own file system asks the hub several times per read, and cannot time out
        from huggingface_hub.utils import build_hf_headers

        path, options["headers"] = _hf_to_http(url), build_hf_headers()
    elif scheme in ("http", "https"):
        path = url
    with _lock:
        system = _systems.get(scheme) or _systems.setdefault(scheme, _connect(scheme))
    timeout_s = TIMEOUT_S + num_bytes / SLOWEST_BYTES_PER_S
    return _result(system.loop, getattr(system, f"_{operation}")(path, *args, **options), timeout_s)


def _result(loop: Any, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    import asyncio  # local files do not need it, and it takes its time

    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout_s), loop)
    try:
        while not concurrent.futures.wait([future], POLL_S).done:
            _pause(0)
    finally:
        future.cancel()
    return future.result()


def _pause(seconds: float) -> None:
    unwanted = getattr(_thread, "unwanted", None)
    if unwanted is None:
        time.sleep(seconds)
    elif unwanted.wait(seconds):
        raise DataError("the read was given up, because whoever wanted it is gone")


def _connect(scheme: str) -> Any:
    import fsspec

    if scheme == "gs":
        from gcsfs.core import GCSFileSystem  # the registered one first asks for each bucket's kind, by gRPC

        return GCSFileSystem(skip_instance_cache=True)
    if scheme == "s3":
        system = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs={"retries": {"total_max_attempts": 1}})
        system.retries = 1  # we do it
        return system
    # trust_env: proxies and ~/.netrc; encoded: a signed url is sent as it is
    client = {"raise_for_status": _refuse_whole_file, "headers": {"Accept-Encoding": "identity"}, "trust_env": True}
    return fsspec.filesystem("http", skip_instance_cache=True, encoded=True, client_kwargs=client)


@functools.lru_cache(65_536)
def _hf_to_http(url: str) -> str:
    from huggingface_hub import HfFileSystem, hf_hub_url

    hub = HfFileSystem()
    place: Any = hub.resolve_path(url)
    if not hasattr(place, "repo_id"):
        raise DataError(f"{url}: buckets of the hub are not read; use a dataset repository, hf://datasets/USER/NAME/...")
    where = {"repo_type": place.repo_type, "revision": place.revision, "endpoint": hub.endpoint}
    return hf_hub_url(place.repo_id, place.path_in_repo, **where)


async def _refuse_whole_file(response: Any) -> None:
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
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except DataError:
            raise
        except ImportError:
            raise DataError(
                f"{shown(url)}: a package that reads {scheme_of(url)}:// is missing; pip install 'vitscale[remote]'"
            ) from None
        except Exception as error:
            causes = _causes(error)
            found = _describe(causes)
            if hopeless := _hopeless(url, causes, found):
                raise hopeless from None
            if number == ATTEMPTS:
                raise DataError(f"{shown(url)}: {found}, {ATTEMPTS} times; is the server up and the network well?") from None
            _warn(url, found)
        _pause(min(FIRST_BACKOFF_S * 2 ** (number - 1), LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0))
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
        status = getattr(response, "status_code", None) or getattr(error, "status", None)
        if type(error).__module__.startswith("gcsfs"):  # elsewhere `code` is none of HTTP's: aiohttp has 400 for a cut body
            status = getattr(error, "code", None)
        if status:
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
    if status in (401, 403) or (status is None and _is_refusal(root)):
        return DataError(f"{name}: may not be accessed ({found}); credentials come from {CREDENTIALS[scheme_of(url)]}")
    if status == 416:
        return DataError(f"{name}: it ends before the bytes asked for; it is truncated or was replaced: copy it anew")
    client_error = status is not None and 400 <= status < 500 and status not in TRANSIENT_STATUS
    misuse = isinstance(root, ValueError) or (type(root).__module__ == "builtins" and not isinstance(root, OSError))
    if client_error or (status is None and misuse):
        return DataError(f"{name}: the request cannot succeed ({found}); check the url and what the server allows")
    return None


def _is_refusal(error: BaseException) -> bool:
    """Missing or refused credentials where no HTTP status says so; gcsfs raises a bare OSError("Forbidden: ...")."""
    named = re.search("Credential|Profile|Token", type(error).__name__)
    return bool(named) or isinstance(error, PermissionError) or str(error).startswith("Forbidden")


def _warn(url: str, found: str) -> None:
    """For all urls together not more often than WARN_EVERY_S."""
    global _last_warning_s
    if time.monotonic() >= _last_warning_s + WARN_EVERY_S:
        _last_warning_s = time.monotonic()
        log.warning("%s: %s; trying again, %d times at most", shown(url), found, ATTEMPTS - 1)
