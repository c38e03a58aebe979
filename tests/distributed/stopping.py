"""Run by test_stopping.py in several gloo processes: stops that reach one of them, and a hang of all."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from worker import Training

from data_pipeline.loader import Batch
from vitscale import recipe
from vitscale.config import RunConfig
from vitscale.courier import Tracker
from vitscale.health import Watch
from vitscale.loop import evaluate_owed, fit
from vitscale.retention import complete
from vitscale.train import build_train_loader, build_validation
from vitscale.validation import Validation
from vitscale.world import World

LOST_AFTER = 3


def last_rank(world: World) -> bool:
    return world.rank == world.size - 1


def waiting(world: World) -> list[int]:
    """The last rank is sent a signal; all ranks wait for an item that never comes."""

    def items() -> Iterator[int]:
        yield 1
        if last_rank(world):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        threading.Event().wait()

    return world.gather(list(world.until_stop(items())))


def losing(cfg: RunConfig, world: World) -> dict:
    """The last rank waits for a batch that never comes, and is sent a signal: it takes all back to the step before."""
    undisturbed = Training(cfg.model_copy(update={"name": "undisturbed"}), world)
    undisturbed.go(LOST_AFTER)
    training = Training(cfg.model_copy(update={"name": "losing"}), world)
    state, shards = training.state, training.train

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(build_train_loader(shards, cfg, 0, training.cadence.total, world)):
            if number == LOST_AFTER and last_rank(world):
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                threading.Event().wait()
            yield batch

    with Tracker(cfg, training.run, active=False) as tracker:
        nothing = Validation(cfg, None, {})
        done = fit(training.cfg, training.cadence, training.engine, batches(), shards, nothing, state, training.run, tracker)
    stood = done, world.stopping, state.step, state.samples, state.bad_steps, complete(training.run.checkpoints)[-1].name
    same = training.digest() == undisturbed.digest()
    hashes = [sum(world.gather(run.state.fingerprint)) % 2**64 for run in (training, undisturbed)]
    world.stopping = world.stop_requested = False
    ends = []
    for run in (training, undisturbed):  # nothing is left of the step that was lost
        run.go(LOST_AFTER + 3)
        ends.append(run.digest())
        run.close()
    return {"stood": world.gather(stood), "same": same and ends[0] == ends[1], "hashes": hashes[0] == hashes[1] != 0}


def evaluating(training: Training, world: World) -> dict:
    """The last rank is asked to stop within an evaluation; the next start makes up for it."""
    state, engine, validation = training.state, training.engine, build_validation(training.cfg, world)
    whole = validation.judge(engine).scores
    tracker = Tracker(training.cfg, training.run, active=False)

    def cut() -> Iterator:
        for number, batch in enumerate(validation.val):
            world.stop_requested = number == 1 and last_rank(world)
            yield batch

    state.owes_eval = True
    evaluate_owed(engine, validation._replace(val=cut()), state, tracker, training.run)
    dropped = state.owes_eval and world.stopping and not state.scores and not training.run.artifacts.exists()
    world.stopping = world.stop_requested = False
    evaluate_owed(engine, validation, state, tracker, training.run)
    written = sorted(path.name for path in (training.run.artifacts / "eval").rglob("*.*"))
    made_up = state.scores == {state.name: whole} and not state.owes_eval
    return {"dropped": world.gather(dropped), "made_up": made_up, "written": written}


def main() -> None:
    out, path = sys.argv[1:]
    cfg = recipe.load(path, ["eval.batch=10"])
    with World(cfg.hardware, cfg.seed) as world:
        training = Training(cfg, world)
        found = {"evaluating": evaluating(training, world), "losing": losing(cfg, world)}
        with Watch(world, training.run, hang_after_s=2):
            found["waiting"] = waiting(world)
            if world.is_main:
                Path(out).write_text(json.dumps(found))
            world.phases.enter("data")
            threading.Event().wait()


if __name__ == "__main__":
    main()
