"""How fast this machine makes batches, beside PIL and webdataset on the same images.

Rates are images per core-second: for functions, CPU seconds of one thread; for whole loaders, seconds times cores.
"""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from data_pipeline.box import Box
from data_pipeline.build import build
from data_pipeline.collection import Collection, Item
from data_pipeline.config import AugmentConfig, DataConfig, TrainSourceConfig
from data_pipeline.crop import crop_box, resize
from data_pipeline.decode import decode
from data_pipeline.draw import Draw, Purpose
from data_pipeline.loader import GROUP, Layout, train_loader
from data_pipeline.manifest import Manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards
from data_pipeline.workers import spread

SIZE = 224
resized = partial(resize, height=SIZE, width=SIZE, interpolation="bicubic")
PHOTO = (500, 375)  # width and height of ImageNet's median image
RESTART_BLOCKS = 4
BATCH = 64
PASSES = 4  # of the loaders over the images; the first, in which caches and memory grow warm, is not counted
LANES = 8  # so few that a few hundred photos make whole shuffle blocks

ABOUT = {
    "decode_crop": "decode, inception crop, resize to 224: ordinary JPEGs, one core",
    "decode_crop_restart": "the same with restart markers",
    "pil": "the same crops by PIL, one core",
    "loader": "this package's loader from tar to batch, decoding in processes, all cores",
    "loader_restart": "the same with restart markers",
    "loader_threads": "the same by threads of one process, as training on CPUs has it",
    "webdataset_pil": "webdataset, PIL and torch's DataLoader, a process per core, normalised floats as is usual",
    "webdataset_pil_uint8": "the same without normalising, as our loader gives them",
}


class Kind(NamedTuple):
    """The same photos with or without restart markers, alone and in shards."""

    images: list[bytes]
    boxes: list[Box]
    manifest: Manifest


def bench(num_images: int = 512, rounds: int = 5, threads: int | None = None) -> dict[str, float]:
    """Median rate of every entry over rounds in which all take turns, so that what else the machine does hits all alike."""
    cores = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        plain, restart = (make(Path(folder) / str(blocks), num_images, blocks) for blocks in (0, RESTART_BLOCKS))
        entries: dict[str, Callable[[], float]] = {
            "decode_crop": partial(one_core, decode, plain, resized),
            "decode_crop_restart": partial(one_core, decode, restart, resized),
            "pil": partial(one_core, pil, plain),
            "loader": partial(all_cores, our_loader, plain, cores),
            "loader_restart": partial(all_cores, our_loader, restart, cores),
            "loader_threads": partial(all_cores, partial(our_loader, processes=0), restart, cores),
            "webdataset_pil": partial(all_cores, partial(webdataset_loader, normalised_by_pil), plain, cores),
            "webdataset_pil_uint8": partial(all_cores, partial(webdataset_loader, random_crop_by_pil), plain, cores),
        }
        measured = [{name: rate() for name, rate in entries.items()} for _ in range(rounds)]
    return {name: statistics.median(rates[name] for rates in measured) for name in entries}


def make(folder: Path, count: int, restart_blocks: int) -> Kind:
    """`count` windows of scikit-learn's two photographs as JPEGs, and shards of them."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    images, boxes = [], []
    for number in range(count):
        draw = Draw(0, Purpose.AUGMENT, number)
        photograph = photographs[number % 2]
        x, y = (draw.integer(room + 1) for room in (photograph.width - PHOTO[0], photograph.height - PHOTO[1]))
        file = io.BytesIO()
        window = photograph.crop((x, y, x + PHOTO[0], y + PHOTO[1]))
        window.save(file, "JPEG", quality=95, subsampling=2, restart_marker_blocks=restart_blocks)
        images.append(file.getvalue())
        boxes.append(crop_box(*PHOTO, AugmentConfig().crop_area, AugmentConfig().crop_ratio, draw))
    items = [Item(f"{number:06d}", "jpg", number % 10, image) for number, image in enumerate(images)]
    return Kind(images, boxes, build(Collection(items, []), folder, 0, [256], seed=0, shuffle=False)["train"])


def one_core(make_pixels: Callable[[bytes, Box], Any], kind: Kind, finish: Callable[[Any], Any] = lambda made: made) -> float:
    """Images per CPU second of one thread, in groups as the loader makes them."""
    began = time.thread_time()
    pairs = list(zip(kind.images, kind.boxes, strict=True))
    for start in range(0, len(pairs), GROUP):
        made = [make_pixels(image, box) for image, box in pairs[start : start + GROUP]]
        for pixels in made:
            finish(pixels)
    return len(pairs) / (time.thread_time() - began)


def all_cores(load: Callable[[Kind, int], Iterator[int]], kind: Kind, cores: int) -> float:
    """Images per second and core when all workers are at work; starting and ending them is not counted."""
    times, counts = zip(*((time.perf_counter(), count) for count in load(kind, cores)), strict=True)
    first = max(1, len(counts) // PASSES)
    return sum(counts[first:]) / (times[-1] - times[first - 1]) / cores


def pil(image: bytes, box: Box) -> np.ndarray:
    """What a transform of torchvision does with a PIL image; uint8, so without the conversion to normalised floats."""
    with Image.open(io.BytesIO(image)) as opened:
        crop = opened.convert("RGB").crop((box.x, box.y, box.x + box.width, box.y + box.height))
        return np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def our_loader(kind: Kind, threads: int, processes: int | None = None) -> Iterator[int]:
    """By default a process per thread."""
    config = DataConfig(train=(TrainSourceConfig(manifest=kind.manifest.location),))
    order = Order([kind.manifest.samples], BATCH, LANES, config.shuffle_block, seed=0)
    make = partial(train_loader, Shards(kind.manifest), order, config, SIZE, 10, 0, range(PASSES * len(kind.images) // BATCH))
    for batch in spread(make, Layout(0, 1, threads), order, 1, threads if processes is None else processes):
        yield len(batch.labels_B)


def random_crop_by_pil(image: bytes) -> torch.Tensor:
    """HWC uint8."""
    box = crop_box(*PHOTO, AugmentConfig().crop_area, AugmentConfig().crop_ratio, Draw(0, Purpose.AUGMENT, len(image)))
    return torch.from_numpy(pil(image, box).copy())


def normalised_by_pil(image: bytes) -> torch.Tensor:
    """CHW float32 in [-1, 1]."""
    return (random_crop_by_pil(image).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def webdataset_loader(transform: Callable[[bytes], torch.Tensor], kind: Kind, workers: int) -> Iterator[int]:
    """The usual way: webdataset, PIL, a process per core."""
    urls = [kind.manifest.shard(number) for number in range(len(kind.manifest.urls))]
    stages = (wds.SimpleShardList(urls * PASSES), wds.split_by_worker, wds.tarfile_to_samples(), wds.shuffle(100))
    dataset = wds.DataPipeline(*stages, wds.to_tuple("jpg", "cls"), wds.map_tuple(transform, int))
    for _, labels in torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=workers):
        yield len(labels)
