"""Images of one data set that are in another: a test set in its training set, ImageNet-1k in ImageNet-21k.

Size and CRC-32, which stand in the indexes, make candidates; SHA-256 of their bytes confirms them. Altered copies stay unseen.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import BadSampleError, DataError
from data_pipeline.manifest import Manifest
from data_pipeline.pool import in_threads
from data_pipeline.remote import shown
from data_pipeline.stream import Shards, where

TASK = 256  # samples


class Found(NamedTuple):
    """An image of a data set."""

    shard: str
    key: str
    label: int


class Leak(NamedTuple):
    """An image of A, and the first of those in B that equal it."""

    a: Found
    b: Found
    times: int  # how often B has it


def leaks(a: Manifest, b: Manifest) -> Iterator[Leak]:
    """Every image of A that is in B, in A's order. Holds about 100 bytes per image of both, and 48 per image that is read."""
    ours, theirs = (manifest.columns("size", "crc32", "label") for manifest in (a, b))
    read_a, read_b = candidates(ours, theirs)
    shards_a, shards_b = Shards(a), Shards(b)
    digests_a, digests_b = _digests(shards_a, read_a), _digests(shards_b, read_b)
    order = np.argsort(digests_b, kind="stable")  # of equal ones the first in B comes first
    ordered = digests_b[order]
    begins, ends = (np.searchsorted(ordered, digests_a, side) for side in ("left", "right"))

    def leak(hit: int) -> Leak:
        mine, twin = int(read_a[hit]), int(read_b[order[begins[hit]]])
        return Leak(_found(shards_a, mine, ours), _found(shards_b, twin, theirs), int(ends[hit] - begins[hit]))

    hits = np.flatnonzero(ends > begins).tolist()
    for start in range(0, len(hits), TASK):
        yield from in_threads(leak, hits[start : start + TASK])


def candidates(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the samples on both sides whose size and CRC-32 the other side has too."""
    a, b = (columns["size"].astype(np.uint64) << np.uint64(32) | columns["crc32"] for columns in (ours, theirs))
    in_b = np.flatnonzero(np.isin(b, a))
    return np.flatnonzero(np.isin(a, b[in_b])), in_b


def _digests(shards: Shards, samples: np.ndarray) -> np.ndarray:
    digests = np.empty(len(samples), "S32")

    def fill(start: int) -> None:
        for place, sample in enumerate(samples[start : start + TASK].tolist(), start):
            try:
                image, _ = shards.load([sample]).image(sample)
            except BadSampleError as error:
                raise DataError(f"{where(shards, sample)}: {error}") from error
            digests[place] = hashlib.sha256(image).digest()

    in_threads(fill, range(0, len(samples), TASK), title="reading images")
    return digests


def _found(shards: Shards, sample: int, columns: np.ndarray) -> Found:
    return Found(shown(shards.place(sample).url), shards.key(sample), int(columns["label"][sample]))
