"""A real Slurm of three hosts on this machine, and runs on it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from launching import clean_environment
from safetensors.numpy import load_file

SLURM_DIR = Path(__file__).parents[2] / "slurm"
CLUSTER_SH = SLURM_DIR / "local" / "cluster.sh"
WITHIN_S = 300
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")
BIN = str(Path(sys.executable).parent)

CLUSTER = """
nodes: {nodes}
gpus_per_node: 0
options: {{cpus-per-task: "1"{options}}}
exclusive: false
interface: e0
time: "{time}"
setup: ["export PATH={bin}:$PATH"]
max_failures: {max_failures}
"""

RECIPE = """
name: {name}
runs: {folder}/runs
model: {{patch_size: 4, width: 64, depth: 4, num_heads: 4, mlp_dim: 128, image_size: 32, num_classes: 10}}
data:
  train: {{manifest: {data}/train.json}}
  val: {{manifest: {data}/val.json}}
  shuffle_block: 16
  augment: {{crop_area: [0.5, 1.0], flip: true}}
  eval_crop: 1.0
train: {{global_batch: 48, total: {{steps: {steps}}}}}
optim: {{lr: 1e-3, weight_decay: 0.1, schedule: {{warmup: {{steps: 4}}}}}}
eval: {{every: {{steps: 100}}, batch: 50}}
checkpoint: {{every: {{steps: 20}}}}
tracking: {{log_every: 5}}
hardware: {{device: cpu, precision: fp32, hang_after_s: 20}}
"""


@dataclass(frozen=True)
class Run:
    """A run directory that jobs work on."""

    recipe: Path
    path: Path

    def status(self) -> dict:
        path = self.path / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def steps(self) -> list[int]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]

    def history(self) -> dict[tuple[int, str], tuple[float, str]]:
        """Loss and running hash of sample ids, by step."""
        lines = map(json.loads, (self.path / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: (line["metrics"]["train/loss"], line["samples"]) for line in lines if line["kind"] == "train"}

    def weights(self) -> dict[str, bytes]:
        """Of the last checkpoint."""
        last = sorted(self.path.glob("checkpoints/step_" + "[0-9]" * 8))[-1]
        return {name: tensor.tobytes() for name, tensor in load_file(last / "weights.safetensors").items()}

    def output(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.path.glob("job-*.log")))


class Slurm:
    """The cluster, as its users see it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        path = f"{BIN}:{os.environ['PATH']}"
        conf, interface = str(folder / "slurm.conf"), "e0"
        self.environ = {**clean_environment(), "SLURM_CONF": conf, "GLOO_SOCKET_IFNAME": interface, "PATH": path}

    def __call__(self, *words: str | Path) -> str:
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=self.environ, check=False, timeout=120)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def run(self, name: str, steps: int = 120, **sections: str) -> Run:
        recipe = self.folder / f"{name}.yaml"
        lines = "".join(f"{key}: {value}\n" for key, value in sections.items())
        recipe.write_text(RECIPE.format(name=name, folder=self.folder, data=self.data, steps=steps) + lines)
        return Run(recipe, self.folder / "runs" / name)

    def cluster(self, nodes: int, time: str = "10:00", max_failures: int = 3, folder: str = BIN, options: str = "") -> Path:
        """A file that describes it; `folder` holds the `python` that jobs find, `options` are more of them for sbatch."""
        path = self.folder / "cluster.yaml"
        path.write_text(CLUSTER.format(nodes=nodes, time=time, bin=folder, max_failures=max_failures, options=options))
        return path

    def submit(self, run: Run, nodes: int = 2, **how) -> str:
        """The number of the job."""
        self.cluster(nodes, **how)
        said = self(*self.command(run))
        return said.split(" job ")[1].split(";")[0]

    def command(self, run: Run) -> list[str]:
        """To submit it to the cluster of the last submission."""
        words = ["submit", run.recipe, "--cluster", self.folder / "cluster.yaml"]
        return list(map(str, [sys.executable, "-m", "vitscale.cli", *words]))

    def state(self, job: str) -> str:
        """`PENDING`, `RUNNING`, `COMPLETED`, ..."""
        shown = dict(word.split("=", 1) for word in self("scontrol", "show", "job", job).split() if "=" in word)
        if shown["JobState"] == "PENDING" and shown["Reason"] == "BeginTime":
            due = datetime.fromisoformat(shown["EligibleTime"]) - datetime.now()
            if due.total_seconds() > 10:  # what is queued again waits two minutes; in the same second it could not start
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+3seconds"], env=self.environ, check=False)
        return shown["JobState"]

    def wait(self, run: Run, until: Callable[[], object], within_s: float = WITHIN_S, job: str = "") -> None:
        deadline = time.monotonic() + within_s
        while not until():
            if job:
                self.state(job)
            assert time.monotonic() < deadline, f"{self('squeue')}\n{run.status()}\n{run.output()}"
            time.sleep(0.3)

    def ended(self, job: str) -> bool:
        return self.state(job) in ENDED

    def finish(self, run: Run, job: str) -> None:
        """Wait until the job is over, and see that the run is finished."""
        self.wait(run, lambda: self.ended(job))
        assert run.status()["state"] == "finished", run.output()

    def processes(self, node: str, naming: str) -> list[int]:
        """Processes on a host that have this on their command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().decode()
                    same_host = (entry / "ns" / "uts").readlink() == self._uts(node)
                except OSError:
                    continue
                if naming in words and same_host:
                    found.append(int(entry.name))
        return found

    def _uts(self, node: str) -> Path:
        pid = (self.folder / f"slurmd.{node}.pid").read_text().strip()
        return Path(f"/proc/{pid}/ns/uts").readlink()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([CLUSTER_SH, "up", folder, "3"], check=True, timeout=120)
        yield Slurm(folder, digits_dir)
    finally:
        subprocess.run([CLUSTER_SH, "down", folder], check=(folder / "number").exists(), timeout=60)


@pytest.fixture(scope="session")
def undisturbed(slurm: Slurm) -> Run:
    """A whole run on two nodes."""
    run = slurm.run("undisturbed")
    slurm.finish(run, slurm.submit(run))
    return run
