"""A tiny data set of three classes and four encodings, and the tools to write and damage shards."""

import io
import shutil
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from data_pipeline.build import build
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.sources import folder

CLASSES = ("ant", "bee", "cat")
FORMATS = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG"))
NUM_IMAGES = 31


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """encode(pixels or Pillow image, format, **options) -> bytes, by Pillow."""

    def encode(picture: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(file, kind, **options)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    """picture(width, height, number) -> smooth colours, different for every number: HWC uint8."""

    def picture(width: int, height: int, number: int = 0) -> np.ndarray:
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
        return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))

    return picture


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory, encode: Callable, picture: Callable) -> Path:
    """31 images of different sizes in class folders."""
    root = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        extension, kind = FORMATS[number % 4]
        path = root / CLASSES[number % 3] / f"image{number:02d}.{extension}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(picture(20 + number, 50 - number, number), kind))
    return root


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> dict[str, Manifest]:
    """The folder as shards of 7, 1, 4, 4, ... images. Only to be read."""
    return build(folder(image_folder), tmp_path_factory.mktemp("built"), 0.2, [7, 1, 4], seed=3)


@pytest.fixture(scope="session")
def train(built: dict[str, Manifest]) -> Manifest:
    """The 25 training images. Only to be read."""
    return built["train"]


@pytest.fixture
def copied(train: Manifest, tmp_path: Path) -> Manifest:
    """The training images in a folder of their own, to be damaged."""
    shutil.copytree(Path(train.location).parent, tmp_path / "copied")
    return read_manifest(str(tmp_path / "copied" / "train.json"))


@pytest.fixture
def write_tar(tmp_path: Path) -> Callable[..., Path]:
    """write_tar(name, [(member, content), ...]) -> path, by Python's tarfile."""

    def write(name: str, members: list[tuple[str, bytes]], **options: Any) -> Path:
        with tarfile.open(tmp_path / name, "w", **options) as tar:
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def tar_contents() -> Callable[[Manifest], list[tuple[str, bytes, int]]]:
    """(key, image, label) of every sample in manifest order, by Python's tarfile."""

    def contents(manifest: Manifest) -> list[tuple[str, bytes, int]]:
        samples: dict[str, dict[str, bytes]] = {}
        for number in range(len(manifest.urls)):
            with tarfile.open(manifest.shard(number)) as tar:
                for member in tar:
                    key, extension = member.name.split(".")
                    file = tar.extractfile(member)
                    samples.setdefault(key, {})["label" if extension == "cls" else "image"] = file.read() if file else b""
        return [(key, parts["image"], int(parts["label"])) for key, parts in samples.items()]

    return contents


@pytest.fixture(scope="session")
def by_webdataset() -> Callable[..., list[dict[str, Any]]]:
    """by_webdataset(paths, decoders) -> samples, by plain webdataset, which leaves its files open."""

    def read(shards: list[Path], *decoders: str) -> list[dict[str, Any]]:
        dataset = wds.WebDataset([str(shard) for shard in shards], shardshuffle=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            return list(dataset.decode(*decoders) if decoders else dataset)

    return read
