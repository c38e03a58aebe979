"""Read every byte of a data set and say what is wrong with it, a shard at a time in each of several processes."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal.isal_zlib import crc32

from data_pipeline import storage
from data_pipeline.decode import decode, size
from data_pipeline.errors import DataError
from data_pipeline.index import decode_index, encode_index, scan
from data_pipeline.labels import NO_LABEL, Labels
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.pool import in_processes
from data_pipeline.remote import shown
from data_pipeline.shardlist import local_copy, sha256
from data_pipeline.stream import Shards

MEND = "copy it anew, or write a new manifest with `vitscale data index`"
COLUMNS = {
    "samples": "number of samples",
    "bytes": "size",
    "sha256": "SHA-256",
    "index_bytes": "size of the index",
    "index_crc32": "CRC-32 of the index",
    "label_min": "lowest label",
    "label_max": "highest label",
}
COMPARED = ("offset", "size", "lead", "span", "label")  # of the index and the tar; the CRC-32 follows, image by image


class Problem(NamedTuple):
    """What is wrong, and where; without a key it is about the whole shard."""

    shard: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.shard}: {f'sample {self.key}: ' if self.key else ''}{self.text}"


class Checks(NamedTuple):
    """What is asked of the samples."""

    num_classes: int | None = None  # labels lie below it; None: the length of the class list, if there is one
    label: str = "auto"  # rule by which the shards were indexed
    quick: bool = False  # read the images' headers, decode none


class Listing(NamedTuple):
    """The samples of a shard, as its index or its tar has them."""

    rows: np.ndarray  # dtype ROW
    keys: list[str]


@dataclass
class Report:
    """What was found in one shard (at the end: among the keys of all shards)."""

    shard: str
    problems: list[Problem] = field(default_factory=list)
    # By sample; none where the index does not describe the shard.
    key_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    def add(self, text: str, key: str = "") -> None:
        self.problems.append(Problem(self.shard, key, text.removeprefix(f"{self.shard}: ")))

    def add_first(self, wrong: np.ndarray, keys: Sequence[str], say: Callable[[int], str]) -> None:
        """One line for what is likely to be wrong with many samples at once: it speaks of the first and counts the others."""
        if wrong.any():
            first, others = int(wrong.argmax()), int(wrong.sum()) - 1
            self.add(say(first) + (f"; and {others} samples more" if others else ""), keys[first])

    @contextmanager
    def noting(self, key: str = "") -> Iterator[None]:
        """An error in here is a problem, not the end."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.add(str(error), key)


def check(manifest: Manifest, checks: Checks, workers: int) -> Iterator[Report]:
    """A report per shard, in order, and one about keys that come again. Holds 8 bytes per sample, 25 at the end."""
    numbers = range(len(manifest.urls))
    function = functools.partial(check_shard, manifest, checks)
    if min(workers, len(numbers)) > 1:
        function = functools.partial(_check_listed, manifest.location, checks)
    hashes = np.arange(manifest.num_samples, dtype=np.uint64)  # what has no hash differs from all others
    ends = np.cumsum(manifest.samples).tolist()
    for end, report in zip(ends, in_processes(function, numbers, workers, "shards"), strict=True):
        hashes[end - len(report.key_hashes) : end] = report.key_hashes
        yield report
    yield repeated_keys(manifest, hashes)


_read_once = functools.lru_cache(1)(read_manifest)


def _check_listed(location: str, checks: Checks, number: int) -> Report:
    """`check_shard` in another process: the task carries the manifest's name only, each process reads it once."""
    return check_shard(_read_once(location), checks, number)


