"""Run by test_stopping.py in several gloo processes: stops that reach one of them, and a hang of all."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from worker import Training

from vitscale import recipe
from vitscale.courier import Tracker
from vitscale.health import Watch
from vitscale.loop import evaluate_owed
from vitscale.train import build_validation
from vitscale.world import World


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
        found = {"evaluating": evaluating(training, world)}
        with Watch(world, training.run, hang_after_s=2):
            found["waiting"] = waiting(world)
            if world.is_main:
                Path(out).write_text(json.dumps(found))
            world.phases.enter("data")
            threading.Event().wait()


if __name__ == "__main__":
    main()
