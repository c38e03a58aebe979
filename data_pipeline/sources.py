"""Where images to build from come from: class folders, listings, parquet files, shards, archives as they are distributed."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipeline import cifar, imagenet
from data_pipeline.collection import Collection, Item, labelled
from data_pipeline.errors import DataError
from data_pipeline.imagenet import EXTENSIONS
from data_pipeline.index import scan
from data_pipeline.labels import Labels
from data_pipeline.shapes import shapes

DIGITS_SIDE = 64  # pixels; the scans are 8x8, enlarged so that a crop can be placed between their pixels
PARQUET_ROWS = 256  # held in memory
SEE = "what may be a source stands in `vitscale data build --help`"


class Reading(NamedTuple):
    """How to read sources, beside what they are."""

    spool: str  # folder for what has to be copied before it can be read at random
    label: str = "auto"  # rule for shards, see labels.py
    classes: Sequence[str] = ()
    synsets: str = ""  # of the validation images of ImageNet
    held_out: bool = False  # of an archive that has both, the test images
    allow_pipe: bool = False


class Source(NamedTuple):
    """A local file or folder, and what it is called in messages."""

    path: Path
    name: str


def collect(source: Source, reading: Reading) -> Collection:
    """The images of one source, recognised by what it is."""
    path, suffix = source.path, source.path.suffix.lower()
    if source.name == "digits":
        return digits()
    if made := re.fullmatch(r"shapes:([1-9]\d{0,6})", source.name):
        return shapes(int(made[1]))
    if path.is_dir():
        return folder(path, reading.classes)
    if not path.is_file():
        raise DataError(f"{source.name}: does not exist; {SEE}")
    if suffix in (".csv", ".jsonl"):
        return listing(path, reading.classes)
    if suffix == ".parquet":
        return parquet(path, reading)
    if suffix == ".tar":
        return tar(source, reading)
    if cifar.ARCHIVE.fullmatch(path.name):
        return cifar.images(path, reading.held_out, reading.spool)
    compressed = "gunzip it first, compressed files cannot be read at random; " if suffix in (".gz", ".tgz") else ""
    raise DataError(f"{source.name}: {compressed}{SEE}")


def digits() -> Collection:
    """The 1,797 handwritten digits inside scikit-learn (UCI optical recognition of handwritten digits, test part), as JPEG."""
    from sklearn.datasets import load_digits

    found, images = load_digits(), []
    for number, (pixels, label) in enumerate(zip(found.images, found.target, strict=True)):
        grey = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8))  # levels 0..16
        file = io.BytesIO()
        grey.resize((DIGITS_SIDE, DIGITS_SIDE), Image.Resampling.BICUBIC).convert("RGB").save(file, "JPEG", quality=95)
        images.append(Item(f"digit{number:04d}", "jpg", int(label), file.getvalue()))
    return Collection(images, [str(digit) for digit in range(10)])


def folder(root: Path, known: Sequence[str] = ()) -> Collection:
    """Class folders: `root/CLASS/**/IMAGE`; classes numbered in sorted order, folders 0, 1, 2, ... by themselves, without names
    (as in ImageNet-V2) unless these are `known`."""
    classes = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not classes:
        raise DataError(f"{root}: no class folders here; expected {root}/CLASS/IMAGE.jpg")
    numbers = [str(number) for number in range(len(classes))]
    numbered = set(classes) == set(numbers) and not set(classes) <= set(known)
    if not numbered and not set(classes) <= set(known) and "0" in classes and all(name.isdecimal() for name in classes):
        lost = min(set(numbers) - set(classes), key=int)
        raise DataError(
            f"{root}: its folders are numbers from 0 on, as labels are, but {lost} is missing; add it (it may be empty), or "
            "if they are names of classes give the list with --classes"
        )
    images = [
        Item(str(path.relative_to(root).with_suffix("")), extension, label, str(path), 0, path.stat().st_size)
        for label, name in enumerate(numbers if numbered else classes)
        for path in sorted((root / name).rglob("*"))
        if (extension := path.suffix.lower().lstrip(".")) in EXTENSIONS and path.is_file()
    ]
    if not images:
        raise DataError(f"{root}: no images in its class folders; allowed endings are {', '.join(EXTENSIONS)}")
    return Collection(images, [] if numbered else classes)


def listing(path: Path, classes: Sequence[str] = ()) -> Collection:
    """A table with columns `path` (absolute, or beside the listing), `label` (a number or a class name) and perhaps `key`.

    Labels are names if they are `classes`, or if not all are numbers; the names are then the classes, sorted.
    """
    images, labels = [], []
    for line, row in _rows(path):
        name, label = row.get("path"), row.get("label")
        if not name or label in (None, ""):
            raise DataError(f"{path}:{line}: each line needs `path` and `label`; found {', '.join(map(str, row))}")
        file = path.parent / str(name)
        if not file.is_file():
            raise DataError(f"{path}:{line}: {file} does not exist; paths are absolute, or relative to the listing")
        key = str(row.get("key") or Path(str(name)).with_suffix(""))
        extension = file.suffix.lower().lstrip(".")
        images.append(Item(key, extension if extension in EXTENSIONS else "jpg", -1, str(file), 0, file.stat().st_size))
        labels.append(str(label))
    return _labelled(images, labels, classes)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".csv":
                for row in (reader := csv.DictReader(file)):
                    yield (line := reader.line_num), row
                return
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, dict(json.loads(text))
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        what = "a table in UTF-8, or JSON objects one per line"
        raise DataError(f"{path}: not a listing, {what}, near line {line} ({error}); write it anew") from None


def _labelled(images: list[Item], labels: list[str], classes: Sequence[str], names: Sequence[str] = ()) -> Collection:
    """Labels as they stand in a table -> numbers; with `names` they are numbers already, of these."""
    found = set(labels)
    if names or (not found <= set(classes) and all(re.fullmatch(r"-?\d+", label) for label in found)):
        return Collection([image._replace(label=int(label)) for image, label in zip(images, labels, strict=True)], list(names))
    return labelled(images, labels)


def parquet(path: Path, reading: Reading) -> Collection:
    """A file with columns `image` (bytes, or Hugging Face's struct of bytes and path) and `label`; images are copied out."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    images: list[Item] = []
    labels: list[str] = []
    try:
        with ParquetFile(path) as table, tempfile.NamedTemporaryFile(dir=reading.spool, delete=False) as spool:
            columns, names = table.schema_arrow.names, _class_names(table.schema_arrow.metadata or {})
            if not {"image", "label"} <= set(columns):
                raise DataError(f"{path}: columns {', '.join(columns)}; needed are `image` and `label`")
            for batch in table.iter_batches(PARQUET_ROWS, columns=["image", "label"]):
                for row in batch.to_pylist():
                    cell = row["image"]
                    image, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
                    if not isinstance(image, bytes) or not image or row["label"] is None:
                        raise DataError(f"{path}: row {len(images)}: no bytes in `image`, or no label; leave it out")
                    key = Path(name).stem if name else f"{path.stem}-{len(images)}"
                    images.append(Item(key, "jpg", -1, spool.name, spool.tell(), spool.write(image)))
                    labels.append(str(row["label"]))
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file that can be read ({error}); copy it anew") from None
    return _labelled(images, labels, reading.classes, names)


def _class_names(metadata: dict[bytes, bytes]) -> list[str]:
    """What Hugging Face's `datasets` notes of a ClassLabel; empty: nothing."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (LookupError, TypeError, ValueError, RecursionError):
        return []
    return names if isinstance(names, list) else []


def tar(source: Source, reading: Reading) -> Collection:
    """An archive of ImageNet, or a webdataset shard, whose samples keep all their members."""
    path, first = source.path, imagenet.first_name(*source)
    if first.endswith(".tar") or imagenet.SYNSET.fullmatch(path.stem):
        return imagenet.of_synsets(path)
    if path.name.startswith("ILSVRC2012_img_val") or (reading.synsets and first.startswith(imagenet.VALIDATION)):
        if not reading.synsets:
            raise DataError(f"{source.name}: its images have no classes; give --synsets ILSVRC2012_devkit_t12.tar.gz")
        return imagenet.validation(path, imagenet.read_synsets(reading.synsets))
    samples = scan(path, Labels(reading.label, reading.classes), source.name)
    images = [Item(entry.key, "tar", entry.label, str(path), entry.offset - entry.lead, entry.span) for entry in samples]
    return Collection(images, list(reading.classes))
