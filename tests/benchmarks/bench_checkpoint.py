"""How long a save keeps training waiting, beside one copy of the same bytes: `python tests/benchmarks/bench_checkpoint.py`.

One process, ZeRO-1, AdamW, fp32; the run directory lies in the folder given (default: the current one).
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch

from vitscale.config import RunConfig
from vitscale.engine import Engine
from vitscale.model.build import build
from vitscale.modelinfo import ModelInfo
from vitscale.rundir import RunDir
from vitscale.saving import Saver
from vitscale.state import TrainState
from vitscale.world import World

SAVES = 5
os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants it


def timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def config(folder: str) -> RunConfig:
    model = {"width": 768, "depth": 7, "num_heads": 12, "mlp_dim": 3072, "patch_size": 16, "num_classes": 1000}
    values: dict = {"name": "bench", "runs": folder, "model": model, "data": {"train": {"manifest": "none"}}}
    values |= {"train": {"global_batch": 1, "total": {"steps": 1}}, "optim": {"lr": 1e-3}}
    return RunConfig.model_validate(values | {"hardware": {"device": "cpu", "precision": "fp32"}})


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as folder:
        cfg = config(folder)
        run = RunDir(cfg)
        run.checkpoints.mkdir(parents=True)
        run.recipe.touch()
        run.model_info.write_text(ModelInfo.of(cfg.model, cfg.data, []).dump())
        with World(cfg.hardware, seed=0) as world:
            measure(run, cfg, Engine(build(cfg.model), cfg.optim, cfg.hardware, 1, 1, world))


def measure(run: RunDir, cfg: RunConfig, engine: Engine) -> None:
    live = [tensor for fragment in engine.fragments() for tensor in fragment.tensors.values()]
    num_bytes = sum(tensor.nbytes for tensor in live)
    source, target = torch.ones(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)
    copies, blocked, written, quiet, busy = ([] for _ in range(5))
    images = torch.zeros(1, 3, 224, 224)

    def step() -> None:
        engine.backward_and_step(engine(images).sum())

    with Saver(run, engine, cfg.checkpoint, 0) as saver:
        step()
        for number in range(SAVES):
            copies.append(timed(lambda: target.numpy().__setitem__(slice(None), source.numpy())))
            quiet += [timed(step) for _ in range(3)]
            saver.save(TrainState(step=number), last=False)
            blocked.append(saver.times["checkpoint/blocked_s"])
            busy += [timed(step) for _ in range(3)]
            saver.settle(last=True)
            written.append(saver.times["checkpoint/write_s"])
    copy, block, write = (statistics.median(values) for values in (copies, blocked, written))
    print(f"{num_bytes / 2**20:,.0f} MiB of state; one copy {copy:.3f} s, blocked {block:.3f} s = {block / copy:.2f} copies")
    whole = num_bytes + num_bytes // 3
    print(f"written in {write:.2f} s = {whole / 2**20 / write:,.0f} MiB/s, beside steps")
    print(f"a step takes {statistics.median(quiet):.3f} s, while a checkpoint is written {statistics.median(busy):.3f} s")


if __name__ == "__main__":
    main()
