"""The index of a shard: where each sample and its image lie in the tar, the image's checksum and label, in rows of fixed width.

File: 16 bytes of header (magic, number of samples), one ROW per sample, then all keys as UTF-8. A row's place follows from
its number, so the rows of a block of samples are one ranged read.
"""

import io
import itertools
import operator
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from isal.isal_zlib import crc32

from data_pipeline.errors import DataError
from data_pipeline.labels import Labels

MAGIC = b"VSINDEX2"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
PICKLE_EXTENSIONS = ("pyd", "pkl", "pickle", "pth", "pt")  # loading one runs code that stands in it
HEADER_BYTES = 16
END_BYTES = 2 * tarfile.BLOCKSIZE  # zeros that end a tar
ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the image's bytes in the tar
        ("size", "<u4"),
        ("crc32", "<u4"),
        ("label", "<i4"),  # -1 = none
        ("key_size", "<u4"),
        ("key_offset", "<u8"),  # in the index file
        ("lead", "<u4"),  # bytes of the sample before the image: headers, members that precede it
        ("span", "<u4"),  # bytes of the whole sample: all its members with headers and padding
    ]
)


class Entry(NamedTuple):
    """One sample as found in a tar; the numbers are those of ROW."""

    key: str
    offset: int
    size: int
    crc32: int
    label: int
    lead: int
    span: int


class Member(NamedTuple):
    """One file in a tar. A sample is consecutive members whose names agree up to the first dot of the file name."""

    key: str
    extension: str
    begin: int  # of its header
    offset: int  # of its content
    content: bytes


def scan(shard: Path, labels: Labels, name: str = "") -> Iterator[Entry]:
    """The samples of a tar in order: each one image, and its label. `name` is the shard's in messages.

    Errors for what is no shard: links, devices, names that point outside, pickles, a missing end.
    """
    name = name or str(shard)
    with shard.open("rb") as file:
        members = (_member(file, info, name) for _, info in headers(file, name) if not info.isdir())
        parts = (member for member in members if is_part(member.key, member.extension))
        for key, group in itertools.groupby(parts, operator.attrgetter("key")):
            yield _entry(key, list(group), labels, name)


