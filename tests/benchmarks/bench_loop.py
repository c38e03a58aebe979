"""What the training loop costs beside forward, backward and step: `python tests/benchmarks/bench_loop.py [--procs 1 2]`.

In every step of a real `fit` the same engine also makes a bare step on the same images, prepared before: forward, loss,
backward and step alone. The difference of the two is the loop's. Model and images are so small that all of it is host time.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from stopwatch import Places, Stopwatch

from data_pipeline.loader import Batch
from data_pipeline.mixing import prepare
from vitscale import loop, recipe, train
from vitscale.badsteps import BadSteps
from vitscale.cadence import Cadence
from vitscale.config import RunConfig
from vitscale.courier import Tracker
from vitscale.engine import import_deepspeed
from vitscale.ledger import Ledger
from vitscale.loss import LOSSES
from vitscale.meter import Meter
from vitscale.progress import TrainProgress
from vitscale.rundir import RunDir
from vitscale.state import TrainState
from vitscale.validation import Validation
from vitscale.world import World, end_process

STEPS, WARMUP = 600, 100
RECIPE = """
name: loop
runs: {folder}/runs
model: {{patch_size: 4, width: 32, depth: 2, num_heads: 2, mlp_dim: 64, image_size: 8, num_classes: 10}}
data:
  train: {{manifest: {folder}/data/train.json}}
  mix_group: 4
  augment: {{flip: true, mixup: 0.2}}
train: {{global_batch: {batch}, total: {{steps: {steps}}}, label_smoothing: 0.1}}
optim: {{lr: 1e-3, weight_decay: 0.1, schedule: {{warmup: {{steps: 10}}}}}}
checkpoint: {{every: {{steps: 1_000_000}}}}
tracking: {{log_every: 50}}
hardware: {{device: cpu, precision: fp32, zero_stage: 1, loader_threads: 1}}
"""
# By name of the part: where its function is called from.
PARTS: Places = {
    "pixels and targets (prepare)": [(loop, "prepare"), (Batch, "split"), (Batch, "to")],
    "learning rate": [(Cadence, "learning_rate")],
    "seed of dropout": [(loop, "seed_dropout")],
    "loss on its way": [(loop, "Reading"), (loop.Readings, "add")],
    "loss read": [(loop.Readings, "settle"), (loop.Readings, "hash")],
    "meter": [(Meter, "step"), (Meter, "images_per_s"), (Meter, "seconds_left")],
    "progress": [(TrainProgress, "is_due"), (TrainProgress, "update")],
    "ledger and bad steps": [(Ledger, "note"), (BadSteps, "note")],
}


def measure(folder: str, batch: int, parts: bool) -> None:
    """One process of a training; rank 0 prints."""
    path = Path(folder) / "recipe.yaml"
    cfg = recipe.load(path, [f"name=loop-{parts}", f"train.global_batch={batch}"])
    with World(cfg.hardware, cfg.seed) as world:
        torch.set_num_threads(1)
        import_deepspeed("cpu")
        run = RunDir(cfg)
        train.open_run(run, cfg, world)
        shards = train.open_shards(cfg.data.train, cfg.hardware)
        cadence, engine = Cadence.of(cfg, len(shards)), train.build_engine(train.build_model(cfg, run, world), cfg, world)
        state = TrainState(data=shards.digest)
        stopwatch, times = Stopwatch(PARTS if parts else {}), Times()
        batches = times.between(list(train.build_train_loader(shards, cfg, 0, 20, world)), engine, cfg)
        with Tracker(cfg, run, active=False) as tracker:
            loop.fit(cfg, cadence, engine, batches, shards, Validation(cfg, None, {}), state, run, tracker)
        if world.is_main:
            stopwatch.print(STEPS) if parts else times.print(world.size)


class Times:
    """Seconds of the steps of `fit`, and of bare steps between them."""

    def __init__(self) -> None:
        self.fit: list[float] = []
        self.bare: list[float] = []

    def between(self, batches: list[Batch], engine: train.Engine, cfg: RunConfig) -> Iterator[Batch]:
        images, targets = prepare(batches[0], cfg.data, cfg.model.num_classes, engine.dtype)
        for number in range(STEPS):
            begin = time.perf_counter()
            engine.backward_and_step(LOSSES["softmax"](engine(images), targets).mean())
            between = time.perf_counter()
            yield batches[number % len(batches)]
            self.bare.append(between - begin)
            self.fit.append(time.perf_counter() - between)

    def print(self, procs: int) -> None:
        fit, bare = (statistics.median(values[WARMUP:]) * 1e6 for values in (self.fit, self.bare))
        mean = statistics.mean(self.fit[WARMUP:-1]) * 1e6 - statistics.mean(self.bare[WARMUP:-1]) * 1e6
        print(f"{procs} process(es): step {fit:,.0f} us, bare {bare:,.0f} us; overhead {fit - bare:,.0f} us (mean {mean:,.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--procs", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batch", type=int, default=4, help="images per process")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        folder, batch, parts = args.worker
        measure(folder, int(batch), parts == "parts")
        end_process(0)
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "vitscale.cli", "data", "build", "digits", "--out", f"{folder}/data"]
        subprocess.run(build, check=True, capture_output=True)
        (Path(folder) / "recipe.yaml").write_text(RECIPE.format(folder=folder, batch=8, steps=STEPS))
        for procs in args.procs:
            for kind in ("whole", "parts"):
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={procs}"]
                subprocess.run([*launch, __file__, "--worker", folder, str(args.batch * procs), kind], check=True)
                for run in Path(folder, "runs").glob("loop-*"):
                    subprocess.run(["rm", "-rf", run], check=True)


if __name__ == "__main__":
    main()
