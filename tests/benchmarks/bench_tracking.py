"""What `tracker.log` costs a step while MLflow's server is healthy, frozen, killed, slow, answering 500, and out of disk.

`python tests/benchmarks/bench_tracking.py [--steps 2000]`: needs root, for the small disk. Real processes on this machine: an
`mlflow server` (SQLite, passwords), the courier, and a loop that logs 30 metrics every 5 ms.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from failing_proxy import proxy
from mlflow_server import LOGIN, Server

from vitscale import courier, recipe
from vitscale.courier import Tracker
from vitscale.rundir import RunDir

RECIPE = """
name: {name}
runs: {runs}
model: {{name: vit-ti16}}
data: {{train: {{manifest: nowhere}}}}
train: {{global_batch: 8, total: {{steps: 1}}}}
optim: {{lr: 1e-3}}
tracking: {{uri: {uri}}}
"""
STATES = ("healthy", "frozen", "killed", "slow", "500", "disk full")
PAUSE_S = 0.005


def measure(folder: Path, state: str, steps: int) -> dict[str, float]:
    """Start everything, let a point arrive, bring the server into its state, then log."""
    with ExitStack() as stack:
        disk = folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
        stack.callback(subprocess.run, ["umount", "-l", disk], check=True)
        server = stack.enter_context(Server(folder, store=disk / "mlflow.db"))
        server.wait()
        uri, wrong = stack.enter_context(proxy(server.uri))
        path = folder / "recipe.yaml"
        path.write_text(RECIPE.format(name="bench", runs=folder, uri=uri))
        run = RunDir(cfg := recipe.load(path))
        run.path.mkdir()
        run.recipe.write_text(path.read_text())
        tracker = stack.enter_context(Tracker(cfg, run, active=True))
        tracker.log(0, "train", {"train/loss": 0.0})
        while not (run.mlflow_sent.exists() and json.loads(run.mlflow_sent.read_text())["metrics"]):
            time.sleep(0.1)
        disturb(state, server, wrong, disk)
        times = []
        for step in range(1, steps + 1):
            begin = time.perf_counter()
            tracker.log(step, "train", {f"speed/metric_{n}": step * 0.1 for n in range(30)})
            times.append(time.perf_counter() - begin)
            time.sleep(PAUSE_S)
    p50, p99, most = np.percentile(times, [50, 99, 100]) * 1e3
    return {"state": state, "steps": steps, "p50_ms": round(p50, 4), "p99_ms": round(p99, 4), "max_ms": round(most, 3)}


def disturb(state: str, server: Server, wrong: dict[str, float], disk: Path) -> None:
    if state == "frozen":
        server.send(signal.SIGSTOP)
    if state == "killed":
        server.kill()
    wrong.update({"slow": {"delay_s": 2}, "500": {"status": 500}}.get(state, {}))
    if state == "disk full":
        with (disk / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--states", nargs="*", default=STATES)
    args = parser.parse_args()
    os.environ |= LOGIN
    courier.STOP_WITHIN_S = 1.0
    for state in args.states:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), state, args.steps)), flush=True)


if __name__ == "__main__":
    main()
