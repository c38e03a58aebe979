"""The list of shards: one JSON file with columns, so that 400,000 shards stay cheap."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.index import index_path, read_index

FORMAT = "vitscale-manifest-1"
COLUMNS = ("urls", "samples", "bytes", "sha256")


@dataclass(frozen=True)
class Manifest:
    """Shards in order (which gives every sample its id) and the names of the classes."""

    path: Path
    urls: Sequence[str]  # relative to the manifest's folder, or absolute
    samples: np.ndarray  # int64, by shard
    bytes: np.ndarray  # int64, by shard
    sha256: Sequence[str]
    classes: Sequence[str]

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


def write_manifest(manifest: Manifest) -> None:
    """Write atomically: a manifest that exists is complete."""
    shards = {
        "urls": list(manifest.urls),
        "samples": manifest.samples.tolist(),
        "bytes": manifest.bytes.tolist(),
        "sha256": list(manifest.sha256),
    }
    content = {"format": FORMAT, "classes": list(manifest.classes), "shards": shards}
    partial = manifest.path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(manifest.path)


def read_manifest(path: str | Path) -> Manifest:
    """Read and check the form of a manifest (`Manifest.check` looks at the shards)."""
    path = Path(path).absolute()
    try:
        content = json.loads(path.read_text())
        shards = content["shards"] if content["format"] == FORMAT else {}
        urls, samples, size, sha256 = (shards[name] for name in COLUMNS)
        samples, size = np.asarray(samples, np.int64), np.asarray(size, np.int64)
        lengths = {len(column) for column in (urls, samples, size, sha256)}
        classes = content["classes"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest; write it with `vitscale data build` or `vitscale data index`") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: not a {FORMAT} file ({error!r}); write it anew with `vitscale data index`") from error
    if len(lengths) != 1 or not urls:
        raise DataError(f"{path}: columns {', '.join(COLUMNS)} must be equally long and not empty; write it anew")
    return Manifest(path, urls, samples, size, sha256, classes)
