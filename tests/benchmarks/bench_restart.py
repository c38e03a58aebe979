"""From a start to the first step, part by part, for the demo: `python tests/benchmarks/bench_restart.py [--rounds 3]`.

Two processes. Each round is a fresh start, killed with -9 after its first checkpoint, and the start that goes on from there.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

RECIPE = "recipes/demo/pretrain.yaml"
TOLD = re.compile(r"first step done after [\d.]+ s: (.*)")


def begin(runs: Path, data: Path) -> subprocess.Popen[str]:
    words = [RECIPE, "--procs", "2", f"runs={json.dumps(str(runs))}", "publish=null", "checkpoint.every.epochs=2"]
    words += [f"data.{part}.manifest={json.dumps(f'{data}/{part}.json')}" for part in ("train", "val")]
    command = [sys.executable, "-m", "vitscale.cli", "train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def parts(process: subprocess.Popen[str]) -> dict[str, float]:
    """What the run says of its start."""
    assert process.stdout
    for line in process.stdout:
        if told := TOLD.search(line):
            return {name: float(seconds) for name, seconds in (part.rsplit(" ", 1) for part in told[1].split(", "))}
    raise SystemExit("the training ended before its first step")


def end(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def measure(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    runs, data = folder / "runs", folder / "data"
    fresh = begin(runs, data)
    started = parts(fresh)
    while not list((runs / "digits-pretrain" / "checkpoints").glob("step_*/SHA256SUMS")):
        time.sleep(0.1)
    end(fresh)
    again = begin(runs, data)
    resumed = parts(again)
    end(again)
    return started, resumed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(parser.parse_args().rounds):
        with tempfile.TemporaryDirectory() as folder:
            build = [sys.executable, "-m", "vitscale.cli", "data", "build", "digits", "--out", f"{folder}/data"]
            subprocess.run(build, check=True, capture_output=True)
            for kind, found in zip(("start", "resume"), measure(Path(folder)), strict=True):
                seconds[kind].append(found)
    for kind, rounds in seconds.items():
        medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
        total = statistics.median(sum(found.values()) for found in rounds)
        print(f"{kind}: {total:.1f} s = " + ", ".join(f"{name} {value:.1f}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
