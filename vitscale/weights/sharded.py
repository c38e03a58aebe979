"""Weights as safetensors, written as they come: one file, or several and an index as Hugging Face's programs know it."""

import ctypes
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from vitscale.modelinfo import weight_files
from vitscale.weights.rules import Tensors

SHARD_BYTES = 450 * 2**20
CHUNK_BYTES = 16 * 2**20
FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def write(
    folder: Path, file: str, shapes: dict[str, torch.Size], read: Callable[[str], torch.Tensor], metadata: dict[str, str]
) -> dict[str, str]:
    """fp32 tensors to `file`, or beside it to parts of at most 450 MiB; returns the SHA-256 of each.

    `read` gives a tensor by name; one is held at a time.
    """
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    groups = split({name: tensor.nbytes for name, tensor in tensors.items()}, SHARD_BYTES)
    sums: dict[str, str] = {}
    index: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        part = file if len(groups) == 1 else file.replace(".", f"-{number:05d}-of-{len(groups):05d}.")
        head = header({name: tensors[name] for name in names}, metadata)
        sums[part] = write_file(folder / part, head, map(read, names), sum(tensors[name].nbytes for name in names))
        index |= dict.fromkeys(names, part)
    if len(groups) > 1:
        content = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": index}
        (folder / f"{file}.index.json").write_text(json.dumps(content, indent=1) + "\n")
    return sums


def split(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups of at most `limit` bytes; what is larger stands alone."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def header(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """What a safetensors file begins with when these tensors follow one after another (huggingface/safetensors, README)."""
    entries: dict[str, dict] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_file(path: Path, head: bytes, tensors: Iterable[torch.Tensor], num_bytes: int) -> str:
    """Header and tensors of so many bytes, flushed to the disk; returns the SHA-256. Leaves the interpreter's lock free."""
    digest = hashlib.sha256(head)
    with path.open("wb") as file, ThreadPoolExecutor(1) as hashing:
        reserve(file.fileno(), len(head) + num_bytes)
        file.write(head)
        for tensor in tensors:
            data = tensor.flatten().view(torch.uint8).numpy().data
            for start in range(0, len(data), CHUNK_BYTES):
                hashed = hashing.submit(digest.update, data[start : start + CHUNK_BYTES])
                file.write(data[start : start + CHUNK_BYTES])
                hashed.result()  # at most one chunk behind
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def reserve(descriptor: int, num_bytes: int) -> None:
    """Room for so many bytes: OSError of a full disk, or a quota, before they are written.

    Not os.posix_fallocate: where a file system cannot promise room, that would write everything once more.
    """
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", lambda *_: 0)  # Linux has it
    failed = fallocate(descriptor, FALLOC_FL_KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(num_bytes))
    if failed and (number := ctypes.get_errno()) in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(number, os.strerror(number))


def read(folder: Path) -> Tensors:
    """The weights of a model directory."""
    parts = (path for path in weight_files(folder) if path.suffix == ".safetensors")
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}
