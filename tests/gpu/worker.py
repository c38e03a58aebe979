"""What tests/gpu looks at in a process of its own, with one engine after the other: `worker.py CASE OUT DEVICE`."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch._dynamo.utils import counters

from data_pipeline.loader import Batch
from data_pipeline.order import Slots
from vitscale.cadence import Cadence
from vitscale.config import RunConfig
from vitscale.engine import Engine
from vitscale.loop import train_step
from vitscale.model.build import build
from vitscale.readings import Reading
from vitscale.state import TrainState
from vitscale.world import World, end_process

MODEL = {"patch_size": 8, "width": 64, "depth": 12, "num_heads": 4, "mlp_dim": 128, "image_size": 32, "num_classes": 10}
STAGES, STEPS, SAVE_AT, BATCH = (0, 1, 2, 3), 6, 3, 16


def config(device: str, **hardware) -> RunConfig:
    data = {"train": {"manifest": "none"}, "mix_group": 4, "augment": {"mixup": 0.2, "cutmix": 1.0, "erase": 0.25}}
    values = {"name": "x", "model": {**MODEL, "drop_path": 0.2}, "data": data, "optim": {"lr": 1e-3, "ema_decay": 0.9}}
    values["train"] = {"global_batch": BATCH, "total": {"steps": STEPS}}
    return RunConfig.model_validate({**values, "hardware": {"device": device, "micro_batch": BATCH // 2, **hardware}})


def batches(pin: bool) -> list[Batch]:
    """Made pixels; pinned, as the loader's are for a GPU."""
    rng, found = np.random.default_rng(0), []
    for step in range(STEPS):
        boxes = [torch.from_numpy(rng.integers(0, 16, (BATCH, 4), np.int32)) for _ in range(2)]
        tensors = {
            "images_BHWC": torch.from_numpy(rng.integers(0, 256, (BATCH, 32, 32, 3), np.uint8)),
            "labels_B": torch.from_numpy(rng.integers(0, 10, BATCH)),
            "flip_B": torch.from_numpy(rng.random(BATCH) < 0.5),
            "erase_B4": boxes[0],
            "noise_B": torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, BATCH)),
            "mix_B": torch.from_numpy(rng.random(BATCH, np.float32)),
            "cut_B4": boxes[1],
            "weight_B": torch.ones(BATCH),
        }
        slots = Slots(np.zeros(BATCH, np.int64), np.arange(BATCH) + step * BATCH)
        found.append(Batch(**{name: tensor.pin_memory() if pin else tensor for name, tensor in tensors.items()}, slots=slots))
    return found


class Trial:
    """An engine at its start, and steps of it."""

    def __init__(self, cfg: RunConfig, world: World) -> None:
        torch.manual_seed(0)
        self.cfg, self.world, self.state = cfg, world, TrainState()
        # Not by train.build_engine, which spares one process the sharding.
        micro = cfg.hardware.micro_batch
        self.engine = Engine(build(cfg.model), cfg.optim, cfg.hardware, micro, BATCH // micro, world)
        self.batches = iter(batches(pin=world.device.type == "cuda"))

    def go(self, steps: int) -> list[float]:
        cadence = Cadence.of(self.cfg, 1000)
        return [self.step(batch, cadence).read()[0] for batch in islice(self.batches, steps)]

    def step(self, batch: Batch, cadence: Cadence) -> Reading:
        self.state.step += 1
        return train_step(self.engine, batch, self.cfg, self.state.step - 1, cadence)

    def digest(self) -> str:
        """SHA-256 of all weights and optimiser state."""
        sha = hashlib.sha256(str(self.engine.num_updates).encode())
        for fragment in self.engine.fragments(replicas=True):
            for kind, tensor in fragment.tensors.items():
                sha.update(f"{fragment.name}/{kind}".encode() + tensor.cpu().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def take_over(self, other: "Trial") -> None:
        """The other's state, as a checkpoint brings it."""
        theirs = {fragment.name: fragment.tensors for fragment in other.engine.fragments(replicas=True)}
        for fragment in self.engine.fragments(replicas=True):
            for kind, tensor in fragment.tensors.items():
                tensor.copy_(theirs[fragment.name][kind])
        self.engine.num_updates, self.state.step = other.engine.num_updates, other.state.step
        self.engine.spread()
        next(islice(self.batches, self.state.step - 1, None))


def steps(world: World, precision: str) -> dict:
    """At every stage: losses, the same bits from two engines and after a resume, and what a bad gradient changes."""
    found = {}
    for stage in STAGES:
        cfg = config(world.device.type, zero_stage=stage, precision=precision)
        whole, again, resumed = (Trial(cfg, world) for _ in range(3))
        losses = whole.go(SAVE_AT)
        resumed.take_over(whole)
        losses += whole.go(STEPS)
        same = losses == again.go(STEPS) and whole.digest() == again.digest()
        exact = losses[SAVE_AT:] == resumed.go(STEPS) and whole.digest() == resumed.digest()
        before = whole.digest()
        images = torch.ones(BATCH // 2, 3, 32, 32, dtype=whole.engine.dtype, device=world.device)
        for _ in range(whole.engine.grad_accum):
            whole.engine.backward_and_step(whole.engine(images).float().square().mean() * float("nan"))
        unchanged = whole.digest() == before and not bool(whole.engine.grad_norm.isfinite())
        found[stage] = {"losses": losses, "same": same, "exact": exact, "unchanged": unchanged}
    return found


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """A block in which torch raises where the host waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def waiting(world: World, precision: str) -> dict:
    """Steps that may not wait, eager and compiled."""
    found = {}
    for stage in STAGES:
        for compiled in (False, True):
            trial = Trial(config(world.device.type, zero_stage=stage, precision=precision, compile=compiled), world)
            trial.go(2)  # allocates and compiles
            cadence, batch = Cadence.of(trial.cfg, 1000), next(trial.batches)
            with no_waiting(world.device):
                reading = trial.step(batch, cadence)
            found[f"{stage} {'compiled' if compiled else 'eager'}"] = reading.read()[0]
    return found


def compiled(world: World, precision: str) -> dict:
    """Losses of compiled blocks beside eager ones at every stage, and how many graphs that took."""
    found = {}
    for stage in STAGES:
        losses, graphs = [], 0
        for compile_blocks in (False, True):
            torch._dynamo.reset()
            counters.clear()
            trial = Trial(config(world.device.type, zero_stage=stage, precision=precision, compile=compile_blocks), world)
            losses.append(trial.go(STEPS))
            graphs = counters["stats"]["unique_graphs"]
        found[stage] = {"eager": losses[0], "compiled": losses[1], "graphs": graphs, "breaks": dict(counters["graph_break"])}
    return found


CASES = {"steps": steps, "waiting": waiting, "compiled": compiled}


def main() -> None:
    case, out, device = sys.argv[1:]
    os.environ.setdefault("LOCAL_RANK", "0")
    precision = "bf16" if device == "cuda" else "fp32"
    with World(config(device).hardware, seed=0) as world:
        Path(out).write_text(json.dumps(CASES[case](world, precision)))
    end_process(0)


if __name__ == "__main__":
    main()
