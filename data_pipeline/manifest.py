"""The list of shards: one JSON file with columns, so that 400,000 shards stay cheap. It may lie wherever shards may."""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from isal.isal_zlib import crc32
from pydantic import Field, ValidationError
from pydantic_core import from_json

from data_pipeline import storage
from data_pipeline.config import Section
from data_pipeline.errors import DataError
from data_pipeline.index import HEADER_BYTES, ROW, num_rows, rows_range
from data_pipeline.pool import in_threads
from data_pipeline.remote import shown

CLOSE_CHECKS = 64  # shards whose whole index is read before a start, and all that are looked at when they are remote


class Row(NamedTuple):
    """What a manifest says of one shard."""

    url: str
    samples: int
    bytes: int
    sha256: str
    index_bytes: int
    index_crc32: int
    label_min: int
    label_max: int

    def differences(self, **found: Any) -> str:
        """`bytes 10 for 12, ...`: what was found that is not as it stands here."""
        stated = self._asdict()
        return ", ".join(f"{name} {value} for {stated[name]}" for name, value in found.items() if value != stated[name])


@dataclass(frozen=True)
class Manifest:
    """Shards in order (which gives every sample its number) and the names of the classes."""

    location: str  # path or URL of the manifest itself
    urls: Sequence[str]  # relative to the manifest's folder, or absolute
    samples: np.ndarray  # int64, by shard
    bytes: np.ndarray  # int64, by shard
    sha256: Sequence[str]
    index_bytes: np.ndarray  # int64, by shard
    index_crc32: np.ndarray  # int64, by shard: which labels the samples have, among others
    label_min: np.ndarray  # int64, by shard: lowest label; -1 = unlabelled samples
    label_max: np.ndarray  # int64, by shard
    classes: Sequence[str]
    index_dir: str = ""  # folder of the indexes 000000.idx, ...; "" = beside each shard

    @property
    def name(self) -> str:
        """Its location as it may be printed: urls may hold credentials."""
        return shown(self.location)

    @property
    def num_samples(self) -> int:
        return int(self.samples.sum())

    @functools.cached_property
    def digest(self) -> str:
        """Names the content: SHA-256 over the sums of shards and indexes, wherever they lie."""
        digest = hashlib.sha256()
        for sha, crc in zip(self.sha256, self.index_crc32.tolist(), strict=True):
            digest.update(f"{sha} {crc:08x}\n".encode())
        return digest.hexdigest()

    def shard(self, number: int) -> str:
        """Path or URL of a shard."""
        return storage.join(self.location, self.urls[number])

    def index(self, number: int) -> str:
        """Path or URL of a shard's index."""
        if self.index_dir:
            return storage.join(self.location, f"{self.index_dir}/{number:06d}.idx")
        return index_beside(self.shard(number))

    def row(self, number: int) -> Row:
        """What stands here of one shard."""
        return Row(self.shard(number), *(getattr(self, name)[number] for name in Row._fields[1:]))

    def columns(self, *names: str) -> np.ndarray:
        """What the indexes say of all samples, in order: a structured array of these columns of ROW."""
        columns = np.empty(self.num_samples, [(name, ROW[name]) for name in names])
        ends = np.cumsum(self.samples).tolist()

        def fill(number: int) -> None:
            index, count = self.index(number), int(self.samples[number])
            content = storage.read(index, 0, rows_range(0, count)[1])
            if (found := num_rows(content[:HEADER_BYTES], shown(index))) != count:
                raise DataError(
                    f"{shown(index)}: {found} samples, but {self.name} says {count}; write both anew with `vitscale data index`"
                )
            rows = np.frombuffer(content, ROW, offset=HEADER_BYTES)
            columns[ends[number] - count : ends[number]] = rows[list(names)]

        in_threads(fill, range(len(ends)))
        return columns

    @property
    def num_labels(self) -> int:
        """One more than the highest."""
        return int(self.label_max.max()) + 1

    def check(self) -> None:
        """Shards and indexes are there, with the size and the number of samples stated here. Of remote ones, some.

        Some indexes are read whole: another `data index` of the same shards leaves others of the same size, with its labels.
        """
        close = set(np.linspace(0, len(self.urls) - 1, CLOSE_CHECKS).astype(int).tolist())
        numbers: Sequence[int] = sorted(close) if storage.is_remote(self.shard(0)) else range(len(self.urls))
        in_threads(lambda number: self._check_shard(number, number in close), numbers)

    def _check_shard(self, number: int, close: bool) -> None:
        row, index = self.row(number), self.index(number)
        try:
            found = {"bytes": storage.size(row.url), "index_bytes": storage.size(index)}
            content = storage.read_all(index) if close else storage.read(index, 0, HEADER_BYTES)
            found["samples"] = num_rows(content[:HEADER_BYTES], shown(index))
        except DataError as error:
            raise DataError(
                f"{self.name}: shard {shown(self.urls[number])}: {error}; to list the shards anew: `vitscale data index`"
            ) from error
        if close:
            found["index_crc32"] = crc32(content)
        if differences := row.differences(**found):
            raise DataError(
                f"{self.name}: {shown(row.url)} or its index {shown(index)} is not the one that it lists ({differences}); "
                "damaged, or written anew, perhaps with another --label, so that labels may be others; build or copy it anew, "
                "or write a new manifest with `vitscale data index`"
            )

    def check_classes(self, expected: Sequence[str], whose: str) -> None:
        """Label 3 means the same here and there; sets without names are trusted."""
        if expected and self.classes and list(expected) != list(self.classes):
            other = next((pair for pair in zip(self.classes, expected, strict=False) if pair[0] != pair[1]), ("more", "fewer"))
            raise DataError(
                f"{self.name}: its classes are not those of {whose} (first difference: {other[0]!r} here, {other[1]!r} "
                "there); labels would mean different things; rebuild it with the same class folders"
            )

    def check_labels(self, num_classes: int, replace_bad: bool = False) -> None:
        """The class list and every label fit a head of `num_classes`; with `replace_bad` some labels may not."""
        if self.classes and len(self.classes) != num_classes:
            raise DataError(f"{self.name}: {len(self.classes)} classes, but model.num_classes is {num_classes}; change one")
        wrong = (self.label_min < 0) | (self.label_max >= num_classes)
        if wrong.any() and not replace_bad:
            number = int(wrong.argmax())
            raise DataError(
                f"{shown(self.shard(number))}: labels {self.label_min[number]}..{self.label_max[number]} (-1 = none), but "
                f"model.num_classes {num_classes} allows 0..{num_classes - 1}; raise model.num_classes, rebuild the shards, or "
                "set data.bad_samples.policy=replace"
            )


