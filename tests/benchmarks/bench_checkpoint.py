"""What saving and resuming cost, each beside what it cannot be faster than: `python tests/benchmarks/bench_checkpoint.py`.

ZeRO-1, AdamW, fp32; the run directory lies in the folder given (default: the current one). One process, or several under
`torchrun --nproc_per_node=2`. A save is held against one copy of the state in memory, its writing against plain writes of as
many files as long, a resume against plain reads of the checkpoint's files, from the page cache and from the disk.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vitscale.checkpoint import latest, restore
from vitscale.config import RunConfig
from vitscale.engine import Engine
from vitscale.model.build import build
from vitscale.modelinfo import ModelInfo
from vitscale.rundir import RunDir
from vitscale.saving import Saver
from vitscale.state import TrainState
from vitscale.weights.sharded import CHUNK_BYTES
from vitscale.world import World

SAVES = 5
os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants it
Times = dict[str, list[float]]


def timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def config(folder: str) -> RunConfig:
    model = {"width": 768, "depth": 7, "num_heads": 12, "mlp_dim": 3072, "patch_size": 16, "num_classes": 1000}
    values: dict = {"name": "bench", "runs": folder, "model": model, "data": {"train": {"manifest": "none"}}}
    values |= {"train": {"global_batch": 2, "total": {"steps": 1}}, "optim": {"lr": 1e-3}}
    return RunConfig.model_validate(values | {"hardware": {"device": "cpu", "precision": "fp32"}})


def main() -> None:
    with (
        World(config("").hardware, seed=0) as world,
        tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else ".") as own,
    ):
        cfg = config(world.broadcast(own))
        run = RunDir(cfg)
        if world.is_main:
            run.checkpoints.mkdir(parents=True)
            run.recipe.touch()
            run.model_info.write_text(ModelInfo.of(cfg.model, cfg.data, []).dump())
        world.gather(None)  # the folder is there
        engine = Engine(build(cfg.model), cfg.optim, cfg.hardware, 1, 1, world)
        saved, resumed = measure_saves(run, cfg, engine), measure_resumes(run, engine)
        if world.is_main:
            report(saved, resumed, world.size)
        world.gather(None)  # before the folder goes


def step(engine: Engine) -> None:
    engine.backward_and_step(engine(torch.zeros(1, 3, 224, 224)).sum())


def measure_saves(run: RunDir, cfg: RunConfig, engine: Engine) -> Times:
    num_bytes = sum(tensor.nbytes for fragment in engine.fragments() for tensor in fragment.tensors.values())
    source, target = torch.ones(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)
    names = ("copy", "quiet step", "blocked", "busy step", "written beside steps", "written", "plain writes")
    times: Times = {name: [] for name in names}
    with Saver(run, engine, cfg.checkpoint, 0) as saver:
        step(engine)
        for number in range(0, 2 * SAVES, 2):
            times["copy"].append(timed(lambda: target.numpy().__setitem__(slice(None), source.numpy())))
            times["quiet step"] += [timed(lambda: step(engine)) for _ in range(3)]
            saver.save(TrainState(step=number), last=False)
            times["blocked"].append(saver.times["checkpoint/blocked_s"])
            times["busy step"] += [timed(lambda: step(engine)) for _ in range(3)]
            saver.settle(last=True)
            times["written beside steps"].append(saver.times["checkpoint/write_s"])
            saver.save(TrainState(step=number + 1), last=True)
            times["written"].append(saver.times["checkpoint/write_s"])
            with engine.world.alone():
                if engine.world.is_main:
                    times["plain writes"].append(timed(lambda: write_plainly(files(run), source)))
    times["bytes"] = [num_bytes]
    return times


def files(run: RunDir) -> list[Path]:
    """Of the newest checkpoint."""
    return [path for path in max(run.checkpoints.glob("step_*")).rglob("*") if path.is_file()]


def write_plainly(like: list[Path], source: torch.Tensor) -> None:
    """Files as long as these, one after another, flushed."""
    for number, path in enumerate(like):
        with (path.parents[2] / f"plain_{number}").open("wb", buffering=0) as file:
            for start in range(0, size := path.stat().st_size, CHUNK_BYTES):
                file.write(source.numpy()[: min(CHUNK_BYTES, size - start)].data)
            os.fsync(file.fileno())
        Path(file.name).unlink()


def measure_resumes(run: RunDir, engine: Engine) -> Times:
    sources = ("cache", "disk")
    times: Times = {f"{part}, {source}": [] for source in sources for part in ("read", "verify", "restore", "step")}
    with engine.world.alone():
        times["bytes"] = [sum(path.stat().st_size for path in files(run))]
    for _ in range(SAVES):
        for source in sources:
            for part, action in (("read", lambda: read_plainly(run)), ("verify", lambda: latest(run.checkpoints))):
                with engine.world.alone():
                    if engine.world.is_main:
                        forget(run, source)
                        times[f"{part}, {source}"].append(timed(action))
            with engine.world.alone():
                forget(run, source)
            times[f"restore, {source}"].append(timed(lambda: restore(run, engine, "")))
            times[f"step, {source}"].append(timed(lambda: step(engine)))
    return times


def forget(run: RunDir, source: str) -> None:
    """Have the kernel drop what it keeps of the newest checkpoint's files, where they shall come from the disk."""
    for path in files(run) if source == "disk" else []:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(run: RunDir) -> None:
    room = bytearray(CHUNK_BYTES)
    for path in files(run):
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass


def report(saved: Times, resumed: Times, processes: int) -> None:
    save, resume = ({name: statistics.median(values) for name, values in times.items()} for times in (saved, resumed))
    copies, mib = save["blocked"] / save["copy"], resume["bytes"] / 2**20
    print(
        f"{processes} processes, {save['bytes'] / 2**20:,.0f} MiB of state in each; the files of a checkpoint: {mib:,.0f} MiB"
    )
    print(f"one copy of the state {save['copy']:.3f} s, training stood still {save['blocked']:.3f} s = {copies:.2f} copies")
    for name in ("plain writes", "written", "written beside steps"):
        times = save[name] / save["plain writes"]
        print(f"{name}: {save[name]:.2f} s = {mib / save[name]:,.0f} MiB/s = {times:.2f} of plain writes")
    print(f"a step takes {save['quiet step']:.3f} s, while a checkpoint is written {save['busy step']:.3f} s")
    for source in ("cache", "disk"):
        read, verify, restored, first = (resume[f"{part}, {source}"] for part in ("read", "verify", "restore", "step"))
        print(f"from the {source}: plain reads {read:.2f} s = {mib / read:,.0f} MiB/s; SHA-256 of all {verify:.2f} s", end="; ")
        print(f"restored in {restored:.2f} s = {restored / read:.2f} of plain reads; first step {first:.2f} s")


if __name__ == "__main__":
    main()
