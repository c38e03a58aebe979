"""Read every byte of a data set and say what is wrong with it, a shard at a time in each of several processes."""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal.isal_zlib import crc32

from data_pipeline import storage
from data_pipeline.decode import decode, size
from data_pipeline.errors import DataError
from data_pipeline.index import Entry, decode_index, scan
from data_pipeline.labels import Labels
from data_pipeline.manifest import Manifest, Row
from data_pipeline.pool import in_processes
from data_pipeline.remote import shown
from data_pipeline.shardlist import local_copy, sha256
from data_pipeline.stream import Shards

MEND = "copy it anew, or write a new manifest with `vitscale data index`"


class Problem(NamedTuple):
    """What is wrong, and where; without a key it is about the whole shard."""

    shard: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.shard}: {f'sample {self.key}: ' if self.key else ''}{self.text}"


@dataclass
class Report:
    """What was found in one shard (at the end: among the keys of all shards)."""

    shard: str
    problems: list[Problem] = field(default_factory=list)
    # By sample; none where the index does not describe the shard.
    key_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    def add(self, text: str, key: str = "") -> None:
        self.problems.append(Problem(self.shard, key, text.removeprefix(f"{self.shard}: ")))

    def add_first(self, found: list[tuple[str, str]]) -> None:
        """(key, what is wrong) of samples that are likely to be wrong together: a line about the first counts the others."""
        for key, text in found[:1]:
            self.add(text + (f"; and {len(found) - 1} samples more" if found[1:] else ""), key)

    def compare(self, stated: Row, **found: object) -> None:
        """What was found with what the manifest states."""
        if differences := stated.differences(**found):
            self.add(f"is not as its manifest says: {differences}; {MEND}")

    @contextmanager
    def noting(self, key: str = "") -> Iterator[None]:
        """An error in here is a problem, not the end."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.add(str(error), key)


def check(manifest: Manifest, workers: int | None, num_classes: int | None = None, quick: bool = False) -> Iterator[Report]:
    """A report per shard, in order, and one about keys that come again. Holds 8 bytes per sample, 25 at the end.

    Labels lie below `num_classes`, by default below the length of the class list, if there is one. `quick`: of images only
    the headers are read, none is decoded.
    """
    function = functools.partial(check_shard, num_classes=num_classes or len(manifest.classes), quick=quick)
    tasks = [(manifest.row(number), manifest.index(number)) for number in range(len(manifest.urls))]
    hashes = np.arange(manifest.num_samples, dtype=np.uint64)  # what has no hash differs from all others
    ends = np.cumsum(manifest.samples).tolist()
    for end, report in zip(ends, in_processes(function, tasks, workers, "shards"), strict=True):
        hashes[end - len(report.key_hashes) : end] = report.key_hashes
        yield report
    yield repeated_keys(manifest, hashes)


def check_shard(task: tuple[Row, str], num_classes: int, quick: bool) -> Report:
    """Everything about one shard: what the manifest says of it, and where its index lies."""
    stated, index = task
    report, listed, scanned = Report(shown(stated.url)), None, None
    with report.noting():
        content = storage.read_all(index)
        report.compare(stated, index_bytes=len(content), index_crc32=crc32(content))
        listed = decode_index(content, shown(index))
        _check_labels(listed, stated, num_classes, report)
    with report.noting(), local_copy(stated.url) as path:
        report.compare(stated, bytes=path.stat().st_size, sha256=sha256(path))
        with report.noting():
            scanned = list(scan(path, Labels("none"), report.shard))  # labels are those of the index, whose CRC-32 is right
        if listed is not None and scanned is not None:
            _compare(listed, scanned, report)
            keys = [entry.key for entry in listed]
            if keys == [entry.key for entry in scanned] and len(keys) == stated.samples:
                hashes = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)  # in every process the same
                report.key_hashes = np.frombuffer(b"".join(hashes), "<u8")
        _check_images(path, listed or scanned or [], quick, report)
    return report


def _check_labels(listed: list[Entry], stated: Row, num_classes: int, report: Report) -> None:
    """The samples of the index against the manifest and the classes."""
    labels = [entry.label for entry in listed] or [0]
    report.compare(stated, samples=len(listed), label_min=min(labels), label_max=max(labels))
    if num_classes:
        text = f"label {{}} (-1 = none) is not within 0..{num_classes - 1}"
        report.add_first([(e.key, text.format(e.label)) for e in listed if not 0 <= e.label < num_classes])


def _compare(listed: list[Entry], scanned: list[Entry], report: Report) -> None:
    """The index against the tar, but for checksums, which are compared image by image."""
    if len(listed) != len(scanned):
        report.add(f"its index lists {len(listed)} samples, {len(scanned)} are in it; {MEND}")
        return
    pairs = [(b.key, a, b._replace(crc32=a.crc32, label=a.label)) for a, b in zip(listed, scanned, strict=True)]
    report.add_first([(key, f"its index says {a}, the tar {b}; {MEND}") for key, a, b in pairs if a != b])


def _check_images(path: Path, entries: list[Entry], quick: bool, report: Report) -> None:
    """Each image where the loader will look for it: its bytes, and what they hold."""
    end = path.stat().st_size
    report.add_first([(e.key, "its image lies behind the end of the shard") for e in entries if e.offset + e.size > end])
    with path.open("rb") as file:
        for entry in entries:
            if entry.offset + entry.size > end:
                continue
            with report.noting(entry.key):
                file.seek(entry.offset)
                image = file.read(entry.size)
                if crc32(image) != entry.crc32:
                    raise DataError("its bytes differ from the index (CRC-32)")
                (size if quick else decode)(image)


def repeated_keys(manifest: Manifest, hashes: np.ndarray) -> Report:
    """Keys that an earlier sample has, found by 64-bit hashes and confirmed by the keys themselves."""
    shards, report = Shards(manifest), Report(manifest.name)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    for before, number in zip(order[again].tolist(), order[again + 1].tolist(), strict=True):
        if (key := shards.key(number)) == shards.key(before):
            first, second = (shown(shards.place(sample).url) for sample in (before, number))
            report.problems.append(Problem(second, key, f"the key came before, in {first}"))
    return report
