"""Samples out of shards: a block of them by one ranged read, and all in planned order."""

import contextlib
import functools
import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from isal.isal_zlib import crc32  # an order faster than zlib's

from data_pipeline import storage
from data_pipeline.cache import Cache
from data_pipeline.errors import BadSampleError, DataError
from data_pipeline.index import ROW, rows_range, unpack
from data_pipeline.manifest import Manifest
from data_pipeline.order import Order, Slots
from data_pipeline.pool import READ_THREADS
from data_pipeline.remote import obey, shown

MAX_READ_AHEAD_STEPS = 8
PREFETCH_STEPS = 2  # batches being decoded while one is used


class RawSample(NamedTuple):
    """An encoded image as it lies in its shard."""

    key: str
    image: bytes
    label: int


class Place(NamedTuple):
    """Where a sample lies."""

    manifest: Manifest
    shard: int  # number within the manifest
    row: int  # number within the shard

    @property
    def url(self) -> str:
        return self.manifest.shard(self.shard)


class Shards:
    """Random access to the samples of manifests, numbered through all of them; safe for threads."""

    def __init__(self, manifests: Manifest | Sequence[Manifest], cache: Cache | None = None) -> None:
        self.manifests = [manifests] if isinstance(manifests, Manifest) else list(manifests)
        self.ends = np.cumsum(np.concatenate([manifest.samples for manifest in self.manifests]))
        self._first_shards = np.cumsum([0, *(len(manifest.urls) for manifest in self.manifests)])
        self._cache = cache

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def digest(self) -> str:
        """Names the content of all manifests, in their order."""
        digests = [manifest.digest for manifest in self.manifests]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def place(self, sample: int) -> Place:
        """Where the sample with this number lies."""
        shard = int(np.searchsorted(self.ends, sample, side="right"))
        number = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        manifest, within = self.manifests[number], shard - int(self._first_shards[number])
        return Place(manifest, within, sample - int(self.ends[shard] - manifest.samples[within]))

    def source_of(self, sample: int) -> tuple[int, int]:
        """(first sample, number of samples) of the manifest that holds this sample."""
        ends = self.ends[self._first_shards[1:] - 1]
        number = int(np.searchsorted(ends, sample, side="right"))
        count = self.manifests[number].num_samples
        return int(ends[number]) - count, count

    def load(self, samples: Sequence[int] | np.ndarray) -> "Loaded":
        """What is needed to use these samples, with as few reads as there are shards among them."""
        return Loaded(self, [self._with_images(part) for part in self._parts(samples)])

    def keys(self, samples: Sequence[int] | np.ndarray) -> dict[int, str]:
        """The keys of these samples by number, and of those between them: two reads for each shard among them."""
        return Loaded(self, list(self._parts(samples))).keys

    def _parts(self, samples: Sequence[int] | np.ndarray) -> Iterator["_Part"]:
        ordered = np.sort(samples)
        shards = np.searchsorted(self.ends, ordered, side="right")
        for part in np.split(ordered, np.flatnonzero(np.diff(shards)) + 1):
            yield self._part(int(part[0]), int(part[-1]) + 1)

    def _part(self, first: int, end: int) -> "_Part":
        place = self.place(first)
        span = rows_range(place.row, place.row + end - first)
        rows = np.frombuffer(self.read_bytes(place, *span, index=True), ROW)
        begin = int(rows["offset"][0]) - int(rows["lead"][0])
        stop = int((rows["offset"] - rows["lead"] + rows["span"]).max())
        if not (0 <= begin <= stop <= place.manifest.bytes[place.shard] and _has_keys(rows, place)):
            raise DataError(
                f"{shown(place.manifest.index(place.shard))}: its rows {place.row} to {place.row + end - first} point "
                f"outside of it or of {shown(place.url)}; it is damaged: copy it, or make it anew with `vitscale data index`"
            )
        return _Part(first, place, place.url, rows, begin, stop)

    def _with_images(self, part: "_Part") -> "_Part":
        if storage.is_remote(part.url):
            return part._replace(images=self.read_bytes(part.place, part.begin, part.stop))
        storage.will_need(part.url, part.begin, part.stop)  # read one by one, when they are used: the kernel keeps the block
        return part

    def read_bytes(self, place: Place, start: int, end: int, index: bool = False) -> bytes:
        """Bytes of a shard, or of its index, by way of the cache."""
        url = place.manifest.index(place.shard) if index else place.url
        if self._cache is None or not storage.is_remote(url):
            return storage.read(url, start, end)
        manifest, shard = place.manifest, place.shard
        name, size = manifest.sha256[shard], int(manifest.bytes[shard])
        if index:
            name, size = f"{name}-{manifest.index_crc32[shard]:08x}.idx", int(manifest.index_bytes[shard])
        return self._cache.read(name, size, start, end, lambda a, b: storage.read(url, a, b))

    def read_again(self, place: Place, start: int, end: int) -> bytes:
        """Bytes of a shard whose checksum was wrong, from where they come from and not from the cache."""
        if self._cache:
            self._cache.forget(place.manifest.sha256[place.shard], start, end)
        return self.read_bytes(place, start, end)

    def read(self, sample: int) -> RawSample:
        """One sample by its number; its bytes are checked against the index."""
        block = self.load([sample])
        image, label = block.image(sample)
        return RawSample(block.keys[sample], image, label)

    def key(self, sample: int) -> str:
        return self.keys([sample])[sample]


