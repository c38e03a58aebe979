"""From tar shards: images/s of the loop beside the same step on a kept batch, and stalls while checkpoints are written."""

import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.bench import make
from data_pipeline.loader import Batch
from data_pipeline.workers import SLOTS
from gpu_parts import clock
from gpu_parts.clock import Row, Setting
from vitscale.cadence import Cadence
from vitscale.config import HardwareConfig, RunConfig
from vitscale.courier import Tracker
from vitscale.engine import import_deepspeed
from vitscale.loop import fit, train_step
from vitscale.model.build import build
from vitscale.readings import Readings
from vitscale.rundir import RunDir
from vitscale.state import TrainState
from vitscale.train import build_engine, build_train_loader, build_validation, open_run, open_shards
from vitscale.world import World

PREFETCHED = SLOTS + 1  # steps at the begin of a turn whose images were ready before: not counted
SAVE_EVERY = 50
LOG_EVERY = 10
LANES = 16  # a process per core of that machine


class Plan(NamedTuple):
    """A model, and how much of it is run."""

    model: dict
    global_batch: int
    turn: int  # steps of a turn
    turns: int
    stalls: int  # steps of the run with checkpoints and tracking; 0 = none


PLANS = {"H/14@224": Plan({"name": "vit-h14"}, 128, 20, 2, 0), "L/16@224": Plan({"name": "vit-l16"}, 256, 20, 2, 160)}
SMALL = {"patch_size": 8, "width": 64, "depth": 2, "num_heads": 4, "mlp_dim": 256, "image_size": 32, "num_classes": 10}
TINY_PLANS = {"tiny@32": Plan(SMALL, 16, 5, 2, 12)}


def run(setting: Setting) -> Iterator[Row]:
    os.environ.setdefault("LOCAL_RANK", "0")
    plans = TINY_PLANS if setting.tiny else PLANS
    hardware = HardwareConfig(device=setting.device.type)
    with tempfile.TemporaryDirectory() as folder, World(hardware, seed=0) as world:
        import_deepspeed(world.device.type)
        make(Path(folder) / "photos", 64 if setting.tiny else 1024, restart_blocks=4)
        for name, plan in plans.items():
            if setting.left_s < (2 if setting.tiny else 25):
                yield {"model": name, "note": "out of time"}
                continue
            cfg = recipe(name.partition("@")[0].replace("/", ""), plan, Path(folder), setting)
            for row in run_plan(cfg, plan, setting, world):
                yield {"model": name, **row}
            clock.free(setting.device)


