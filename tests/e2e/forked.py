"""Trainings whose ranks are forks of one process, which has imported everything: a start takes a second instead of ten.

`forked.py PLAN [WITHIN_S]`: PLAN is JSON, a list of [recipe, overrides, kills]. Each kill is a VITSCALE_FAULT, or a number of
seconds: so long after the first new line of metrics all ranks are killed. After all of them the run goes on to its end. Prints
the ranks' exit codes, a list per start. WITHIN_S: how long the ranks that are left may take to end by themselves.
"""

import importlib
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from vitscale import recipe, train
from vitscale.rundir import RunDir

RANKS = 2
LATE = ("torch._inductor", "deepspeed.runtime.zero.muon.muon_optimizer", "mlflow.store.tracking.sqlalchemy_store", "alembic")
fork = multiprocessing.get_context("fork")


def rank_main(rank: int, port: int, path: str, overrides: list[str], fault: str) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1", VITSCALE_FAULT=fault)
    log = Path(path).with_suffix(".log").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    train.main(recipe.load(path, overrides))


def start(path: str, overrides: list[str], kill: str | float, within_s: float) -> list[int | None]:
    """Run until a rank ends otherwise than well, then kill the others as a launcher does; the exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fault = kill if isinstance(kill, str) else ""
    ranks = [fork.Process(target=rank_main, args=(rank, port, path, overrides, fault)) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    if isinstance(kill, str):
        wait(ranks, lambda: False)
    else:
        metrics = RunDir(recipe.load(path, overrides)).metrics
        before = metrics.stat().st_size if metrics.exists() else 0
        wait(ranks, lambda: metrics.exists() and metrics.stat().st_size > before)
        time.sleep(kill)
    deadline = time.monotonic() + within_s
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
        rank.kill()
        rank.join()
    return [rank.exitcode for rank in ranks]


def wait(ranks: list[BaseProcess], until: Callable[[], bool]) -> None:
    """Until then, or all ranks have ended, or one has not ended well."""
    while not until() and any(rank.exitcode is None for rank in ranks) and not any(rank.exitcode for rank in ranks):
        time.sleep(0.005)


def main(plan: str, within_s: float) -> None:
    for name in LATE:  # what a training imports only after its start
        importlib.import_module(name)
    found = [[start(path, words, kill, within_s) for kill in (*kills, "")] for path, words, kills in json.loads(plan)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], float(*sys.argv[2:]))
