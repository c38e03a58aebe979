"""Training beside the loader, from shards to updates: `python tests/benchmarks/bench_beside.py`.

One process, fp32, photos of 500x375: the launch thread has a core, what decodes has the others. Steps of several
lengths ask for a part of what the loader gives by itself on those threads. Two kinds: `compute`, where the launch thread
computes all the time, and `launch`, where it makes the many small calls of a deep and narrow model and then sleeps, as one
does that waits for its GPU. Each kind runs on batches that are there, then beside the loader, round after round.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from data_pipeline.bench import LANES, PHOTO, RESTART_BLOCKS, Kind, make
from data_pipeline.loader import Batch, Layout, train_loader
from data_pipeline.order import Order
from data_pipeline.stream import PREFETCH_STEPS, Shards
from data_pipeline.workers import spread
from vitscale.cadence import Cadence
from vitscale.config import RunConfig
from vitscale.loop import train_step
from vitscale.meter import Meter
from vitscale.model.build import build
from vitscale.readings import Readings
from vitscale.state import TrainState
from vitscale.train import build_engine
from vitscale.world import World

ASKED = (0.25, 0.5, 0.75, 0.9, 1.1)  # of the loader's own rate; the last is more than it has
WARM_UP = PREFETCH_STEPS + 6  # steps in which the loader fills what it keeps ahead, in workers and here
SMALL = {"width": 192, "depth": 2, "num_heads": 3, "mlp_dim": 768, "patch_size": 32}
NARROW = {"width": 32, "depth": 24, "num_heads": 2, "mlp_dim": 64, "patch_size": 32}
os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants it


class Times(NamedTuple):
    """Seconds of one step: until its batch was there, in it, and of these the launch thread's own."""

    waited: float
    step: float
    launched: float