def recipe(name: str, plan: Plan, folder: Path, setting: Setting) -> RunConfig:
    """As a recipe of the papers, with what is measured in its `hardware:`; photographs of 500 x 375."""
    data = {"train": {"manifest": str(folder / "photos" / "train.json")}, "lanes": LANES, "augment": {"mixup": 0.2}}
    precision = "bf16" if setting.device.type == "cuda" else "fp32"
    hardware = {"device": setting.device.type, "precision": precision, "compile": not setting.tiny}
    hardware |= {"loader_threads": 2, "loader_processes": 2} if setting.tiny else {}
    total = 3 + plan.turns * (plan.turn + PREFETCHED) + plan.stalls
    every = max(1, min(SAVE_EVERY, plan.stalls // 3))
    values = {"name": name, "runs": str(folder / "runs"), "model": plan.model, "data": {**data, "mix_group": 8}}
    values |= {"train": {"global_batch": plan.global_batch, "total": {"steps": total}}, "optim": {"lr": 1e-4}}
    values |= {"checkpoint": {"every": {"steps": every}}, "tracking": {"log_every": LOG_EVERY}}
    return RunConfig.model_validate({**values, "hardware": hardware})


def run_plan(cfg: RunConfig, plan: Plan, setting: Setting, world: World) -> Iterator[Row]:
    run = RunDir(cfg)
    open_run(run, cfg, world)
    with Tracker(cfg, run, world.is_main) as tracker:
        training = Training(cfg, run, tracker, world)
        yield training.rates(plan, setting)
        if plan.stalls and setting.left_s > (2 if setting.tiny else 35):
            yield training.stalls(plan)
        elif plan.stalls:
            yield {"what": "step times with checkpoints and tracking", "note": "out of time"}
        training.engine._engine.destroy()  # its hooks would keep it
    run.release()


def stamped(batches: Iterable[Batch], times: list[float]) -> Iterator[Batch]:
    """The same batches; when each was taken."""
    for batch in batches:
        times.append(time.perf_counter())
        yield batch


class Training:
    """A run as vitscale/train.py builds it, from its first step."""

    def __init__(self, cfg: RunConfig, run: RunDir, tracker: Tracker, world: World) -> None:
        self.cfg, self.run, self.tracker, self.world = cfg, run, tracker, world
        self.shards = open_shards(cfg.data.train, cfg.hardware)
        self.cadence = Cadence.of(cfg, len(self.shards))
        self.engine = build_engine(build(cfg.model), cfg, world)
        self.state = TrainState()

    def loader(self) -> Iterable[Batch]:
        return build_train_loader(self.shards, self.cfg, self.state.step, self.cadence.total, self.world)

    def steps(self, batches: Iterable[Batch]) -> None:
        """As vitscale/loop.py steps: what a step gave is read one step later."""
        readings = Readings(self.world, self.cfg.train.global_batch)
        for batch in batches:
            readings.add(train_step(self.engine, batch, self.cfg, self.state.step, self.cadence), batch, self.state)
            readings.settle(self.state, keep=1)
        readings.settle(self.state, keep=0)

    def rates(self, plan: Plan, setting: Setting) -> Row:
        """Turns of steps from the loader and on a kept batch: the same step, the copy to the device included."""
        batches = iter(self.loader())
        kept = next(batches)
        self.steps(chain([kept, kept], islice(batches, 2)))  # compiles
        seconds: dict[str, list[float]] = {"loader": [], "kept": []}
        for _ in range(plan.turns):
            self.steps(islice(batches, PREFETCHED))
            for name, source in (("loader", batches), ("kept", repeat(kept))):
                clock.wait(setting.device)
                seconds[name] += clock.seconds_of(lambda s=source: self._turn(s, plan.turn, setting), setting.device, 1)
        batches.close()
        rate = {name: plan.turn * plan.global_batch / clock.median(values) for name, values in seconds.items()}
        share = rate["loader"] / rate["kept"]
        found = {"from shards img/s": rate["loader"], "kept batch img/s": rate["kept"], "share": share, "target": ">= 98 %"}
        return {"what": f"{self.world.cores} cores decode", **found}

    def _turn(self, batches: Iterable[Batch], count: int, setting: Setting) -> None:
        self.steps(islice(batches, count))
        clock.wait(setting.device)

    def stalls(self, plan: Plan) -> Row:
        """The whole loop, with a checkpoint every so many steps and the courier at work."""
        validation = build_validation(self.cfg, self.world)
        self.cadence = replace(self.cadence, total=self.state.step + plan.stalls)
        times: list[float] = []
        batches = stamped(self.loader(), times)
        fit(self.cfg, self.cadence, self.engine, batches, self.shards, validation, self.state, self.run, self.tracker)
        lines = [json.loads(line) for line in self.run.metrics.read_text().splitlines()]
        metrics = {key: value for line in lines for key, value in line["metrics"].items()}
        steps = np.diff(times)[2:]  # from batch to batch, saves and log points included
        p50, p99, most = np.percentile(steps, [50, 99, 100]).tolist()
        found = {"median s": p50, "p99 / median": p99 / p50, "max s": most, "target": "p99 / median <= 1.05"}
        blocked = f"a save blocks {metrics['checkpoint/blocked_s']:.2f} s"
        return {"what": f"{plan.stalls} steps, a checkpoint every {self.cadence.save}", **found, "note": blocked}
