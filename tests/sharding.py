"""Shards for tests, written by Python's tarfile, with indexes and manifests of ours."""

import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.index import encode_index, scan
from data_pipeline.labels import Labels
from data_pipeline.manifest import Manifest, index_beside, read_manifest, write_manifest
from data_pipeline.storage import join


def jpeg(number: int, **options) -> bytes:
    """A small photo-like picture of its own size, different for every number."""
    width, height = 24 + number % 17, 20 + number % 23
    coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(
    folder: Path, sizes: Sequence[int], prefix: str = "k", damaged: Sequence[int] = (), labels: int = 3, restarts: int = 0
) -> Manifest:
    """Shards of these sizes; image i has key `{prefix}{i}` and label i % labels; the damaged ones cannot be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = iter(range(sum(sizes)))
    shards = []
    for shard, size in enumerate(sizes):
        members = []
        for number in [next(numbers) for _ in range(size)]:
            image = jpeg(number + zlib.crc32(prefix.encode()) % 1000, restart_marker_blocks=restarts)
            content = image[: len(image) // 2] if number in damaged else image
            members += [(f"{prefix}{number}.jpg", content), (f"{prefix}{number}.cls", str(number % labels).encode())]
        shards.append(write_tar(folder / f"{prefix}-{shard:03d}.tar", members))
    return list_tars(shards, folder / f"{prefix}.json")


def list_tars(shards: Sequence[Path], manifest: Path, rule: str = "auto") -> Manifest:
    """Indexes beside the tars, and a manifest."""
    entries = [list(scan(shard, Labels(rule))) for shard in shards]
    for shard, found in zip(shards, entries, strict=True):
        Path(index_beside(str(shard))).write_bytes(encode_index(found))
    found_labels = [[entry.label for entry in found] or [0] for found in entries]
    write_manifest(
        Manifest(
            location=str(manifest),
            urls=[shard.name for shard in shards],
            samples=np.array([len(found) for found in entries]),
            bytes=np.array([shard.stat().st_size for shard in shards]),
            sha256=[f"{zlib.crc32(shard.read_bytes()):064x}" for shard in shards],
            index_bytes=np.array([Path(index_beside(str(shard))).stat().st_size for shard in shards]),
            index_crc32=np.array([zlib.crc32(Path(index_beside(str(shard))).read_bytes()) for shard in shards]),
            label_min=np.array([min(labels) for labels in found_labels]),
            label_max=np.array([max(labels) for labels in found_labels]),
            classes=[],
        )
    )
    return read_manifest(str(manifest))


def beside(manifest: Manifest, name: str) -> str:
    return join(manifest.location, name)
