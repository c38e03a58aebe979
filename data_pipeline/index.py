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
    image: tuple[str, int, int, int] | None = None
    label: tuple[str, int] | None = None
    for key, extension, offset, content in _members(shard):
        second = image if extension in IMAGE_EXTENSIONS else label if extension == "cls" else None
        begun = image or label
        if begun and (second or begun[0] != key):
            raise DataError(f"{shard}: sample {begun[0]}: expected one image and one .cls with the same key, side by side")
        if extension in IMAGE_EXTENSIONS:
            image = (key, offset, len(content), zlib.crc32(content))
        elif extension == "cls":
            label = (key, _parse_label(shard, key, content))
        if image and label:
            yield Entry(*image, label[1])
            image = label = None
    if begun := image or label:
        raise DataError(f"{shard}: ends inside sample {begun[0]}; the tar is truncated, build it anew")


def _members(shard: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """(key, extension, offset of the content, content) of every regular file. Keys end at the first dot of the file name."""
    try:
        with tarfile.open(shard, "r:", errors="replace") as tar:
            for member in tar:
                if member.isdir():
                    continue
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
            _check_end(shard, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard}: not a readable tar ({error}); build it anew or remove it from the manifest") from error


def _check_end(shard: Path, end: int) -> None:
    """A tar cut at a 512-byte boundary, or with a damaged header, reads like a shorter one; only what follows tells."""
    with shard.open("rb") as file:
        file.seek(end)
        rest = file.read()
    if len(rest) < 1024 or any(rest):
        raise DataError(
            f"{shard}: no end-of-archive blocks at byte {end}; the tar is truncated or damaged, build or copy it anew"
        )


def _parse_label(shard: Path, key: str, content: bytes) -> int:
    try:
        return int(np.int32(int(content)))
    except (ValueError, OverflowError):
        raise DataError(f"{shard}: sample {key}: label {content[:20]!r} is not an integer of 32 bits") from None


def write_index(entries: list[Entry], path: Path) -> None:
    """Write the index of one shard (not atomic: the caller renames)."""
    path.write_bytes(encode_index(entries))


def encode_index(entries: list[Entry]) -> bytes:
    """The content of an index file."""
    keys = [entry.key.encode() for entry in entries]
    rows = np.zeros(len(entries), ROW)
    for name in ("offset", "size", "crc32", "label"):
        rows[name] = [getattr(entry, name) for entry in entries]
    rows["key_size"] = [len(key) for key in keys]
    rows["key_offset"] = HEADER_BYTES + rows.nbytes + np.cumsum(rows["key_size"], dtype=np.uint64) - rows["key_size"]
    return MAGIC + len(entries).to_bytes(8, "little") + rows.tobytes() + b"".join(keys)


def read_index(path: Path) -> tuple[np.ndarray, np.memmap]:
    """(rows of dtype ROW, the whole file) mapped, not read."""
    if path.stat().st_size < HEADER_BYTES or bytes((file := np.memmap(path, np.uint8, "r"))[:8]) != MAGIC:
        raise DataError(f"{path}: not an index; make it anew with `vitscale data index`")
    count = int.from_bytes(bytes(file[8:16]), "little")
    needed = end = HEADER_BYTES + count * ROW.itemsize
    rows = file[HEADER_BYTES:end].view(ROW) if len(file) >= end else np.zeros(0, ROW)
    if len(rows):
        needed = int(rows[-1]["key_offset"]) + int(rows[-1]["key_size"])
    if len(file) != needed:
        raise DataError(
            f"{path}: {len(file)} bytes, but its {count} samples need {needed}; make it anew with `vitscale data index`"
        )
    return rows, file
