"""How cost and memory grow: `python tests/benchmarks/bench_growth.py [AXIS ...]`, by default all, about 5 minutes.

The axes: lanes, shards, steps_done, processes, model, sections, metrics. Prints a table of each, with the slope of every curve
in log-log, fitted to its upper half (1 = in proportion); with all axes draws docs/figures/growth.png. Needs no data but one
small shard, which stands for all.
"""

import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from data_pipeline.index import encode_index, scan
from data_pipeline.labels import Labels
from data_pipeline.loader import Batch
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.order import Order, Slots
from data_pipeline.simulate import Scale, start
from data_pipeline.stream import Shards, steps
from vitscale import recipe
from vitscale.cadence import Cadence
from vitscale.config import RunConfig
from vitscale.courier import Tracker
from vitscale.delivery import Mark, unsent
from vitscale.figures.due import draw_due
from vitscale.history import History
from vitscale.loop import fit
from vitscale.model.build import build
from vitscale.modelinfo import ModelInfo
from vitscale.rundir import RunDir
from vitscale.state import TrainState
from vitscale.train import build_engine
from vitscale.validation import Validation
from vitscale.world import World

FIGURE = Path(__file__).parents[2] / "docs/figures/growth.png"
BLOCK, IMAGES = 64, 256  # samples of a shuffle block; images of the one shard that there is
LANES, SHARDS, STEPS = [2**n for n in range(4, 16)], [10**n for n in range(1, 7)], [0, 1_000, 10_000, 100_000, 1_000_000]
PROCESSES, DEPTHS, SOURCES, METRICS = [1, 2, 4, 8], [2, 6, 12, 24, 48], [1, 2, 4, 8, 16, 32, 64], [1, 3, 10, 30, 100, 300, 1000]
LOG_EVERY, EVAL_EVERY = 50, 1000  # steps, of the run whose history is made up
os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants it
Values = dict[str, float]  # quantity with unit -> value
Curves = dict[str, dict[float, float]]  # quantity with unit -> place on the axis -> value


def main() -> None:
    torch.set_num_threads(1)
    axes = {axis.__name__: axis for axis in (lanes, shards, steps_done, processes, model, sections, metrics)}
    found: dict[str, Curves] = {}
    for name in sys.argv[1:] or axes:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = axes[name](Path(folder))
        print_table(axes[name].__doc__ or "", found[name])
    if found.keys() == axes.keys():
        draw({axes[name].__doc__ or "": curves for name, curves in found.items()})


def gather(places: list[int], at: Callable[[int], Values]) -> Curves:
    """What is found at each place, by quantity."""
    curves: Curves = {}
    for place in places:
        for name, value in at(place).items():
            curves.setdefault(name, {})[place] = value
    return curves


def print_table(title: str, curves: Curves) -> None:
    places = sorted({place for curve in curves.values() for place in curve})
    print(f"\n{title:<58}" + "".join(f"{place:>11,.0f}" for place in places) + f"{'slope':>8}")
    for name, curve in curves.items():
        print(f"{name:<58}" + "".join(f"{curve[p]:>11,.4g}" if p in curve else f"{'':>11}" for p in places), end="")
        print(f"{slope(curve):>8.2f}", flush=True)


