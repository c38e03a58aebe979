"""Published models from MLflow into a directory: private, verified, taken up again where a killed pull was."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitscale import fault
from vitscale.artifacts import Artifacts
from vitscale.errors import ModelError
from vitscale.registry import Version, resolve
from vitscale.sums import SUMS, read_sums, sha256, verify
from vitscale.tracking import connect, mlflow_errors

NAME = re.compile(r"\w[\w.-]*")  # of a file that may be written: no path, nothing hidden
NO_ROOM = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\]")


def pull(source: str, uri: str, to: Path) -> Version:
    """Download the model that a URI names into the directory `to`, verified; `to` is complete or untouched."""
    version = resolve(source, uri)
    fetch(version, uri, to)
    return version


def fetch(version: Version, uri: str, to: Path) -> None:
    """`pull` of a version. Files that a killed call, or one without an answer, has brought are not fetched again."""
    if to.is_dir() and _is_there(version, to):
        return
    if to.is_symlink() or to.is_file():
        raise ModelError(f"{to}: is no directory; choose another name, or remove it")
    if to.exists() and any(to.iterdir()):
        raise ModelError(f"{to}: exists and is not {version.uri}; choose another directory or remove it")
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.absolute().with_name(f".{to.name}.{version.model_id}.partial")
    with _alone(partial):
        if _is_there(version, to):  # another process was faster
            return
        try:
            with mlflow_errors(uri):
                _fill(partial, version, Artifacts(connect(uri), version.model_id))
        except ModelError:
            shutil.rmtree(partial)
            raise
        if to.exists():
            to.rmdir()
        partial.rename(to)


def _is_there(version: Version, to: Path) -> bool:
    return to.exists() and not verify(to) and version.digest in (None, sha256(to / SUMS))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Own the folder, which no other user may look into; whoever comes second waits."""
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(descriptor, 0o700)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fill(folder: Path, version: Version, files: Artifacts) -> None:
    sizes = files.sizes()
    sums = _sums(folder, version, files, sizes)
    wanted = {name: expected for name, expected in sums.items() if not _is_sound(folder / name, expected)}
    needed, free = sum(sizes.get(name, 0) for name in wanted), shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(f"{folder.parent}: {needed / 2**20:,.1f} MiB do not fit into {free / 2**20:,.1f} MiB; make room")
    for name, expected in wanted.items():
        _fetch(files, name, folder)
        fault.at("pull.file")
        if not _is_sound(folder / name, expected):
            _fetch(files, name, folder)  # the way may have been at fault
        if not _is_sound(folder / name, expected):
            raise ModelError(f"{version.uri}: {name} differs from its SHA-256; the stored copy is damaged, publish it again")


def _sums(folder: Path, version: Version, files: Artifacts, sizes: dict[str, int]) -> dict[str, str]:
    """What the model consists of, by its own list, which must be the registered one."""
    if SUMS not in sizes:
        raise ModelError(f"{version.uri}: no {SUMS} stored: half uploaded, or not by vitscale; publish it again")
    _fetch(files, SUMS, folder)
    if version.digest not in (None, sha256(folder / SUMS)):
        raise ModelError(f"{version.uri}: {SUMS} is not the registered one; the stored copy is damaged, publish it again")
    sums = read_sums(folder)
    if strange := [name for name in sums if not NAME.fullmatch(name)]:
        raise ModelError(f"{version.uri}: holds a file called {strange[0]!r}, which could lie anywhere; do not use that model")
    if missing := sorted(sums.keys() - sizes.keys()):
        raise ModelError(f"{version.uri}: {', '.join(missing)} missing; the stored copy is damaged, publish it again")
    return sums


def _fetch(files: Artifacts, name: str, folder: Path) -> None:
    try:
        files.fetch(name, folder)
    except Exception as error:  # MLflow hands on a full disk as text
        if NO_ROOM.search(str(error)):
            raise ModelError(f"{folder.parent}: no room for {name} ({' '.join(str(error).split())}); make room") from error
        raise


def _is_sound(path: Path, expected: str) -> bool:
    return path.is_file() and sha256(path) == expected