class _Part(NamedTuple):
    """Consecutive samples of one shard."""

    first: int  # number of the first sample
    place: Place  # of the first sample
    url: str
    rows: np.ndarray  # of ROW; as tuples of Python they would take seven times the memory
    begin: int  # of the samples in the shard
    stop: int
    images: bytes | None = None  # the shard from begin to stop; None: read from the disk when used

    def read(self, start: int, end: int) -> bytes:
        """Bytes of the shard."""
        if self.images is None:
            return storage.read(self.url, start, end)
        return self.images[start - self.begin : end - self.begin]


def _has_keys(rows: np.ndarray, place: Place) -> bool:
    """Whether the keys lie in the index, behind earlier rows and one after another."""
    starts, end = rows["key_offset"].tolist(), int(rows["key_offset"][-1]) + int(rows["key_size"][-1])
    places = [rows_range(0, place.row)[1] + 1, *starts, end, int(place.manifest.index_bytes[place.shard])]
    return sorted(places) == places


class Loaded:
    """Samples that were read together."""

    def __init__(self, shards: Shards, parts: Sequence[_Part]) -> None:
        self.shards, self._parts = shards, parts

    def image(self, sample: int) -> tuple[bytes, int]:
        """The encoded image, checked against the index, and its label."""
        part, (offset, size, checksum, label, *_) = self._find(sample)
        image = part.read(offset, offset + size)
        sound = crc32(image) == checksum
        if not sound and part.images is not None:  # damaged on its way or in the cache is no bad sample
            image = self.shards.read_again(part.place, offset, offset + size)
            sound = crc32(image) == checksum
        if not sound:
            raise BadSampleError(
                "its bytes differ from the index (CRC-32); the shard is damaged or was rebuilt: copy it anew, or write a new "
                "manifest with `vitscale data index`"
            )
        return image, label

    def members(self, sample: int) -> dict[str, bytes]:
        """All files of the sample by extension, as they lie in the tar."""
        part, (offset, *_, lead, span) = self._find(sample)
        return unpack(part.read(offset - lead, offset - lead + span))

    @functools.cached_property
    def keys(self) -> dict[int, str]:
        """The key of every sample by its number; a read for each shard among them."""
        found = {}
        for part in self._parts:
            spans = [(offset, offset + size) for _, _, _, _, size, offset, _, _ in part.rows.tolist()]
            begin = spans[0][0]
            names = self.shards.read_bytes(part.place, begin, spans[-1][1], index=True)
            for number, (start, end) in enumerate(spans, part.first):
                found[number] = names[start - begin : end - begin].decode(errors="replace")
        return found

    def _find(self, sample: int) -> tuple[_Part, tuple[int, ...]]:
        for part in self._parts:
            if 0 <= sample - part.first < len(part.rows):
                return part, part.rows.item(sample - part.first)
        raise AssertionError(f"sample {sample} was not loaded")


