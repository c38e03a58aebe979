"""What each process of test_saves.py does, by case; as worker.py, of which it takes its trainings."""

import resource
from pathlib import Path

import torch
from safetensors import safe_open
from worker import Training, main

from vitscale.checkpoint import latest
from vitscale.config import RunConfig
from vitscale.errors import CheckpointError
from vitscale.modelinfo import AVERAGED, WEIGHTS
from vitscale.retention import complete
from vitscale.saving import Saver
from vitscale.weights import sharded
from vitscale.world import OtherRankFailedError, World

WALK = (0, 1, 2, 3, 0, 2, 1, 3, 2, 0, 3, 1, 0)  # from every ZeRO stage to every other


def changed(cfg: RunConfig, **sections: dict) -> RunConfig:
    return cfg.model_copy(update={name: getattr(cfg, name).model_copy(update=values) for name, values in sections.items()})


def stored(path: Path) -> dict[str, list]:
    """Every whole parameter and optimiser state in a checkpoint, put together without vitscale's reader."""
    pieces: dict[str, list] = {}
    for file in sorted((path / "engine").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dict
                name, place = key.split("@")
                start, kind = place.split("/")
                pieces.setdefault(f"{name}/{kind}", []).append((int(start), opened.get_tensor(key)))
    return {key: torch.cat([tensor for _, tensor in sorted(found, key=lambda p: p[0])]) for key, found in pieces.items()}


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def walk(base: RunConfig, world: World) -> dict:
    """LAMB with a bf16 first moment and an average: trained two steps, then carried from stage to stage, a step later each."""
    base = base.model_copy(update={"name": "walk"})
    base = changed(base, optim={"name": "lamb", "moment_dtype": "bf16", "ema_decay": 0.5})
    same, kinds, files = [], set(), []
    first: dict = {}
    for number, stage in enumerate(WALK):
        training = Training(changed(base, hardware={"zero_stage": stage, "precision": ("fp32", "bf16")[number % 2]}), world)
        if number == 0:
            training.go(2)
        training.state.step += 1  # another name for the same content
        path = training.save()
        with world.alone():
            state = stored(path)
        first = first or state
        same.append(equal(first, state))
        kinds = {f"{key.split('/')[1]} {tensor.dtype}" for key, tensor in state.items()}
        files = sorted(file.name for file in path.iterdir())
        training.close()
    return {"same": same, "kinds": sorted(kinds), "files": files, "moved": not torch.equal(*whole_files(path))}


def whole_files(path: Path) -> list[torch.Tensor]:
    """All of weights.safetensors and of ema.safetensors, each in one tensor."""
    found = []
    for name in (WEIGHTS, AVERAGED):
        with safe_open(path / name, "pt") as file:
            found.append(torch.cat([file.get_tensor(key).flatten() for key in sorted(file.keys())]))
    return found


def carried(base: RunConfig, world: World) -> dict:
    """The checkpoint that `walk` left, read and written by another number of processes at another stage."""
    base = base.model_copy(update={"name": "walk"})
    cfg = changed(base, optim={"name": "lamb", "moment_dtype": "bf16", "ema_decay": 0.5})
    training = Training(cfg, world)
    with world.alone():
        before = stored(complete(training.run.checkpoints)[-1])
    training.state.step += 1
    path = training.save()
    training.close()
    return {"same": equal(before, stored(path)), "ranks": len(list((path / "engine").iterdir()))}


def full(base: RunConfig, world: World) -> dict:
    """The last rank may not write long files any more, as on a full disk: a warning, at the end an error; then it may again."""
    training = Training(base.model_copy(update={"name": "full"}), world)
    training.go(1)
    training.save()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    saver = Saver(training.run, training.engine, training.cfg.checkpoint, 0)
    if world.rank == world.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    training.go(2)
    saver.save(training.state, last=False)
    training.go(3)
    raised = ""
    try:
        saver.save(training.state, last=True)
    except (CheckpointError, OtherRankFailedError) as error:
        raised = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    left = sorted(path.name for path in training.run.checkpoints.iterdir())
    sound = latest(training.run.checkpoints) == training.run.checkpoints / "step_00000001"
    training.go(4)
    saver.save(training.state, last=True)
    training.close()
    return {"raised": raised, "left": left, "sound": sound, "after": [p.name for p in complete(training.run.checkpoints)]}


def no_room(base: RunConfig, world: World) -> dict:
    """The disk of the run directory holds one checkpoint, not two."""
    training = Training(base.model_copy(update={"name": "no-room"}), world)
    training.go(1)
    training.save()
    ballast = training.run.path / "ballast"
    with world.alone():
        if world.is_main:
            ballast.write_bytes(b"x" * 2_700_000)
    saver = Saver(training.run, training.engine, training.cfg.checkpoint, 0)
    training.go(2)
    saver.save(training.state, last=False)
    raised = ""
    try:
        saver.save(training.state, last=True)
    except (CheckpointError, OtherRankFailedError) as error:
        raised = str(error)
    left = [path.name for path in training.run.checkpoints.iterdir()]
    training.close()
    return {"raised": raised, "left": left}


def parts(base: RunConfig, world: World) -> dict:
    """Weights in parts of at most 10,000 bytes."""
    training = Training(changed(base.model_copy(update={"name": "parts"}), optim={"ema_decay": 0.5}), world)
    training.go(2)
    sharded.SHARD_BYTES = 10_000
    path = training.save()
    sharded.SHARD_BYTES = 450 * 2**20
    training.state.step += 1
    written = sum(file.stat().st_size for file in training.save().rglob("*.safetensors"))
    saver = Saver(training.run, training.engine, training.cfg.checkpoint, 0)
    needed = saver.num_bytes(world.gather((path / f"engine/rank_{world.rank:05d}.safetensors").stat().st_size))
    training.close()
    return {"path": str(path), "spare": needed - written}


CASES = {"walk": walk, "carried": carried, "full": full, "no_room": no_room, "parts": parts}

if __name__ == "__main__":
    main(CASES)
