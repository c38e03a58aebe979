"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as distributed: the "binary version", a compressed tar of labels and pixels."""

import io
import re
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from data_pipeline.collection import Collection, Item
from data_pipeline.errors import DataError

ARCHIVE = re.compile(r"cifar-10+-binary\.tar\.gz")
SIDE = 32  # pixels
NAMES = ("batches.meta.txt", "fine_label_names.txt")  # of the classes, of CIFAR-10 and of CIFAR-100


def images(path: Path, held_out: bool, spool: str) -> Collection:
    """The training images, or the test images, as PNG in a file in `spool`."""
    try:
        with tarfile.open(path) as tar:
            files = {PurePosixPath(info.name).name: tar.extractfile(info).read() for info in tar if info.isreg()}  # type: ignore[union-attr]
        fine = int(NAMES[1] in files)  # CIFAR-100
        classes = files[NAMES[fine]].decode().split()
        parts = sorted(name for name in files if name.endswith(".bin") and name.startswith("test") == held_out)
        # A byte for the class, behind one for the coarse class in CIFAR-100; then the red, green and blue plane.
        records = np.frombuffer(b"".join(files[name] for name in parts), np.uint8).reshape(-1, 1 + fine + 3 * SIDE**2)
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: not CIFAR's binary version ({error!r}); fetch it anew from www.cs.toronto.edu/~kriz"
        ) from error
    found, split = [], "test" if held_out else "train"
    with tempfile.NamedTemporaryFile(dir=spool, delete=False) as pngs:
        for number, record in enumerate(records):
            pixels_HWC = record[1 + fine :].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
            Image.fromarray(pixels_HWC).save(png := io.BytesIO(), "PNG")
            place = pngs.name, pngs.tell(), pngs.write(png.getvalue())
            found.append(Item(f"{split}-{number:05d}", "png", int(record[fine]), *place))
    return Collection(found, classes)