def index_beside(shard: str) -> str:
    """`train-000003.tar` -> `train-000003.idx`; a query stays behind it."""
    path, mark, query = shard.partition("?") if storage.is_remote(shard) else (shard, "", "")
    return f"{path.removesuffix('.tar')}.idx{mark}{query}"


Count = Annotated[int, Field(ge=0, lt=2**63)]
Label = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class _Shards(Section):
    """The columns as they stand in the file, in the order of `Row`."""

    urls: list[str] = Field(min_length=1)
    samples: list[Count]
    bytes: list[Count]
    sha256: list[str]
    index_bytes: list[Count]
    index_crc32: list[Count]
    label_min: list[Label]
    label_max: list[Label]


class _File(Section):
    format: Literal["vitscale-manifest-3"] = "vitscale-manifest-3"
    classes: list[str]
    index_dir: str = ""
    shards: _Shards


def from_columns(location: str, columns: Iterable[Sequence[Any]], **others: Any) -> Manifest:
    """A manifest of columns in the order of `Row`; `others` are the rest of its fields."""
    values: list[Any] = [list(c) if isinstance(c[0], str) else np.asarray(c, np.int64) for c in columns]
    return Manifest(location, *values, **others)


def write_manifest(manifest: Manifest) -> None:
    """Write atomically: a manifest that exists is complete."""
    columns = {name: np.asarray(getattr(manifest, name), object).tolist() for name in _Shards.model_fields}
    content = _File(classes=list(manifest.classes), index_dir=manifest.index_dir, shards=_Shards(**columns))
    storage.write(manifest.location, (content.model_dump_json(indent=1) + "\n").encode())


def read_manifest(location: str) -> Manifest:
    """Read and check the form of a manifest (`Manifest.check` looks at the shards)."""
    if not storage.is_remote(location):
        location = str(storage.local_path(location).absolute())
    try:
        content = _File.model_validate(from_json(storage.read_all(location)))  # model_validate_json would hold it twice
    except ValueError as error:
        said = "{loc}: {msg}".format(**error.errors()[0]) if isinstance(error, ValidationError) else error
        raise DataError(
            f"{shown(location)}: no manifest to read ({said}); write it with `vitscale data build` or `vitscale data index`"
        ) from None
    columns = list(dict(content.shards).values())
    if len(set(map(len, columns))) != 1 or not sum(content.shards.samples):
        raise DataError(f"{shown(location)}: its columns must be equally long and list at least one sample; write it anew")
    return from_columns(location, columns, classes=content.classes, index_dir=content.index_dir)
