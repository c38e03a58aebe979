"""Images into shards: webdataset tars with an index beside each, and a manifest per split.

Shards are written under a temporary name and renamed; the manifest is written last, so what exists is complete.
"""

import hashlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image

from data_pipeline.draw import Purpose, permutation
from data_pipeline.errors import DataError
from data_pipeline.index import IMAGE_EXTENSIONS, index_path, scan, write_index
from data_pipeline.manifest import Manifest, read_manifest, write_manifest

DIGITS_SIDE = 64  # pixels; the scans are 8x8, enlarged so that a crop can be placed between their pixels


NOT_BUILT: Mapping[str, str] = {}  # how a manifest of tars that were there already was built


@dataclass(frozen=True)
class Item:
    """One image on its way into a shard."""

    key: str
    extension: str
    label: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Collection:
    """Images to build from, and the names of their classes."""

    images: list[Item]
    classes: list[str]


def digits() -> Collection:
    """The 1,797 handwritten digits inside scikit-learn (UCI optical recognition of handwritten digits, test part), as JPEG."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    images = [
        Item(f"digit{number:04d}", "jpg", int(label), lambda scan=scan: _digit_jpeg(scan))  # type: ignore[misc]
        for number, (scan, label) in enumerate(zip(scans, labels, strict=True))
    ]
    return Collection(images, [str(digit) for digit in range(10)])


def _digit_jpeg(scan: np.ndarray) -> bytes:
    """An 8x8 scan with grey levels 0..16 -> an enlarged JPEG."""
    grey = Image.fromarray(np.round(scan.reshape(8, 8) * (255 / 16)).astype(np.uint8))
    file = io.BytesIO()
    grey.resize((DIGITS_SIDE, DIGITS_SIDE), Image.Resampling.BICUBIC).convert("RGB").save(file, "JPEG", quality=95)
    return file.getvalue()


def folder(root: Path) -> Collection:
    """Class folders: `root/CLASS/**/IMAGE`; classes numbered in sorted order. Images keep their bytes."""
    classes = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not classes:
        raise DataError(f"{root}: no class folders here; expected {root}/CLASS/IMAGE.jpg")
    images = []
    for label, name in enumerate(classes):
        for path in sorted((root / name).rglob("*")):
            extension = path.suffix.lower().lstrip(".")
            if path.is_file() and extension in IMAGE_EXTENSIONS:
                images.append(Item(_safe_key(path.relative_to(root)), extension, label, path.read_bytes))
    if not images:
        raise DataError(f"{root}: no images in its class folders; allowed endings are {', '.join(IMAGE_EXTENSIONS)}")
    return Collection(images, classes)


def _safe_key(path: Path) -> str:
    """A file name as a webdataset key: no dots (a key ends at the first), no separators, plain characters."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", str(path.with_suffix("")))


def build(
    collection: Collection, out: Path, val_fraction: float, shard_samples: Iterable[int], seed: int
) -> dict[str, Manifest]:
    """Shuffle, split, write `train` and `val` shards under `out`; a split that was built so already is left as it is.

    `shard_samples` are the sizes of successive shards, the last repeated. The split depends on (seed, number of images) only.
    """
    sizes = list(shard_samples)
    if not sizes or min(sizes) < 1:
        raise DataError(f"images per shard: {sizes}; give one or more sizes, each at least 1")
    if not 0 <= val_fraction <= 1:
        raise DataError(f"held-out part: {val_fraction}; it must lie in [0, 1]")
    order = permutation(len(collection.images), seed, Purpose.SPLIT)
    num_val = round(len(order) * val_fraction)
    splits = {"val": order[:num_val], "train": order[num_val:]}
    duplicates = len(collection.images) - len({image.key for image in collection.images})
    if duplicates:
        raise DataError(f"{duplicates} images have the key of another after unsafe characters were replaced; rename them")
    built = {
        "images": _digest(collection),
        "seed": str(seed),
        "val_fraction": str(val_fraction),
        "shard_samples": " ".join(map(str, sizes)),
    }
    out.mkdir(parents=True, exist_ok=True)
    _check_built(out, built)
    return {
        name: _write_split(name, [collection.images[i] for i in numbers], collection.classes, out, sizes, built)
        for name, numbers in splits.items()
        if len(numbers)
    }


def _digest(collection: Collection) -> str:
    """Names which images these are, and their classes; not their pixels."""
    lines = (f"{image.key}.{image.extension} {image.label}\n" for image in collection.images)
    return hashlib.sha256("".join([*lines, *collection.classes]).encode()).hexdigest()


def _check_built(out: Path, built: dict[str, str]) -> None:
    """What is there was built in the same way: otherwise one split could hold images of the other."""
    for path in (out / "train.json", out / "val.json"):
        before = read_manifest(path).built if path.exists() else built
        changed = [f"{key} was {before.get(key)}, is {value}" for key, value in built.items() if before.get(key) != value]
        if changed:
            raise DataError(f"{path}: was built otherwise ({'; '.join(changed)}); give another --out, or remove {out}")


def _write_split(
    name: str, images: list[Item], classes: list[str], out: Path, sizes: list[int], built: dict[str, str]
) -> Manifest:
    path = out / f"{name}.json"
    if path.exists():
        manifest = read_manifest(path)
        manifest.check()
        return manifest
    for leftover in out.glob(f"{name}*.partial"):  # of a build that was killed
        leftover.unlink()
    shards = [_write_shard(out / f"{name}-{number:05d}.tar", part) for number, part in enumerate(_parts(images, sizes))]
    return list_shards(shards, path, classes, built)


def _parts(images: list[Item], sizes: list[int]) -> Iterator[list[Item]]:
    start = 0
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if start >= len(images):
            return
        yield images[start : start + size]
        start += size


def _write_shard(shard: Path, images: list[Item]) -> Path:
    """A webdataset tar. Owner and time are constants, so that the same images give the same bytes."""
    partial = shard.with_suffix(f".{os.getpid()}.partial")
    with wds.TarWriter(str(partial), mtime=0, user="root", group="root") as tar:
        for image in images:
            tar.write({"__key__": image.key, image.extension: image.read(), "cls": str(image.label).encode()})
    partial.replace(shard)
    return shard


def list_shards(shards: list[Path], manifest: Path, classes: list[str], built: Mapping[str, str] = NOT_BUILT) -> Manifest:
    """Index every shard and write the manifest: the way in for tars that another program wrote."""
    counts = [_index(shard) for shard in shards]
    if not sum(counts):
        raise DataError(f"{', '.join(map(str, shards))}: no samples in them; nothing to list")
    root = manifest.parent.absolute()
    listed = Manifest(
        manifest.absolute(),
        [
            str(shard.absolute().relative_to(root)) if shard.absolute().is_relative_to(root) else str(shard.absolute())
            for shard in shards
        ],
        np.asarray(counts, np.int64),
        np.asarray([shard.stat().st_size for shard in shards], np.int64),
        [sha256(shard) for shard in shards],
        classes,
        built,
    )
    write_manifest(listed)
    return listed


def _index(shard: Path) -> int:
    if not shard.is_file():
        raise DataError(f"{shard}: no such shard")
    entries = list(scan(shard))
    partial = index_path(shard).with_suffix(f".{os.getpid()}.partial")
    write_index(entries, partial)
    partial.replace(index_path(shard))
    return len(entries)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
