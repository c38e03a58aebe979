"""The index beside a shard: where each image lies in the tar, its size, checksum and label, in rows of fixed width.

File: 16 bytes of header (magic, number of samples), one ROW per sample, then all keys as UTF-8. A row's place follows from
its number, so a block of samples is one ranged read.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError

MAGIC = b"VSINDEX1"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
HEADER_BYTES = 16
ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the image's bytes in the tar
        ("size", "<u4"),
        ("crc32", "<u4"),
        ("label", "<i4"),
        ("key_size", "<u4"),
        ("key_offset", "<u8"),  # in the index file
    ]
)


@dataclass(frozen=True)
class Entry:
    """One sample as found in a tar."""

    key: str
    offset: int
    size: int
    crc32: int
    label: int


def index_path(shard: Path) -> Path:
    """`train-000003.tar` -> `train-000003.idx`"""
    return shard.with_suffix(".idx")


def scan(shard: Path) -> Iterator[Entry]:
    """The samples of a tar in order. A sample is consecutive members `KEY.EXT`: one image and one `.cls` with its label."""
    _check_end(shard)
    image: tuple[str, int, int, int] | None = None
    label: tuple[str, int] | None = None
    for key, extension, offset, content in _members(shard):
        if extension in IMAGE_EXTENSIONS:
            image = (key, offset, len(content), zlib.crc32(content))
        elif extension == "cls":
            label = (key, _parse_label(shard, key, content))
        if image and label and image[0] == label[0]:
            yield Entry(*image, label[1])
            image = label = None
        elif (image and label) or (image and image[0] != key) or (label and label[0] != key):
            raise DataError(f"{shard}: sample {key}: expected one image and one .cls with the same key, side by side")
    if image or label:
        raise DataError(f"{shard}: ends inside sample {(image or label or ('?',))[0]}; the tar is truncated, build it anew")


def _members(shard: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """(key, extension, offset of the content, content) of every regular file. Keys end at the first dot of the file name."""
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    raise DataError(f"{shard}: member {member.name!r} is not a regular file; shards hold files only")
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                content = file.read()
                if len(content) != member.size:
                    raise DataError(f"{shard}: ends inside member {member.name!r}; the tar is truncated, build it anew")
                yield f"{folder}/{key}" if folder else key, extension.lower(), member.offset_data, content
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard}: not a readable tar ({error}); build it anew or remove it from the manifest") from error


def _check_end(shard: Path) -> None:
    """A tar cut at a 512-byte boundary reads like a shorter one; only the missing zero blocks at its end tell."""
    with shard.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 1024, 0))
        if size < 1024 or any(file.read()):
            raise DataError(f"{shard}: has no end-of-archive blocks; the tar is truncated, build or copy it anew")


def _parse_label(shard: Path, key: str, content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        raise DataError(f"{shard}: sample {key}: label {content[:20]!r} is not an integer") from None


def write_index(entries: list[Entry], path: Path) -> None:
    """Write the index of one shard (not atomic: the caller renames)."""
    keys = [entry.key.encode() for entry in entries]
    rows = np.zeros(len(entries), ROW)
    for name in ("offset", "size", "crc32", "label"):
        rows[name] = [getattr(entry, name) for entry in entries]
    rows["key_size"] = [len(key) for key in keys]
    rows["key_offset"] = HEADER_BYTES + rows.nbytes + np.cumsum(rows["key_size"], dtype=np.uint64) - rows["key_size"]
    path.write_bytes(MAGIC + len(entries).to_bytes(8, "little") + rows.tobytes() + b"".join(keys))


def read_index(path: Path) -> tuple[np.ndarray, np.memmap]:
    """(rows of dtype ROW, the whole file) mapped, not read."""
    file = np.memmap(path, np.uint8, "r")
    if len(file) < HEADER_BYTES or bytes(file[:8]) != MAGIC:
        raise DataError(f"{path}: not an index; make it anew with `vitscale data index`")
    count = int.from_bytes(bytes(file[8:16]), "little")
    end = HEADER_BYTES + count * ROW.itemsize
    if len(file) < end:
        raise DataError(f"{path}: {len(file)} bytes, but its {count} rows need {end}; make it anew with `vitscale data index`")
    return file[HEADER_BYTES:end].view(ROW), file