def slope(curve: dict[float, float]) -> float:
    """Of a line through the upper half, at least three points, in log-log."""
    points = [(math.log(place), math.log(value)) for place, value in curve.items() if place > 0 and value > 0]
    return float(np.polyfit(*zip(*points[-max(3, len(points) // 2) :], strict=True), 1)[0]) if len(points) > 1 else math.nan


def best_ms(action: Callable[[], object], times: int = 15) -> float:
    """The least of several, since what else runs here only adds."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        action()
        found.append(time.perf_counter() - begin)
    return 1e3 * min(found)


def allocated_mib(action: Callable[[], object]) -> float:
    """What is still held afterwards."""
    tracemalloc.start()
    kept = action()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return held / 2**20


# Lanes and shards.


def lanes(folder: Path) -> Curves:
    """lanes of one process = images in a step"""
    one, scale = one_shard(folder), Scale()

    def at(number: int) -> Values:
        order = Order([scale.sizes()], number, number, BLOCK, seed=0)
        found = {
            "a step's samples (ms)": order_step_ms(order),
            "start at any step (ms)": best_ms(lambda: order.view(0, number).step(random.getrandbits(30)), 3),
            "memory of the order (MiB)": allocated_mib(lambda: begun(Order([scale.sizes()], number, number, BLOCK, seed=0))),
            f"a step of {LANES[-1]:,} samples (ms)": order_step_ms(Order([scale.sizes()], LANES[-1], number, BLOCK, 0), 8),
        }
        if number <= 4096:  # every image of the one shard is read again and again
            found["a step's images, read (ms)"] = read_step_ms(repeated(one, 1000), number)
        return found

    return gather(LANES, at)


def begun(order: Order) -> Any:
    view = order.view(0, order.lanes)
    view.step(1000)
    return view


def order_step_ms(order: Order, number: int = 2 * BLOCK) -> float:
    """Mean over steps in which each lane opens as many blocks; the best of three times."""
    view, numbers = order.view(0, order.lanes), count(1000)
    view.step(next(numbers))
    return best_ms(lambda: [view.step(next(numbers)) for _ in range(number)], 3) / number


def shards(folder: Path) -> Curves:
    """shards"""
    one = one_shard(folder)

    def at(number: int) -> Values:
        manifest = repeated(one, number)
        order = Order([manifest.samples], 64, 64, BLOCK, seed=0)
        fresh = start(Scale(samples=1000 * number, shards=number, ranks=64, global_batch=4096, lanes=4096))
        return {
            "a step's samples (ms)": order_step_ms(order),
            "a step's images, read (ms)": read_step_ms(manifest, 64),
            "first step of an epoch (ms)": best_ms(epoch_begins(order), 5),
            "start: process, manifest, first step (ms)": 1e3 * fresh["start_process_s"],
            "memory of a process (MiB)": fresh["start_resident_mib"],
        }

    return gather(SHARDS, at)


def epoch_begins(order: Order) -> Callable[[], object]:
    """Each call takes the first step of another epoch, in which all lanes open a block of shards in a new order."""
    epochs = count(1)
    return lambda: order.view(0, order.lanes).step(-(-next(epochs) * order.num_samples // order.lanes))


def one_shard(folder: Path) -> Manifest:
    """A manifest of one real shard of small images."""
    words = ["data", "build", f"shapes:{IMAGES}", "--out", str(folder), "--val-fraction", "0", "--shard-samples", str(IMAGES)]
    subprocess.run([sys.executable, "-m", "vitscale.cli", *words], check=True, stdout=subprocess.DEVNULL)
    (shard,) = folder.glob("*.tar")
    shard.with_suffix(".idx").write_bytes(encode_index(list(scan(shard, Labels("auto")))))
    return read_manifest(str(folder / "train.json"))


def repeated(one: Manifest, number: int) -> Manifest:
    """A manifest of so many shards, all of them the same file."""
    columns = {
        name: column.repeat(number) if isinstance(column, np.ndarray) else column * number
        for name in ("urls", "samples", "bytes", "sha256", "index_bytes", "index_crc32", "label_min", "label_max")
        if (column := getattr(one, name)) is not None
    }
    return Manifest(one.location, **columns, classes=one.classes)


def read_step_ms(manifest: Manifest, global_batch: int) -> float:
    """Of the stream, every image read and checked: mean over a block of each lane, the best of three."""
    order = Order([manifest.samples], global_batch, global_batch, BLOCK, seed=0)
    stream = steps(Shards(manifest), order, (0, global_batch), 0, 5 * BLOCK)

    def read() -> None:
        for step in islice(stream, BLOCK):
            for sample, block in zip(step.slots.samples.tolist(), step.blocks, strict=True):
                block.result().image(sample)

    read()
    return best_ms(read, 3) / BLOCK


# Steps done.


def steps_done(folder: Path) -> Curves:
    """steps done before"""
    point = dict.fromkeys(map(str, range(25)), 0.123456)

    def at(number: int) -> Values:
        cfg = config(folder, name=f"after-{number}", steps=number + 600)
        run, state = past(cfg, number)
        history, numbers = History(run.metrics), count(number + 10**6)
        found = {
            "a log point of 25 metrics (us)": 1e3 * best_ms(lambda: history.add(next(numbers), "train", point), 300),
            "what a checkpoint has to copy of it (us)": 1e3 * best_ms(lambda: (dict(state.scores), list(state.bad_steps)), 99),
            "state.json, by the thread that writes (us)": 1e3 * best_ms(state.dump),
            "the courier's look, every 3 s (us)": 1e3 * best_ms(lambda: look(run), 5),
            "start: history read (us)": 1e3 * best_ms(lambda: History(run.metrics), 3),
        }
        with World(cfg.hardware, seed=0) as world:
            torch.set_num_threads(1)
            loop_us = 1e3 * step_ms(cfg, run, idle(world), state)
        return {"a step of the loop, without the model (us)": loop_us, **found}

    return gather(STEPS, at)


def past(cfg: RunConfig, number: int) -> tuple[RunDir, TrainState]:
    """A run directory after so many steps, and where the run stands: a log, evaluations with their files, bad steps."""
    run, evaluations = RunDir(cfg), range(EVAL_EVERY, number + 1, EVAL_EVERY)
    scores = {
        f"eval/{name}": 0.123456 for name in ("top1", "top5", "loss", "pets/1shot", "pets/5shot", "pets/10shot", "pets/25shot")
    }
    if not run.path.exists():
        run.checkpoints.mkdir(parents=True)
        run.recipe.write_text(recipe.dump(cfg))
        run.model_info.write_text(ModelInfo.of(cfg.model, cfg.data, []).dump())
        line = {"kind": "train", "time_ms": 1_700_000_000_000, "metrics": dict.fromkeys(map(str, range(25)), 0.123456)}
        points = range(LOG_EVERY, number + 1, LOG_EVERY)
        run.metrics.write_text("".join(json.dumps({"step": step, **line}) + "\n" for step in points))
        for step in evaluations:
            made = run.artifacts / "eval" / f"step_{step:08d}"
            made.mkdir(parents=True)
            for name in ("per_class.csv", "confusion.csv", "predictions.png", "confusion.png"):
                (made / name).touch()
        run.mlflow_sent.write_text(json.dumps({"files": unsent(run, Mark())}))
    state = TrainState(step=number, samples=number, bad_steps=list(evaluations), began=1.0)
    state.scores = {f"step_{step:08d}": dict(scores) for step in evaluations}
    return run, state


def look(run: RunDir) -> None:
    """What the courier looks at when there is nothing to do."""
    assert not unsent(run, Mark.read(run.path))
    draw_due(run.path)


class Idle(SimpleNamespace):
    """An engine that computes nothing, so that what is left of a step is the loop."""

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images_BCHW), 10)

    def set_learning_rate(self, rate: float) -> None:
        self.rate = rate

    def backward_and_step(self, loss: torch.Tensor) -> None:
        self.grad_norm = loss

    def fragments(self) -> list:
        return []


def idle(world: World) -> Any:
    optim = SimpleNamespace(ema_decay=None)
    return Idle(world=world, micro_batch=8, grad_accum=1, dtype=torch.float32, optim=optim, shapes={}, num_updates=0.0)


def step_ms(cfg: RunConfig, run: RunDir, engine: Any, state: TrainState, cpu: bool = False) -> float:
    """Of the steps of `fit` to the end of the recipe, from one request for a batch to the next: median, of CPU time mean."""
    begun, clock = [], time.process_time if cpu else time.perf_counter
    tracker = Tracker(cfg, run, active=engine.world.is_main)
    tracker._history, tracker._since = History(run.metrics), math.inf  # without its courier
    cadence, batch = Cadence.of(cfg, 1000), some_batch(cfg.train.global_batch // engine.world.size, cfg.model.image_size)

    def batches() -> Iterator[Batch]:
        for _ in range(cadence.total - state.step):
            begun.append(clock())
            yield batch

    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
        fit(cfg, cadence, engine, batches(), None, Validation(cfg, None, {}), state, run, tracker)
    spent = np.diff(begun)[20:]
    return 1e3 * (float(np.mean(spent)) if cpu else statistics.median(spent))


def some_batch(number: int, size: int) -> Batch:
    whole, boxes = torch.zeros(number, dtype=torch.int64), torch.zeros(number, 4, dtype=torch.int32)
    images, flips, ones = (
        torch.zeros(number, size, size, 3, dtype=torch.uint8),
        torch.zeros(number, dtype=torch.bool),
        torch.ones(number),
    )
    slots = Slots(np.zeros(number, np.int64), np.arange(number))
    return Batch(images, whole, flips, boxes, whole, ones, boxes, ones, slots)


def config(folder: Path, name: str = "growth", steps: int = 60, depth: int = 1, batch: int = 8, **sections: dict) -> RunConfig:
    model = {"width": 32, "depth": depth, "num_heads": 2, "mlp_dim": 64, "patch_size": 8, "image_size": 16, "num_classes": 10}
    values: dict = {"name": name, "runs": str(folder), "model": model, "data": {"train": {"manifest": "none"}}}
    values |= {"train": {"global_batch": batch, "total": {"steps": steps}}, "optim": {"lr": 1e-3}}
    values |= {"checkpoint": {"every": {"steps": 10**9}}, "tracking": {"log_every": LOG_EVERY}}
    return RunConfig.model_validate({**values, "hardware": {"device": "cpu", "precision": "fp32"}, **sections})


# Processes and the model: real engines.


def processes(folder: Path) -> Curves:
    """processes"""

    def at(number: int) -> Values:
        found, share = in_processes(number, folder, depth=2), min(number, len(os.sched_getaffinity(0))) / number
        return {
            "a step, CPU time of a process (ms)": found["cpu_ms"],
            "a step, wall time x cores / processes (ms)": found["wall_ms"] * share,
            "memory of a process (MiB)": found["mib"],
        }

    return gather(PROCESSES, at)


def model(folder: Path) -> Curves:
    """blocks of the model, 12 tensors each"""

    def at(depth: int) -> Values:
        found = in_processes(1, folder, depth)
        return {"a step, CPU time (ms)": found["cpu_ms"], "memory of the process (MiB)": found["mib"]}

    return gather(DEPTHS, at)


def in_processes(number: int, folder: Path, depth: int) -> dict[str, float]:
    """CPU and wall time of a step at ZeRO-1, and memory; means over the processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)] if number > 1 else []
    words = [*launcher, __file__, "--process", str(folder), str(depth)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def process(folder: Path, depth: int) -> None:
    """One of the processes."""
    name, size = f"{os.environ.get('WORLD_SIZE', 1)}-{depth}", int(os.environ.get("WORLD_SIZE", 1))
    first, second = (config(folder, f"{name}-{n}", steps=80, depth=depth, batch=8 * size) for n in range(2))
    with World(first.hardware, seed=0) as world:
        torch.set_num_threads(1)
        engine, runs = build_engine(build(first.model), first, world), [RunDir(first), RunDir(second)]
        with world.alone():
            runs = [past(cfg, 0)[0] for cfg in (first, second)] if world.is_main else runs
        cpu = step_ms(first, runs[0], engine, TrainState(), cpu=True)
        wall = step_ms(second, runs[1], engine, TrainState())
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        found = world.gather({"cpu_ms": cpu, "wall_ms": wall, "mib": int(status["VmHWM"].removesuffix("kB")) / 1024})
        if world.is_main:
            print(json.dumps({name: statistics.mean(each[name] for each in found) for name in found[0]}))


# The recipe and the log.


def sections(folder: Path) -> Curves:
    """sources of data.train = sets of eval.fewshot"""

    def at(number: int) -> Values:
        path, names = folder / f"{number}.yaml", [f"data/{n}.json" for n in range(number)]
        few = {f"set{n}": {"train": name, "test": name} for n, name in enumerate(names)}
        data = {"train": [{"manifest": name, "weight": 1.0} for name in names]}
        path.write_text(recipe.dump(config(folder, data=data, eval={"fewshot": few})))
        sizes, weights = [np.full(1000, 1000)] * number, [1.0] * number
        return {
            "recipe loaded (ms)": best_ms(lambda: recipe.load(path), 9),
            "order made (ms)": best_ms(lambda: Order(sizes, 1024, 1024, BLOCK, 0, weights)),
            "a step's samples, 1,024 lanes (ms)": order_step_ms(Order(sizes, 1024, 1024, BLOCK, 0, weights)),
        }

    return gather(SOURCES, at)


def metrics(folder: Path) -> Curves:
    """metrics of a log point"""

    def at(number: int) -> Values:
        path = folder / f"{number}.jsonl"
        history, numbers = History(path), count()
        values = {f"train/metric_{n:04}": 0.123456 for n in range(number)}
        found = {"a log point (us)": 1e3 * best_ms(lambda: history.add(next(numbers), "train", values), 200)}
        return {**found, "its line (bytes)": path.stat().st_size / next(numbers)}

    return gather(METRICS, at)


def draw(found: dict[str, Curves]) -> None:
    """A panel for each axis, log-log, with a dotted line of slope 1."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 4, figsize=(20, 12), constrained_layout=True)
    for panel, (axis, curves) in zip(panels.flat, found.items(), strict=False):
        for name, curve in curves.items():
            panel.plot(
                [max(place, 1) for place in curve], [*curve.values()], "o-", ms=4, label=f"{name}, slope {slope(curve):.2f}"
            )
        places = sorted({max(place, 1) for curve in curves.values() for place in curve})
        low, high, top = places[0], places[-1], max(max(curve.values()) for curve in curves.values())
        panel.plot([low, high], [top * low / high, top], "k:", linewidth=1, label="slope 1")
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="in the unit of each curve")
        ticks = places[:: 1 + len(places) // 9]
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.minorticks_off()
        panel.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    for panel in list(panels.flat)[len(found) :]:
        panel.axis("off")
    figure.savefig(FIGURE, dpi=70)
    print(f"\n{FIGURE}")


if __name__ == "__main__":
    process(Path(sys.argv[2]), int(sys.argv[3])) if sys.argv[1:2] == ["--process"] else main()