class Trainer:
    """An engine, and steps of `seconds` for a batch: `images` of it are trained on, then the launch thread sleeps."""

    def __init__(self, cfg: RunConfig, world: World) -> None:
        self.cfg, self.world = cfg, world
        self.engine, self.readings = build_engine(build(cfg.model), cfg, world), Readings(world, cfg.train.global_batch)
        self.state, self.cadence = TrainState(), Cadence.of(cfg, 512)

    def run(self, batches: Iterable[Batch], images: int, seconds: float) -> Iterator[Times]:
        """As in `vitscale.loop.fit`, without a stop that other ranks could ask for."""
        self.meter = Meter(self.cfg.train.global_batch, 0, {}, self.world.phases)
        before = time.perf_counter()
        for batch in self.meter.waiting(self.world.until_stop(batches)):
            arrived = time.perf_counter()
            part = next(batch.split(images))
            self.readings.add(train_step(self.engine, part, self.cfg, self.state.step, self.cadence), part, self.state)
            self.meter.step()
            self.readings.settle(self.state, keep=0)
            launched = time.perf_counter()
            time.sleep(max(0.0, arrived + seconds - launched))
            now = time.perf_counter()
            yield Times(arrived - before, now - before, launched - arrived)
            before = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1), help="that decode")
    parser.add_argument(
        "--processes", type=int, help="that share these threads; 0: threads of the training itself (default: as many)"
    )
    parser.add_argument("--steps", type=int, default=20, help="of each row in a round (default: 20)")
    parser.add_argument("--rounds", type=int, default=2, help="(default: 2)")
    parser.add_argument("--restart", action="store_true", help="images with restart markers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kind = make(Path(folder), 512, RESTART_BLOCKS if args.restart else 0)
        with World(config(kind, SMALL, args.threads).hardware, seed=0) as world:
            torch.set_num_threads(1)
            measure(kind, world, args)


def config(kind: Kind, model: dict, threads: int) -> RunConfig:
    values: dict = {"name": "bench", "model": model | {"num_classes": 10, "image_size": 224}}
    values |= {"train": {"global_batch": 64 * threads, "total": {"steps": 10**6}}, "optim": {"lr": 1e-4}}
    values["data"] = {"train": {"manifest": str(kind.manifest.location)}}
    return RunConfig.model_validate(values | {"hardware": {"device": "cpu", "precision": "fp32", "zero_stage": 1}})


def measure(kind: Kind, world: World, args: argparse.Namespace) -> None:
    small, narrow = (Trainer(config(kind, model, args.threads), world) for model in (SMALL, NARROW))

    def batches(count: int) -> Iterable[Batch]:
        return loader(kind, small.cfg, args, WARM_UP + count)

    ready, rate = list(batches(0))[:4], statistics.median(alone(batches(args.steps)) for _ in range(3))
    batch = len(ready[0].labels_B)
    by = "threads of the training" if args.processes == 0 else "processes"
    print(f"{args.threads} decoding {by}, {len(os.sched_getaffinity(0))} cores, photos of {PHOTO}, batches of {batch}")
    print(f"the loader by itself: {rate:,.0f} images/s\n")
    heads = ("step", "asks for", "gets", "step, ms", "waits, median", "mean", "meter", "launch thread")
    print(*(f"{head:>13}" for head in heads), flush=True)
    for asked in ASKED:
        seconds = batch / rate / asked
        for name, trainer, images in (("compute", small, fitting(small, ready, seconds)), ("launch", narrow, 1)):
            pause = seconds if trainer is narrow else 0.0
            show(name, trainer, rate, rounds(trainer, images, pause, ready, batches, args))


def loader(kind: Kind, cfg: RunConfig, args: argparse.Namespace, steps: int) -> Iterable[Batch]:
    order = Order([kind.manifest.samples], cfg.train.global_batch, LANES, cfg.data.shuffle_block, seed=0)
    make = partial(train_loader, Shards(kind.manifest), order, cfg.data, 224, 10, 0, range(steps))
    processes = args.threads if args.processes is None else args.processes
    return spread(make, Layout(0, 1, args.threads), order, 1, processes)


def alone(batches: Iterable[Batch]) -> float:
    """Images per second of the loader when nobody else does anything."""
    began, count = 0.0, 0
    for number, batch in enumerate(batches):
        count += len(batch.labels_B) if number >= WARM_UP else 0
        began = time.perf_counter() if number == WARM_UP - 1 else began
    return count / (time.perf_counter() - began)


def fitting(trainer: Trainer, ready: list[Batch], seconds: float) -> int:
    """How many images of a batch the model can train on in this time: linear between a few and all."""
    few, batch = 8, len(ready[0].labels_B)
    short, long = (median(trainer.run(itertools.islice(itertools.cycle(ready), 6), n, 0.0), "step") for n in (few, batch))
    return max(1, min(batch, round(few + (batch - few) * (seconds - short) / (long - short))))


def median(times: Iterable[Times], field: str) -> float:
    return statistics.median(getattr(each, field) for each in times)


class Found(NamedTuple):
    """Of one row, all rounds: steps on batches that are there, and beside the loader; what the meter said of waiting."""

    alone: list[Times]
    beside: list[Times]
    meter: list[float]


def rounds(
    trainer: Trainer,
    images: int,
    pause: float,
    ready: list[Batch],
    batches: Callable[[int], Iterable[Batch]],
    args: argparse.Namespace,
) -> Found:
    found = Found([], [], [])
    for _ in range(args.rounds):
        found.alone.extend(trainer.run(itertools.islice(itertools.cycle(ready), args.steps), images, pause))
        steps = trainer.run(batches(args.steps), images, pause)
        for _ in itertools.islice(steps, WARM_UP):
            trainer.meter.report(0)  # counts from here on
        found.beside.extend(steps)
        found.meter.append(trainer.meter.report(0)["speed/data_wait"])
    return found


def show(name: str, trainer: Trainer, rate: float, found: Found) -> None:
    batch, waits = trainer.cfg.train.global_batch, [each.waited / each.step for each in found.beside]
    asks, gets = (batch / (sum(each.step for each in times) / len(times)) / rate for times in (found.alone, found.beside))
    starved = median(found.beside, "launched") / median(found.alone, "launched")
    mean = sum(each.waited for each in found.beside) / sum(each.step for each in found.beside)
    step, meter = median(found.alone, "step") * 1000, statistics.mean(found.meter)
    shares = (f"{value:.2%}" for value in (statistics.median(waits), mean, meter))
    cells = (name, f"{asks:.0%}", f"{gets:.0%}", f"{step:.1f}", *shares, f"{starved:.2f} x")
    print(*(f"{cell:>13}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
