"""Cases of worker.py that need no checkpoint: the same global batches on every layout, by every optimiser."""

import hashlib
import statistics
import sys
from itertools import islice
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.loader import Batch
from vitscale.cadence import Cadence
from vitscale.config import RunConfig
from vitscale.engine import Engine, import_deepspeed
from vitscale.errors import LaunchError
from vitscale.loop import train_step
from vitscale.model.build import build
from vitscale.model.config import ViTConfig
from vitscale.readings import Reading
from vitscale.state import TrainState
from vitscale.train import build_engine, build_train_loader, open_shards
from vitscale.world import World

STAGES, STEPS, FEW_STEPS = (0, 1, 2, 3), 20, 5
OPTIMS = {
    "adamw": {"lr": 0.005},
    "adamw-bf16": {"lr": 0.005, "moment_dtype": "bf16"},
    "sgd": {"name": "sgd", "lr": 0.1},
    "sgd-bf16": {"name": "sgd", "lr": 0.1, "moment_dtype": "bf16"},
    "lamb": {"name": "lamb", "lr": 0.02},
    "lamb-bf16": {"name": "lamb", "lr": 0.02, "moment_dtype": "bf16"},
    "averaged": {"lr": 0.005, "layer_decay": 0.75, "ema_decay": 0.7},
}
IN_BF16 = ("adamw", "lamb-bf16", "averaged")
ODD = {"num_classes": 11, "drop_path": 0.5}  # 11 classes: an odd number of parameters
WAITS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal, torch.ops.aten.masked_select}
OURS, DEEPSPEED = ("vitscale", "data_pipeline"), "deepspeed"


