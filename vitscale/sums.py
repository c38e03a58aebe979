"""SHA256SUMS: what a directory holds, written last, so that a directory without it is not complete. Imports no torch."""

import hashlib
import os
from pathlib import Path

SUMS = "SHA256SUMS"


def verify(path: Path) -> list[str]:
    """What is wrong with a checkpoint or published model: `weights.safetensors differs`; [] = sound."""
    problems = []
    try:
        lines = (path / SUMS).read_text().splitlines()
    except OSError:
        return [f"{SUMS} missing"]
    if not lines:
        return [f"{SUMS} is empty"]
    for line in lines:
        expected, _, name = line.partition("  ")
        if not (path / name).is_file():
            problems.append(f"{name} missing")
        elif sha256(path / name) != expected:
            problems.append(f"{name} differs from its SHA-256")
    return problems


def write_sums(path: Path) -> None:
    """SHA256SUMS over every file below (the format of `sha256sum`), itself and all content flushed to disk."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != SUMS)
    for file in files:
        fsync(file)
    (path / SUMS).write_text("".join(f"{sha256(file)}  {file.relative_to(path)}\n" for file in files))
    fsync(path / SUMS)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