class Step(NamedTuple):
    """One rank's share of a global step, with the block that holds each slot's sample on its way."""

    number: int
    slots: Slots
    blocks: list[Future[Loaded]]


def read_ahead_steps(per_lane: int, shuffle_block: int) -> int:
    """How many steps before its first use a block is read: where possible so few that it is half a block more per lane."""
    return min(MAX_READ_AHEAD_STEPS, max(1, shuffle_block // (2 * per_lane)))


def resident_samples(lanes: int, per_lane: int, shuffle_block: int, repeated: int = 1) -> int:
    """Encoded images that the owner of `lanes` holds at a time: a block each, and what is read ahead or being decoded.

    Where images are repeated, its slots lie in as many runs of lanes, whose ends its parts share, at most all.
    """
    return repeated * lanes * (shuffle_block + (read_ahead_steps(per_lane, shuffle_block) + PREFETCH_STEPS) * per_lane)


def steps(
    shards: Shards, order: Order, lanes: tuple[int, int], start: int, stop: int, reads: int = READ_THREADS
) -> Iterator[Step]:
    """Steps [start, stop) of lanes [first, end), their blocks read ahead."""
    waiting: deque[Step] = deque()
    ahead = read_ahead_steps(order.per_lane, order.block)
    with reading(reads) as pool:
        view = order.view(*lanes, opened=lambda samples: pool.submit(shards.load, samples))
        for number in range(start, stop):
            waiting.append(Step(number, view.step(number), view.handles))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


@contextlib.contextmanager
def reading(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that read. When the block is left early or fails, reads that wait or are under way end soon."""
    unwanted = threading.Event()
    pool = ThreadPoolExecutor(threads, "read", initializer=obey, initargs=(unwanted,))
    try:
        yield pool
    except BaseException:
        unwanted.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown(wait=False)


def planned(shards: Shards, order: Order, lanes: tuple[int, int], start: int, stop: int) -> Iterator[dict]:
    """The samples of steps [start, stop) of lanes [first, end) in order, as webdataset dictionaries with all their members.

    `wds.DataPipeline(lambda: planned(...), wds.decode("rgb"), ...)` composes one's own stages after the planned order.
    """
    for step in steps(shards, order, lanes, start, stop):
        for epoch, sample, block in zip(step.slots.epochs.tolist(), step.slots.samples.tolist(), step.blocks, strict=True):
            loaded = block.result()
            url = shards.place(sample).url
            yield {"__key__": loaded.keys[sample], "__url__": url, "__epoch__": epoch, **loaded.members(sample)}


def list_steps(
    shards: Shards, order: Order, lanes: tuple[int, int], numbers: range
) -> Iterator[tuple[int, list[tuple[int, int, str]]]]:
    """(step, (epoch, sample, key) of its slots in order) of lanes [first, end): from the indexes alone."""
    with ThreadPoolExecutor(READ_THREADS, "keys") as pool:
        view = order.view(*lanes, opened=lambda samples: pool.submit(shards.keys, samples))
        for step in numbers:
            epochs, samples = (column.tolist() for column in view.step(step))
            keys = [block.result()[sample] for block, sample in zip(view.handles, samples, strict=True)]
            yield step, list(zip(epochs, samples, keys, strict=True))


def where(shards: Shards, sample: int) -> str:
    """`SHARD: sample KEY`, for messages."""
    try:
        key = shards.key(sample)
    except DataError:
        key = f"number {sample}"
    return f"{shown(shards.place(sample).url)}: sample {key}"
