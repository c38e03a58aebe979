"""Which samples form which step, by key: read from the indexes alone, a block at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from data_pipeline import remote, storage
from data_pipeline.index import ROW, rows_range
from data_pipeline.order import Order
from data_pipeline.stream import READ_THREADS, Shards


class Listed(NamedTuple):
    """What stands in a slot of a step."""

    epoch: int
    shard: str
    key: str


def list_steps(shards: Shards, order: Order, lanes: tuple[int, int], steps: range) -> Iterator[tuple[int, list[Listed]]]:
    """(step, its slots in order) of the lanes [first, end)."""
    with ThreadPoolExecutor(READ_THREADS, "keys") as pool:
        view = order.view(*lanes, opened=lambda samples: pool.submit(list_samples, shards, samples))
        for step in steps:
            slots = zip(*view.step(step), view.handles, strict=True)
            yield step, [Listed(int(epoch), *block.result()[sample]) for epoch, sample, block in slots]


def list_samples(shards: Shards, samples: Sequence[int] | np.ndarray) -> dict[int, tuple[str, str]]:
    """(shard, key) of samples by number: two reads for each shard among them, from the first of its samples to the last."""
    ordered = np.sort(samples)
    parts = np.split(ordered, np.flatnonzero(np.diff(np.searchsorted(shards.ends, ordered, side="right"))) + 1)
    return {sample: found for part in parts for sample, found in _list_part(shards, part).items()}


def _list_part(shards: Shards, samples: np.ndarray) -> dict[int, tuple[str, str]]:
    first, last = int(samples[0]), int(samples[-1])
    place = shards.place(first)
    index, shard = place.manifest.index(place.shard), remote.shown(place.url)
    rows = np.frombuffer(storage.read(index, *rows_range(place.row, place.row + last - first + 1)), ROW)[samples - first]
    starts = rows["key_offset"].astype(int)
    ends = starts + rows["key_size"]
    text = storage.read(index, int(starts[0]), int(ends[-1]))
    spans = zip(samples.tolist(), (starts - starts[0]).tolist(), (ends - starts[0]).tolist(), strict=True)
    return {sample: (shard, text[start:end].decode()) for sample, start, end in spans}
