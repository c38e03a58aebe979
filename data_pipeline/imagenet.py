"""ImageNet as it is distributed, read by offsets without unpacking.

The training images and ImageNet-21k are tars of tars, `n01440764.tar` and so on, one per synset (a class, by its WordNet id).
`ILSVRC2012_img_val.tar` holds images alone; which synset each shows stands in `ILSVRC2012_devkit_t12.tar.gz`.
"""

import io
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from data_pipeline import storage
from data_pipeline.collection import Collection, Item, labelled
from data_pipeline.encode import REENCODED
from data_pipeline.errors import DataError
from data_pipeline.index import IMAGE_EXTENSIONS, headers

EXTENSIONS = (*IMAGE_EXTENSIONS, *REENCODED)
SYNSET = re.compile(r"n\d{8}")
VALIDATION = "ILSVRC2012_val_"  # begins the name of each validation image
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


def first_name(path: Path, name: str) -> str:
    """The first file of a tar, which tells what kind of archive it is. `name` is the tar's in messages."""
    with path.open("rb") as file:
        return next((PurePosixPath(info.name).name for _, info in _files(file, name)), "")


def of_synsets(path: Path) -> Collection:
    """The images of a tar of tars, or of one of the inner ones; their names are the classes, sorted."""
    found: dict[str, list[Item]] = defaultdict(list)
    with path.open("rb") as file:
        if SYNSET.fullmatch(path.stem):
            found[path.stem] = _images(path, file, str(path), 0)
        else:
            for tar, info in _files(file, str(path)):
                name = PurePosixPath(info.name)
                inner = tar.extractfile(info)
                if name.suffix == ".tar" and inner:
                    found[name.stem] += _images(path, inner, f"{path}: {info.name}", info.offset_data)
    classes = sorted(found)
    return Collection([image._replace(label=k) for k, name in enumerate(classes) for image in found[name]], classes)


def validation(path: Path, synsets: list[str]) -> Collection:
    """The validation images; `synsets` holds the class of each, in the order of their names."""
    with path.open("rb") as file:
        images = sorted(_images(path, file, str(path), 0))
    if len(images) != len(synsets):
        raise DataError(f"{path}: {len(images)} images, but --synsets has {len(synsets)} lines; it needs one for each image")
    return labelled(images, synsets)


def read_synsets(path: str) -> list[str]:
    """The synset of each validation image: from the development kit, or from a text file with one per line."""
    content = storage.read_all(path)
    if not content.startswith(b"\x1f\x8b"):
        return content.decode(errors="replace").split()
    from scipy.io import loadmat

    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as kit:
            parts = {info.name: kit.extractfile(info) for info in kit if info.name.endswith((GROUND_TRUTH, "data/meta.mat"))}
            truth, meta = (parts[name].read() for name in sorted(parts))  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path}: not the development kit ({error}); it holds {GROUND_TRUTH} and data/meta.mat") from error
    rows = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    return [names[int(number)] for number in truth.split()]


def _images(path: Path, file: IO[bytes], name: str, base: int) -> list[Item]:
    """The images of a tar that begins at byte `base` of `path`, yet without labels."""
    images = []
    for _, info in _files(file, name):
        member = PurePosixPath(info.name)
        extension = member.suffix.lower().lstrip(".")
        if extension in EXTENSIONS:
            images.append(Item(member.stem, extension, -1, str(path), base + info.offset_data, info.size))
    return images


def _files(file: IO[bytes], name: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Every regular file of a tar, by its headers alone."""
    return ((tar, info) for tar, info in headers(file, name) if info.isreg() and not info.issparse())