def check_shard(manifest: Manifest, checks: Checks, number: int) -> Report:
    """Everything about one shard."""
    report, index, listed, scanned = Report(shown(manifest.shard(number))), manifest.index(number), None, None
    with report.noting():
        content = storage.read_all(index)
        listed = Listing(*decode_index(content, shown(index)))
        _check_listing(listed, content, manifest, number, checks, report)
    with report.noting(), local_copy(manifest.shard(number)) as path:
        _check_columns({"bytes": path.stat().st_size, "sha256": sha256(path)}, manifest, number, report)
        with report.noting():
            unlabelled = manifest.label_min[number] == manifest.label_max[number] == NO_LABEL
            labels = Labels("none" if unlabelled else checks.label, manifest.classes)
            scanned = Listing(*decode_index(encode_index(scan(path, labels, report.shard)), report.shard))
        if listed and scanned:
            _compare(listed, scanned, checks.label, report)
            if listed.keys == scanned.keys and len(listed.keys) == manifest.samples[number]:
                report.key_hashes = hash_keys(listed.keys)
        if listing := listed or scanned:
            _check_images(path, listing, checks.quick, report)
    return report


def _check_columns(found: dict[str, Any], manifest: Manifest, number: int, report: Report) -> None:
    """What was found against the columns of the manifest."""
    stated = {name: getattr(manifest, name)[number] for name in found}
    differing = [f"{COLUMNS[name]} ({value} for {stated[name]})" for name, value in found.items() if value != stated[name]]
    if differing:
        report.add(f"differs from its {', '.join(differing)} in the manifest; {MEND}")


def _check_listing(listed: Listing, content: bytes, manifest: Manifest, number: int, checks: Checks, report: Report) -> None:
    """The index against the manifest, and its labels against the classes."""
    labels, keys = listed.rows["label"], listed.keys
    found = {"samples": len(keys), "index_bytes": len(content), "index_crc32": crc32(content)}
    if len(keys):
        found |= {"label_min": labels.min(), "label_max": labels.max()}
    _check_columns(found, manifest, number, report)
    if num_classes := checks.num_classes or len(manifest.classes):
        wrong = (labels < 0) | (labels >= num_classes)
        report.add_first(wrong, keys, lambda row: f"label {labels[row]} (-1 = none) is not within 0..{num_classes - 1}")


def _compare(listed: Listing, scanned: Listing, rule: str, report: Report) -> None:
    """The index against the tar."""
    if len(listed.keys) != len(scanned.keys):
        report.add(f"its index lists {len(listed.keys)} samples, {len(scanned.keys)} are in it; {MEND}")
        return

    def differences(row: int) -> str:
        pairs = [(name, listed.rows[name][row], scanned.rows[name][row]) for name in COMPARED]
        pairs.append(("key", listed.keys[row], scanned.keys[row]))
        return (
            f"its index does not describe it: {', '.join(f'{name} {a} for {b}' for name, a, b in pairs if a != b)} (labels by "
            f"the rule {rule}; --label names another); make it anew with `vitscale data index`"
        )

    wrong = np.array([a != b for a, b in zip(listed.keys, scanned.keys, strict=True)], bool)
    for name in COMPARED:
        wrong |= listed.rows[name] != scanned.rows[name]
    report.add_first(wrong, scanned.keys, differences)


def _check_images(path: Path, listing: Listing, quick: bool, report: Report) -> None:
    """Each image where the loader will look for it: its bytes, and what they hold."""
    rows, keys = listing
    lost = rows["offset"] + rows["size"] > path.stat().st_size
    report.add_first(lost, keys, lambda _: "its image lies behind the end of the shard")
    with path.open("rb") as file:
        for row in np.flatnonzero(~lost).tolist():
            with report.noting(keys[row]):
                file.seek(int(rows["offset"][row]))
                image = file.read(int(rows["size"][row]))
                if crc32(image) != rows["crc32"][row]:
                    raise DataError("its bytes differ from the index (CRC-32)")
                (size if quick else decode)(image)


def hash_keys(keys: Sequence[str]) -> np.ndarray:
    """uint64, in every process the same."""
    return np.frombuffer(b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys), "<u8")


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
