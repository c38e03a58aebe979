"""Tars that exist -> an index for each and a manifest of all: the way in for shards that another program wrote."""

import functools
import hashlib
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from braceexpand import braceexpand
from isal.isal_zlib import crc32

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.index import encode_index, scan
from data_pipeline.labels import Labels
from data_pipeline.manifest import Manifest, Row, from_columns, index_beside, write_manifest
from data_pipeline.pool import in_processes
from data_pipeline.remote import shown

MAX_SHARDS = 1_000_000
DOWNLOAD_BYTES = 1 << 26  # per request


def list_shards(
    shards: Sequence[str | Path], manifest: str | Path, classes: Sequence[str] = (), rule: str = "auto", workers: int | None = 1
) -> Manifest:
    """Read every shard, local or remote, write its index and then the manifest. `rule`: where labels stand, see labels.py.

    An index lies beside its shard where all their folders can be written to, else in a folder beside the manifest.
    """
    location, urls = _absolute(str(manifest)), [_absolute(str(shard)) for shard in shards]
    local = not any(map(storage.is_remote, urls))
    beside = local and all(os.access(folder, os.W_OK) for folder in {Path(url).parent for url in urls})
    index_dir = "" if beside else f"{Path(location.partition('?')[0]).stem}.index"
    tasks = [
        (url, index_beside(url) if beside else storage.join(location, f"{index_dir}/{number:06d}.idx"))
        for number, url in enumerate(urls)
    ]
    index = functools.partial(index_shard, labels=Labels(rule, classes))
    rows = list(in_processes(index, tasks, workers, "index"))
    if not any(row.samples for row in rows):
        raise DataError(f"{', '.join(map(shown, urls[:3]))}: no samples in them; nothing to list")
    return list_rows(rows, location, classes, index_dir)


def _absolute(url: str) -> str:
    if url.startswith("pipe:"):
        raise DataError(
            f"{url}: the output of a command cannot be read at random, which training needs; copy it into shards with "
            f"`vitscale data build --allow-pipe {url!r}`"
        )
    return url if storage.is_remote(url) else str(storage.local_path(url).absolute())


def list_rows(rows: Sequence[Row], location: str, classes: Sequence[str], index_dir: str = "") -> Manifest:
    """Write the manifest of shards that have their indexes."""
    folder = location.rpartition("/")[0] + "/"
    columns = zip(*(row._replace(url=row.url.removeprefix(folder)) for row in rows), strict=True)
    manifest = from_columns(location, columns, classes=list(classes), index_dir=index_dir)
    write_manifest(manifest)
    return manifest


def index_shard(task: tuple[str, str], labels: Labels) -> Row:
    """Read a shard once and write its index; the task names both."""
    url, destination = task
    with local_copy(url) as path:
        entries = list(scan(path, labels, shown(url)))
        index = encode_index(entries)
        storage.write(destination, index)
        found = [entry.label for entry in entries] or [0]
        size, checksum = path.stat().st_size, sha256(path)
    return Row(url, len(entries), size, checksum, len(index), crc32(index), min(found), max(found))


@contextmanager
def local_copy(shard: str) -> Iterator[Path]:
    """A shard as a local file; a remote one is copied for as long as it is needed."""
    if storage.is_remote(shard):
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            download(shard, file)
            yield Path(file.name)
    elif storage.exists(shard):
        yield storage.local_path(shard)
    else:
        raise DataError(f"{shard}: no such shard; check the path, or copy the file anew")


def download(url: str, file: IO[bytes]) -> None:
    """Copy a remote file."""
    size = storage.size(url)
    for start in range(0, size, DOWNLOAD_BYTES):
        file.write(storage.read(url, start, min(start + DOWNLOAD_BYTES, size)))
    file.flush()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expand(patterns: Sequence[str]) -> list[str]:
    """`train-{000..146}.tar` -> 147 names, as bash and webdataset have it."""
    names: list[str] = []
    for pattern in patterns:
        if "{" not in pattern:
            names.append(pattern)
            continue
        if not len(names) + _num_names(pattern) <= MAX_SHARDS:
            raise DataError(f"{shown(pattern)}: more than {MAX_SHARDS:,} names; list fewer shards, of about 1 GB each")
        try:
            names += braceexpand(pattern)
        except ValueError:
            raise DataError(
                f"{shown(pattern)}: its braces are not balanced; write {{000..146}}, and \\{{ for a brace that is part "
                "of a name"
            ) from None
    return names


def _num_names(pattern: str) -> float:
    """How many names braces stand for, counted from the innermost outwards without making any."""
    while found := re.search(r"\{([^{}]*)\}", pattern):
        ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?", found[1])
        if ends:
            count = abs(float(ends[2]) - float(ends[1])) // max(float(ends[3] or 1), 1) + 1
        else:
            count = sum(map(_product, found[1].split(",")))
        pattern = f"{pattern[: found.start()]}\0{count}\0{pattern[found.end() :]}"
    return _product(pattern)


def _product(text: str) -> float:
    return math.prod(map(float, re.findall("\0([^\0]*)\0", text)))
