"""What the indexes say about every sample, as columns: a data set of 14 million images without reading one of them."""

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.index import HEADER_BYTES, ROW, num_rows, rows_range
from data_pipeline.manifest import Manifest
from data_pipeline.pool import in_threads
from data_pipeline.remote import shown

SHARDS_PER_TASK = 64


def read_columns(manifest: Manifest, *names: str) -> np.ndarray:
    """Columns of ROW for all samples in manifest order: a structured array of length num_samples."""
    columns = np.empty(manifest.num_samples, [(name, ROW[name]) for name in names])
    ends = np.cumsum(manifest.samples).tolist()

    def fill(shards: range) -> None:
        for number in shards:
            rows = read_rows(manifest, number)
            columns[ends[number] - len(rows) : ends[number]] = rows[list(names)]

    in_threads(fill, [range(len(ends))[start : start + SHARDS_PER_TASK] for start in range(0, len(ends), SHARDS_PER_TASK)])
    return columns


def read_rows(manifest: Manifest, number: int) -> np.ndarray:
    """The rows, of dtype ROW, of one shard's index."""
    index, count = manifest.index(number), int(manifest.samples[number])
    content = storage.read(index, 0, rows_range(0, count)[1])
    if (found := num_rows(content[:HEADER_BYTES], shown(index))) != count:
        raise DataError(
            f"{shown(index)}: {found} samples, but {manifest.name} says {count}; write both anew with `vitscale data index`"
        )
    return np.frombuffer(content, ROW, offset=HEADER_BYTES)
