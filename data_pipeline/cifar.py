"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as distributed: the "binary version", a compressed tar of labels and pixels."""

import gzip
import io
import re
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipeline.collection import Collection, Item
from data_pipeline.errors import DataError

ARCHIVE = re.compile(r"cifar-10+-binary\.tar\.gz")
SIDE = 32  # pixels


class Files(NamedTuple):
    """Of one of the two: the names of the classes, and the images by split."""

    names: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    coarse: int  # bytes for a coarse class in front of the class


CIFAR10 = Files("batches.meta.txt", tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",), 0)
CIFAR100 = Files("fine_label_names.txt", ("train.bin",), ("test.bin",), 1)


def images(path: Path, held_out: bool, spool: str) -> Collection:
    """The training images, or the test images, as PNG in a file in `spool`."""
    kind = CIFAR100 if "100" in path.name else CIFAR10
    parts = kind.test if held_out else kind.train
    try:
        files = _read(path, {kind.names, *parts})
        classes = files[kind.names].decode().split()
        # Bytes for the classes, then the red, green and blue plane.
        records = np.frombuffer(b"".join(files[name] for name in parts), np.uint8).reshape(-1, kind.coarse + 1 + 3 * SIDE**2)
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not CIFAR's binary version ({error}); fetch it anew from www.cs.toronto.edu/~kriz") from error
    found, split = [], "test" if held_out else "train"
    with tempfile.NamedTemporaryFile(dir=spool, delete=False) as pngs:
        for number, record in enumerate(records):
            pixels_HWC = record[kind.coarse + 1 :].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
            Image.fromarray(pixels_HWC).save(png := io.BytesIO(), "PNG")
            place = pngs.name, pngs.tell(), pngs.write(png.getvalue())
            found.append(Item(f"{split}-{number:05d}", "png", int(record[kind.coarse]), *place))
    return Collection(found, classes)


def _read(path: Path, names: set[str]) -> dict[str, bytes]:
    """Files of the archive, each of which has to be there once; the sum of the whole is checked."""
    files: dict[str, bytes] = {}
    with gzip.open(path) as content, tarfile.open(fileobj=content) as tar:
        for info in tar:
            name = PurePosixPath(info.name).name
            if name in files:
                raise ValueError(f"{name} is there twice")
            if name in names and info.isreg():
                files[name] = tar.extractfile(info).read()  # type: ignore[union-attr]
        while content.read(2**20):  # the sum stands behind the last byte
            pass
    if missing := sorted(names - {*files}):
        raise ValueError(f"it has no {missing[0]}")
    return files