def _entry(key: str, group: list[Member], labels: Labels, name: str) -> Entry:
    images = [member for member in group if member.extension in IMAGE_EXTENSIONS]
    contents = {member.extension: member.content for member in group}
    if len(images) != 1 or len(contents) < len(group):
        found = ", ".join(f".{member.extension}" for member in group)
        raise DataError(
            f"{name}: sample {key}: {len(images)} images among its members {found}; each sample needs one "
            f"({', '.join(IMAGE_EXTENSIONS)}) beside its label, under a key of its own, and no ending twice"
        )
    image, begin, last = images[0], group[0].begin, group[-1]
    label = labels.read(f"{name}: sample {key}", contents)
    end = last.offset + -(-len(last.content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return Entry(key, image.offset, len(image.content), crc32(image.content), label, image.offset - begin, end - begin)


def headers(file: IO[bytes], name: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The headers of an uncompressed tar. DataError: it is none, or is cut off or damaged."""
    try:
        with tarfile.open(fileobj=file, mode="r:", errors="replace") as tar:
            for info in tar:
                yield tar, info
                tar.members = []  # type: ignore[attr-defined]  # or it keeps every header
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{name}: not a readable tar ({error}); build or copy it anew, gunzip it if it is compressed, or leave it out"
        ) from error
    # A tar cut at a 512-byte boundary, or with a damaged header, reads like a shorter one; only what follows tells.
    file.seek(tar.offset)
    if file.read(END_BYTES) != bytes(END_BYTES) or any(map(any, iter(lambda: file.read(1 << 20), b""))):
        raise DataError(f"{name}: no end-of-archive blocks at byte {tar.offset}; truncated or damaged, build or copy it anew")


def _member(shard: IO[bytes], info: tarfile.TarInfo, name: str) -> Member:
    if not info.isreg() or info.issparse():  # a sparse file's bytes do not lie there as they are
        raise DataError(f"{name}: member {info.name!r} is not a regular file; shards hold files only")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise DataError(f"{name}: member {info.name!r} points outside of the folder it is unpacked in; build the shard anew")
    key, extension = split_name(info.name)
    if extension in PICKLE_EXTENSIONS:
        raise DataError(f"{name}: member {info.name!r} is a pickle, which runs code when loaded; build the shard without it")
    if info.offset_data + info.size > os.fstat(shard.fileno()).st_size:
        raise DataError(f"{name}: ends inside member {info.name!r}; the tar is truncated, build it anew")
    shard.seek(info.offset_data)
    return Member(key, extension, info.offset, info.offset_data, shard.read(info.size))


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member: the key ends at the first dot of the file name, as webdataset has it."""
    folder, slash, file_name = name.removeprefix("./").rpartition("/")
    key, _, extension = file_name.partition(".")
    return f"{folder}{slash}{key}", extension.lower()


def is_part(key: str, extension: str) -> bool:
    """Whether a member is one of a sample: README and ._a.jpg are passed over, as webdataset does."""
    return bool(extension) and not f"/{key}".endswith("/")


def unpack(span: bytes) -> dict[str, bytes]:
    """The members of a sample by extension, from the bytes of the sample in its tar."""
    with tarfile.open(fileobj=io.BytesIO(span), errors="replace") as tar:
        files = [(split_name(info.name), tar.extractfile(info)) for info in tar if info.isreg()]
        return {extension: file.read() for (key, extension), file in files if file and is_part(key, extension)}


def encode_index(entries: Iterable[Entry]) -> bytes:
    """The content of an index file."""
    entries = list(entries)
    keys = [entry.key.encode() for entry in entries]
    rows = np.zeros(len(entries), ROW)
    for name in Entry._fields[1:]:
        rows[name] = [getattr(entry, name) for entry in entries]
    rows["key_size"] = [len(key) for key in keys]
    rows["key_offset"] = HEADER_BYTES + rows.nbytes + np.cumsum(rows["key_size"], dtype=np.uint64) - rows["key_size"]
    return MAGIC + len(entries).to_bytes(8, "little") + rows.tobytes() + b"".join(keys)


def decode_index(content: bytes, name: str) -> list[Entry]:
    """What stands in an index file; `name` is the index's in messages."""
    count = num_rows(content[:HEADER_BYTES], name)
    needed = rows_end = HEADER_BYTES + count * ROW.itemsize
    if count and len(content) >= rows_end:
        last = np.frombuffer(content[rows_end - ROW.itemsize : rows_end], ROW)[0]
        needed = int(last["key_offset"]) + int(last["key_size"])
    if len(content) != needed:
        raise DataError(
            f"{name}: {len(content)} bytes, but its {count} samples need {needed}; make it anew with `vitscale data index`"
        )
    rows = np.frombuffer(content[HEADER_BYTES:rows_end], ROW)
    spans = zip(rows["key_offset"].tolist(), rows["key_size"].tolist(), strict=True)
    keys = (content[start : start + length].decode() for start, length in spans)
    return [Entry(key, *numbers) for key, numbers in zip(keys, rows[list(Entry._fields[1:])].tolist(), strict=True)]


def num_rows(header: bytes, name: str) -> int:
    """Samples in the index that begins with these HEADER_BYTES."""
    if len(header) < HEADER_BYTES or header[: len(MAGIC)] != MAGIC:
        raise DataError(f"{name}: not an index of this version; make it anew with `vitscale data index`")
    return int.from_bytes(header[len(MAGIC) :], "little")


def rows_range(first: int, end: int) -> tuple[int, int]:
    """Where the rows [first, end) of samples lie in an index file, in bytes."""
    return HEADER_BYTES + first * ROW.itemsize, HEADER_BYTES + end * ROW.itemsize
