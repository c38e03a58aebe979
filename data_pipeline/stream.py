"""Samples out of shards: any one by its number, or all in planned order for webdataset stages of one's own."""

import functools
import mmap
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.index import index_path, read_index
from data_pipeline.manifest import Manifest
from data_pipeline.order import LaneView

OPEN_SHARDS = 256  # mapped at a time, two files each; well below the usual limit of 1,024 open files


class RawSample(NamedTuple):
    """An encoded image as it lies in its shard."""

    key: str
    image: bytes
    label: int


class _OpenShard(NamedTuple):
    tar: mmap.mmap
    rows: np.ndarray
    index_file: np.ndarray


class Shards:
    """Random access to the samples of a manifest; safe for threads."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.ends = np.cumsum(manifest.samples)
        self._open = functools.lru_cache(OPEN_SHARDS)(self._map)

    def __len__(self) -> int:
        return self.manifest.num_samples

    def read(self, sample: int) -> RawSample:
        """The sample with this number in manifest order; its bytes are checked against the index."""
        number = int(np.searchsorted(self.ends, sample, side="right"))
        shard = self._open(number)
        row = shard.rows[sample - int(self.ends[number] - self.manifest.samples[number])]
        image = shard.tar[int(row["offset"]) : int(row["offset"]) + int(row["size"])]
        key = bytes(shard.index_file[int(row["key_offset"]) :][: int(row["key_size"])]).decode()
        if zlib.crc32(image) != row["crc32"]:
            raise DataError(
                f"{self.manifest.shard(number)}: sample {key}: its bytes differ from the index (CRC-32); the shard is damaged "
                "or was rebuilt: copy it anew, or write a new manifest with `vitscale data index`"
            )
        return RawSample(key, image, int(row["label"]))

    def _map(self, number: int) -> _OpenShard:
        path = self.manifest.shard(number)
        with path.open("rb") as file:
            tar = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _OpenShard(tar, *read_index(index_path(path)))


def planned(shards: Shards, view: LaneView, start: int, stop: int) -> Iterator[dict]:
    """The samples of steps [start, stop) in order, as webdataset dictionaries: a source for `wds.DataPipeline`.

    `wds.DataPipeline(lambda: planned(...), wds.decode("rgb"), ...)` composes one's own stages after the planned order.
    """
    for step in range(start, stop):
        for epoch, sample in zip(*(column.tolist() for column in view.step(step)), strict=True):
            raw = shards.read(sample)
            yield {
                "__key__": raw.key,
                "__url__": shards.manifest.urls[int(np.searchsorted(shards.ends, sample, side="right"))],
                "__epoch__": epoch,
                "jpg": raw.image,
                "cls": str(raw.label).encode(),
            }
