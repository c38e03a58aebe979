"""The list of shards: one JSON file with columns, so that 400,000 shards stay cheap."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from data_pipeline.config import Section
from data_pipeline.errors import DataError
from data_pipeline.index import index_path, read_index


@dataclass(frozen=True)
class Manifest:
    """Shards in order (which gives every sample its id) and the names of the classes."""

    path: Path
    urls: Sequence[str]  # relative to the manifest's folder, or absolute
    samples: np.ndarray  # int64, by shard
    bytes: np.ndarray  # int64, by shard
    sha256: Sequence[str]
    classes: Sequence[str]
    built: Mapping[str, str] = field(default_factory=dict)  # what `data build` made it from; {} = listed, not built

    @property
    def num_samples(self) -> int:
        return int(self.samples.sum())

    @property
    def digest(self) -> str:
        """Names the content: SHA-256 over the shards' own sums and sizes, wherever they lie."""
        lines = (f"{sha} {count}\n" for sha, count in zip(self.sha256, self.samples.tolist(), strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def shard(self, number: int) -> Path:
        return self.path.parent / self.urls[number]

    def check(self) -> None:
        """Every shard and index is there and has the size and the number of samples stated here. Reads no shard."""
        for number in range(len(self.urls)):
            self._check_shard(number)

    def _check_shard(self, number: int) -> None:
        shard = self.shard(number)
        rebuild = "build or copy it anew, or write a new manifest with `vitscale data index`"
        if not shard.is_file():
            raise DataError(f"{self.path}: shard {self.urls[number]} does not exist ({shard}); {rebuild}")
        found, stated = shard.stat().st_size, int(self.bytes[number])
        if found != stated:
            raise DataError(f"{self.path}: shard {shard} has {found} bytes, the manifest says {stated}; {rebuild}")
        if not index_path(shard).is_file():
            raise DataError(f"{self.path}: {index_path(shard)} does not exist; {rebuild}")
        rows, _ = read_index(index_path(shard))
        if len(rows) != self.samples[number]:
            raise DataError(
                f"{self.path}: {index_path(shard)} has {len(rows)} samples, the manifest says {self.samples[number]}; {rebuild}"
            )

    def check_classes(self, expected: Sequence[str], whose: str) -> None:
        """Label 3 means the same here and there; sets without names are trusted."""
        if expected and self.classes and list(expected) != list(self.classes):
            other = next((pair for pair in zip(self.classes, expected, strict=False) if pair[0] != pair[1]), ("more", "fewer"))
            raise DataError(
                f"{self.path}: its classes are not those of {whose} (first difference: {other[0]!r} here, {other[1]!r} there); "
                "labels would mean different things; rebuild it with the same class folders"
            )

    def check_labels(self, num_classes: int) -> None:
        """The class list and every label fit a head of `num_classes`."""
        if self.classes and len(self.classes) != num_classes:
            raise DataError(
                f"{self.path}: {len(self.classes)} classes, but model.num_classes is {num_classes}; make them equal"
            )
        for number in range(len(self.urls)):
            labels = read_index(index_path(self.shard(number)))[0]["label"]
            if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
                raise DataError(
                    f"{self.shard(number)}: labels {labels.min()}..{labels.max()}, but model.num_classes {num_classes} "
                    f"allows 0..{num_classes - 1}; raise model.num_classes or rebuild the shards"
                )


Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Shards(Section):
    """The columns as they stand in the file."""

    urls: list[str] = Field(min_length=1)
    samples: list[Count]
    bytes: list[Count]
    sha256: list[str]


class _File(Section):
    """A manifest file."""

    format: Literal["vitscale-manifest-1"] = "vitscale-manifest-1"
    built: dict[str, str] = Field(default_factory=dict)
    classes: list[str]
    shards: _Shards


def write_manifest(manifest: Manifest) -> None:
    """Write atomically: a manifest that exists is complete."""
    shards = _Shards(
        urls=list(manifest.urls),
        samples=manifest.samples.tolist(),
        bytes=manifest.bytes.tolist(),
        sha256=list(manifest.sha256),
    )
    content = _File(built=dict(manifest.built), classes=list(manifest.classes), shards=shards)
    partial = manifest.path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(content.model_dump_json(indent=1) + "\n")
    partial.replace(manifest.path)


def read_manifest(path: str | Path) -> Manifest:
    """Read and check the form of a manifest (`Manifest.check` looks at the shards)."""
    path = Path(path).absolute()
    try:
        content = _File.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest; write it with `vitscale data build` or `vitscale data index`") from None
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise DataError(f"{path}: not a manifest ({found}); write it anew with `vitscale data index`") from None
    shards = content.shards
    columns = (shards.urls, shards.samples, shards.bytes, shards.sha256)
    if len({len(column) for column in columns}) != 1 or not sum(shards.samples):
        raise DataError(f"{path}: its columns must be equally long and list at least one sample; write it anew")
    samples, size = np.asarray(shards.samples, np.int64), np.asarray(shards.bytes, np.int64)
    return Manifest(path, shards.urls, samples, size, shards.sha256, content.classes, content.built)
