"""Run by test_stopping.py in several processes: rank 0 stands still, the others wait for it."""

import os
import signal
import sys
import threading

from vitscale import recipe
from vitscale.health import Watch
from vitscale.rundir import RunDir
from vitscale.world import World


def main() -> None:
    cfg = recipe.load(sys.argv[1])
    run = RunDir(cfg)
    with World(cfg.hardware, cfg.seed) as world, Watch(world, run, hang_after_s=1):
        run.path.mkdir(parents=True, exist_ok=True)
        world.gather(None)
        if world.is_main:
            os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait()


if __name__ == "__main__":
    main()