class Waits(TorchDispatchMode):
    """Notes what asks the device for a value, for which the host has to wait on a GPU, as file:function."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func.overloadpacket is torch.ops.aten.index and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func.overloadpacket in WAITS or masks:
            self.found.append(self.caller())
        return func(*args, **(kwargs or {}))

    @staticmethod
    def caller() -> str:
        frame = sys._getframe(2)
        while frame:
            path = Path(frame.f_code.co_filename)
            for package in (*OURS, DEEPSPEED):
                if package in path.parts:
                    return f"{package}/{path.name}:{frame.f_code.co_name}"
            frame = frame.f_back
        return "elsewhere"


class Trial:
    """An engine at its start, stepped through the same batches on every layout."""

    def __init__(self, base: RunConfig, world: World, batches: list[Batch], optim: dict | None = None, **hardware) -> None:
        self.cfg = base.model_copy(
            update={
                "model": ViTConfig(**{**base.model.model_dump(), **ODD}),
                "optim": base.optim.model_copy(update=optim or {}),
                "hardware": base.hardware.model_copy(update=hardware),
            }
        )
        torch.manual_seed(self.cfg.seed)
        self.engine: Engine = build_engine(build(self.cfg.model), self.cfg, world)
        self.batches, self.state, self.losses = iter(batches), TrainState(), []

    def go(self, steps: int) -> None:
        for batch in islice(self.batches, steps):
            self.note(self.step(batch))

    def step(self, batch: Batch) -> Reading:
        self.state.step += 1
        return train_step(self.engine, batch, self.cfg, self.state.step - 1, Cadence.of(self.cfg, num_samples=400))

    def note(self, reading: Reading) -> None:
        """The loss of the global batch."""
        self.losses.append(statistics.fmean(self.engine.world.gather(reading.read()[0])))

    def waits(self) -> list[str]:
        """Where one more step waited for the device, and this test itself after it."""
        norms, ours = [], self.engine._global_norm
        self.engine._global_norm = lambda *args: norms.append(ours(*args)) or norms[-1]
        if 0 < self.engine.stage < 3:
            self.engine._zero.scaled_global_norm = self.engine._global_norm
        with Waits() as waits:
            reading = self.step(next(self.batches))
            assert len(norms) == (self.engine.stage > 0)  # DeepSpeed's own would wait at stage 3
            float(self.engine.grad_norm)
        self.note(reading)
        return waits.found

    def digest(self) -> list[str]:
        """SHA-256 of all weights and optimiser state, by rank."""
        sha = hashlib.sha256(str(self.engine.num_updates).encode())
        for fragment in self.engine.fragments(replicas=True):
            for kind, tensor in fragment.tensors.items():
                sha.update(f"{fragment.name}@{fragment.start}/{kind}".encode() + tensor.view(torch.uint8).numpy().tobytes())
        return self.engine.world.gather(sha.hexdigest())

    def break_one(self, factor: float) -> None:
        """A step whose gradient is not finite, because of the last rank alone."""
        engine, world = self.engine, self.engine.world
        for _ in range(engine.grad_accum):
            images = torch.ones(engine.micro_batch, 3, 16, 16, dtype=engine.dtype)
            engine.backward_and_step(engine(images).float().square().mean() * (factor if world.rank == world.size - 1 else 1.0))

    @torch.no_grad()
    def evaluate(self, averaged: bool) -> list[float]:
        images = torch.linspace(-1, 1, 768, dtype=self.engine.dtype).reshape(1, 3, 16, 16)
        with self.engine.evaluating(averaged):
            return self.engine(images).float()[0].tolist()


def first_batches(cfg: RunConfig, world: World) -> list[Batch]:
    torch.set_num_threads(1)  # many threads are slower on tensors as small as these
    return list(build_train_loader(open_shards(cfg.data.train, cfg.hardware), cfg, 0, STEPS, world))


def layouts(cfg: RunConfig, world: World) -> dict:
    """20 losses at every stage, each stage with another micro-batch than on other numbers of processes."""
    batches, found = first_batches(cfg, world), {}
    for name, stage in (*(("adamw", stage) for stage in STAGES), ("lamb", 3), ("averaged", 2)):
        accum = (1, 3)[(stage + world.size.bit_length()) % 2]
        hardware = {"zero_stage": stage, "micro_batch": 48 // world.size // accum, "activation_checkpointing": stage % 2}
        trial = Trial(cfg, world, batches, OPTIMS[name], **hardware)
        trial.go(STEPS)
        average = trial.evaluate(averaged=True) if name == "averaged" else None
        found[f"{name}-{stage}"] = {
            "losses": trial.losses,
            "norm": float(trial.engine.grad_norm),
            "accum": accum,
            "average": average,
        }
    assert sum(shape.numel() for shape in trial.engine.shapes.values()) % 2 == 1
    engine = trial.engine._engine
    return {"runs": found, "engine": [type(engine).__module__, engine.dp_world_size]}


def optimizers(cfg: RunConfig, world: World) -> dict:
    """Every optimiser at every stage: losses, averaged weights, what a bad gradient changes, and waiting for the device."""
    batches, found = first_batches(cfg, world), {}
    for precision, names in {"fp32": tuple(OPTIMS), "bf16": IN_BF16}.items():
        for name in names:
            trials = [Trial(cfg, world, batches, OPTIMS[name], zero_stage=stage, precision=precision) for stage in STAGES]
            found[f"{name} in {precision}"] = [try_out(trial) for trial in trials]
    return found


def try_out(trial: Trial) -> dict:
    """What the steps of one engine were like."""
    trial.go(FEW_STEPS - 1)
    waits = trial.waits()
    outputs = [trial.evaluate(averaged) for averaged in (False, trial.cfg.optim.ema_decay is not None, False)]
    before = trial.digest()
    unchanged = []
    for factor in (float("nan"), float("inf")):
        trial.break_one(factor)
        unchanged.append(trial.digest() == before)
    losses = trial.losses.copy()
    trial.go(1)
    return {
        "losses": losses,
        "waits": waits,
        "outputs": outputs,
        "unchanged": unchanged,
        "goes_on": trial.digest() != before and trial.losses[-1] < 3.0,
        "updates": trial.engine.num_updates,
        "grad_norm": float(trial.engine.grad_norm),
    }


def version(_cfg: RunConfig, world: World) -> dict:
    """What another version of DeepSpeed would be told."""
    deepspeed = import_deepspeed(world.device.type)
    installed, said = deepspeed.__version__, []
    for other in ("0.18.9", "0.20.0"):
        deepspeed.__version__ = other
        try:
            import_deepspeed(world.device.type)
        except LaunchError as error:
            said.append(str(error))
    deepspeed.__version__ = installed
    return {"said": said}


CASES = {"layouts": layouts, "optimizers": optimizers, "version": version}
