"""The order at a scale for which there need be no data: what start, resume, reads and memory of a rank come to."""

import multiprocessing
import random
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.index import ROW
from data_pipeline.manifest import Manifest, read_manifest, write_manifest
from data_pipeline.order import Order
from data_pipeline.stream import resident_samples

IMAGE_BYTES = 110_000  # of an encoded image: ImageNet's
RESUMES = 20
RANKS, STEPS = 16, 256  # looked at for the balance of reads


@dataclass(frozen=True)
class Scale:
    """A data set and a machine."""

    samples: int = 4_000_000_000
    shards: int = 400_000
    ranks: int = 4096
    global_batch: int = 32_768
    lanes: int = 32_768
    shuffle_block: int = 64

    def sizes(self) -> np.ndarray:
        """Samples of each shard, int64, as equal as can be."""
        base, extra = divmod(self.samples, self.shards)
        return base + (np.arange(self.shards) < extra)

    def order(self, sizes: np.ndarray) -> Order:
        return Order([sizes], self.global_batch, self.lanes, self.shuffle_block, seed=0)


def simulate(scale: Scale) -> dict[str, float]:
    """All that is measured or follows, by name with unit; times are of this machine."""
    order = scale.order(scale.sizes())
    held = resident_samples(order.lanes_of(0, scale.ranks)[1], order.per_lane, scale.shuffle_block)
    return {
        **start(scale),
        **resume(scale, order),
        **balance(scale, order),
        "block_bytes": scale.shuffle_block * IMAGE_BYTES,
        "block_index_bytes": scale.shuffle_block * ROW.itemsize,
        "bytes_per_rank_and_step": scale.global_batch // scale.ranks * IMAGE_BYTES,
        "window_mib": held * IMAGE_BYTES / 2**20,  # of encoded images, which a rank holds
    }


def start(scale: Scale) -> dict[str, float]:
    """Seconds and memory of a fresh process from nothing to a rank's first step, by way of a manifest of that size."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        _write_manifest(scale, f"{folder}/train.json")
        begin = time.perf_counter()
        memory = fresh.submit(_first_step, f"{folder}/train.json", scale).result()
        return {"start_process_s": time.perf_counter() - begin, **memory}


def _write_manifest(scale: Scale, location: str) -> None:
    sizes, numbers, sums = scale.sizes(), range(scale.shards), random.Random(0)
    urls, sha256 = [f"train-{number:06d}.tar" for number in numbers], [sums.randbytes(32).hex() for _ in numbers]
    labels = np.zeros_like(sizes)
    columns = (urls, sizes, sizes * IMAGE_BYTES, sha256, sizes * ROW.itemsize, sizes, labels, labels)  # in their order
    write_manifest(Manifest(location, *columns, classes=[]))


def _first_step(location: str, scale: Scale) -> dict[str, float]:
    """What a rank does at its start, and the memory that it took."""
    manifest = read_manifest(location)
    assert manifest.digest
    _step_ms(scale, scale.order(manifest.samples), 0)
    memory = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    names = {"start_peak_mib": "VmHWM", "start_resident_mib": "VmRSS"}  # ru_maxrss would count the parent's
    return {name: int(memory[line].removesuffix("kB")) / 1024 for name, line in names.items()}


def resume(scale: Scale, order: Order) -> dict[str, float]:
    """Milliseconds to the samples of any step, each in an epoch not visited before."""
    draw, epoch_steps = random.Random(0), scale.samples / scale.global_batch
    found = [_step_ms(scale, order, int((epoch + draw.random()) * epoch_steps)) for epoch in range(3, 3 + RESUMES)]
    return {"resume_median_ms": statistics.median(found), "resume_max_ms": max(found)}


def _step_ms(scale: Scale, order: Order, step: int) -> float:
    begin = time.perf_counter()
    order.view(*order.lanes_of(scale.ranks // 2, scale.ranks)).step(step)
    return (time.perf_counter() - begin) * 1000


def balance(scale: Scale, order: Order) -> dict[str, float]:
    """Blocks that a rank opens in a step: within an epoch, and where one begins. Ranks' samples are equal by construction."""
    border = scale.samples // scale.global_batch  # the step in which epoch 1 begins
    inside, begins = [], []
    for rank in sorted({i * scale.ranks // RANKS for i in range(RANKS)}):
        lanes = order.lanes_of(rank, scale.ranks)
        inside += _opened(order, lanes, border // 4, max(1, min(STEPS, border // 2)))
        begins += _opened(order, lanes, max(border - 1, 0), 2)
    return {
        "samples_per_rank_and_step": scale.global_batch // scale.ranks,
        "blocks_per_rank_and_step_mean": statistics.mean(inside),
        "blocks_per_rank_and_step_max": max(inside),
        "blocks_where_an_epoch_begins_max": max(begins),
    }


def _opened(order: Order, lanes: tuple[int, int], start: int, steps: int) -> list[int]:
    """Blocks opened in each of the steps after `start`."""
    blocks: list[np.ndarray] = []
    view = order.view(*lanes, opened=blocks.append)
    counts = []
    for step in range(start, start + 1 + steps):
        view.step(step)
        counts.append(len(blocks))
    return np.diff(counts).tolist()
