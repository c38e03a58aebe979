"""What each process of tests/distributed does: `worker.py CASE,CASE,... OUT RECIPE [a.b=c ...]`; rank 0 writes what each case
found to OUT."""

import hashlib
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import engines
import memories
import torch
from safetensors.torch import load_file

from vitscale import recipe
from vitscale.cadence import Cadence
from vitscale.checkpoint import restore
from vitscale.config import RunConfig
from vitscale.engine import Engine
from vitscale.loop import train_step
from vitscale.model.build import build
from vitscale.model.config import ViTConfig
from vitscale.modelinfo import WEIGHTS
from vitscale.readings import Readings
from vitscale.retention import complete
from vitscale.rundir import RunDir
from vitscale.saving import Saver
from vitscale.state import TrainState
from vitscale.train import build_engine, build_train_loader, build_validation, open_run, open_shards
from vitscale.world import OtherRankFailedError, World, end_process

SAVE_AT, STOP_AT = 3, 7
OPTIONS = {
    "map": {"pool": "map", "pos_embed": "relative", "drop_path": 0.5, "layer_scale": 0.1},
    "hybrid": {"pos_embed": "learned2d", "pos_embed_at": "every", "stem_blocks": (1,), "patch_size": 2},
}


class Training:
    """A run without its loop: built, restored if there is a checkpoint, stepped by hand."""

    def __init__(self, cfg: RunConfig, world: World) -> None:
        self.cfg, self.world = cfg, world
        self.run = RunDir(cfg)
        open_run(self.run, cfg, world)
        self.train = open_shards(cfg.data.train, cfg.hardware)
        self.cadence = Cadence.of(cfg, len(self.train))
        torch.manual_seed(cfg.seed)
        self.engine: Engine = build_engine(build(cfg.model), cfg, world)
        self.state: TrainState = restore(self.run, self.engine, self.train.digest)

    def go(self, stop: int) -> list[float]:
        """Train to a step; the loss of every step on the way."""
        history, readings = [], Readings(self.world, self.cfg.train.global_batch)
        for batch in build_train_loader(self.train, self.cfg, self.state.step, stop, self.world):
            readings.add(train_step(self.engine, batch, self.cfg, self.state.step, self.cadence), batch, self.state)
            readings.settle(self.state, keep=0)
            history.append(statistics.fmean(self.world.gather(readings.latest)))
        readings.hash(self.state)
        return history

    def save(self) -> Path:
        Saver(self.run, self.engine, self.cfg.checkpoint, 0).save(self.state, last=True)
        return complete(self.run.checkpoints)[-1]

    def digest(self) -> list[str]:
        """SHA-256 of everything the optimiser holds, by rank."""
        sha = hashlib.sha256(str(self.engine.num_updates).encode())
        for fragment in self.engine.fragments():
            for kind, tensor in fragment.tensors.items():
                sha.update(f"{fragment.name}@{fragment.start}/{kind}".encode() + tensor.contiguous().numpy().tobytes())
        return self.world.gather(sha.hexdigest())

    def close(self) -> None:
        if self.run._owner:
            self.run._owner.close()


def exact(base: RunConfig, world: World) -> dict:
    """Per stage and precision: seven steps in one go against three, a save, a new start and four more."""
    found = {}
    for stage in (1, 2, 3):
        for precision in ("fp32", "bf16"):
            name = f"{stage}-{precision}"
            hardware = base.hardware.model_copy(update={"zero_stage": stage, "precision": precision})
            cfg = base.model_copy(update={"name": name, "hardware": hardware})
            whole = Training(cfg, world)
            losses = whole.go(SAVE_AT)
            whole.save()
            losses += whole.go(STOP_AT)
            whole.close()
            resumed = Training(cfg, world)
            assert resumed.state.step == SAVE_AT
            found[name] = {
                "losses": losses,
                "resumed_losses": resumed.go(STOP_AT),
                "same_bits": whole.digest() == resumed.digest(),
                "fingerprints": [sum(world.gather(training.state.fingerprint)) % 2**64 for training in (whole, resumed)],
            }
            resumed.close()
    return found


def elastic(cfg: RunConfig, world: World) -> dict:
    """From the checkpoint that is there, or from the start: to the last step, saving on the way."""
    training = Training(cfg, world)
    start = training.state.step
    losses = training.go(SAVE_AT) if start < SAVE_AT else []
    if start < SAVE_AT:
        training.save()
    losses += training.go(STOP_AT)
    path = training.save()
    weights = torch.cat([tensor.flatten() for _, tensor in sorted(load_file(path / WEIGHTS).items())])
    state = json.loads((path / "state.json").read_text())
    curve = sum(world.gather(training.state.loss_sum)) / world.size / training.state.loss_steps
    verdict = build_validation(cfg, world).judge(training.engine)
    training.close()
    return {
        "start": start,
        "losses": losses,
        "curve": curve,
        "weights": weights.tolist(),
        "fingerprint": state["fingerprint"],
        "eval": verdict.scores,
        "guesses": world.gather(verdict.tallies["eval"].guesses_KC.tolist()),
        "checkpoints": [p.name for p in complete(training.run.checkpoints)],
    }


def options(base: RunConfig, world: World) -> dict:
    """Losses of models whose parameters serve several blocks, stand in the model itself or in a ResNet, at every stage."""
    found = {}
    for name, changes in OPTIONS.items():
        model = ViTConfig(**{**base.model.model_dump(), **changes})
        for stage in (0, 1, 2, 3):
            hardware = base.hardware.model_copy(update={"zero_stage": stage})
            cfg = base.model_copy(update={"name": f"{name}-{stage}", "hardware": hardware, "model": model})
            training = Training(cfg, world)
            found.setdefault(name, []).append(training.go(STOP_AT))
            training.close()
    return found


def alone(_cfg: RunConfig, world: World) -> dict:
    """An error on the last rank ends the block on every rank."""
    try:
        with world.alone():
            if world.rank == world.size - 1:
                raise ValueError("only here")
    except ValueError:
        ended = "own error"
    except OtherRankFailedError as error:
        ended = str(error)
    return {"ended": world.gather(ended)}


CASES = {"exact": exact, "elastic": elastic, "options": options, "alone": alone, "memories": memories.memories, **engines.CASES}


def main(known: dict[str, Callable[[RunConfig, World], dict]]) -> None:
    cases, out, path, *overrides = sys.argv[1:]
    cfg = recipe.load(path, overrides)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    with World(cfg.hardware, cfg.seed) as world:
        found = {case: known[case](cfg, world) for case in cases.split(",")}
        if world.is_main:
            Path(out).write_text(json.dumps(found))
    end_process(0)


if __name__ == "__main__":
    main(CASES)
