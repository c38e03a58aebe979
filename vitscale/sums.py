"""SHA256SUMS: what a directory holds, written last, so that a directory without it is not complete. Imports no torch."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUMS = "SHA256SUMS"
UNLISTED = (SUMS, "registered_model_meta")  # the latter is added by MLflow where it downloads or serves a model


def verify(path: Path) -> list[str]:
    """What is wrong with a checkpoint or published model: `weights.safetensors differs`; [] = sound."""
    try:
        sums = read_sums(path)
    except FileNotFoundError:
        return [f"{SUMS} missing"]
    except (OSError, UnicodeDecodeError) as error:
        return [f"{SUMS} is not readable ({error})"]
    if not sums:
        return [f"{SUMS} is empty"]
    problems = [f"{name} is not listed in {SUMS}" for name in _files(path) if name not in sums]
    with ThreadPoolExecutor() as pool:  # one thread reads slower than disks do
        return problems + [problem for problem in pool.map(lambda item: _compare(path, *item), sums.items()) if problem]


def _compare(path: Path, name: str, expected: str) -> str:
    if not (path / name).is_file():
        return f"{name} missing"
    return "" if sha256(path / name) == expected else f"{name} differs from its SHA-256"


def read_sums(path: Path) -> dict[str, str]:
    """The SHA-256 of each file, as the directory's list has them."""
    lines = (path / SUMS).read_text().splitlines()
    return {name: expected for expected, _, name in (line.partition("  ") for line in lines)}


def write_sums(path: Path, known: dict[str, str] | None = None) -> None:
    """SHA256SUMS over every file below (the format of `sha256sum`), itself and all content flushed to disk.

    `known`: sums of files that whoever wrote them has computed and flushed.
    """
    sums = dict(known or {})
    for name in _files(path):
        if name not in sums:
            fsync(path / name)
            sums[name] = sha256(path / name)
    (path / SUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
    for folder in {(path / name).parent for name in sums}:
        fsync(folder)
    fsync(path / SUMS)


def _files(path: Path) -> list[str]:
    """The names of all files below but the sums themselves, MLflow's mark and hidden ones, sorted."""
    found = (file for file in path.rglob("*") if file.is_file() and file.name not in UNLISTED and not file.name.startswith("."))
    return sorted(str(file.relative_to(path)) for file in found)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
