"""Real launches on a small recipe, for tests of several kinds."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCH_TIMEOUT_S = 300

RECIPE = """
name: tiny
runs: {runs}
model: {{patch_size: 8, width: 32, depth: 2, num_heads: 2, mlp_dim: 64, image_size: 16, num_classes: 10}}
data:
  train: {{manifest: {data}/train.json}}
  val: {{manifest: {data}/val.json}}
  shuffle_block: 16
  mix_group: 4
  augment: {{crop_area: [0.5, 1.0], flip: true, mixup: 0.2}}
  eval_crop: 1.0
train: {{global_batch: 48, total: {{steps: 20}}}}
optim: {{lr: 1e-3, weight_decay: 0.1, schedule: {{warmup: {{steps: 4}}}}}}
eval: {{every: {{steps: 10}}, batch: 50}}
checkpoint: {{every: {{steps: 6}}}}
tracking: {{log_every: 5}}
hardware: {{device: cpu, precision: fp32}}
"""


@dataclass(frozen=True)
class Tiny:
    """A recipe file on a few hundred digits, in a folder of its own."""

    recipe: Path
    runs: Path

    def run_dir(self, name: str = "tiny") -> Path:
        return self.runs / name

    def metrics(self, name: str = "tiny") -> list[dict]:
        return [json.loads(line) for line in (self.run_dir(name) / "metrics.jsonl").read_text().splitlines()]

    def status(self, name: str = "tiny") -> dict:
        return json.loads((self.run_dir(name) / "status.json").read_text())


def make_tiny(folder: Path, data: Path) -> Tiny:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(runs=folder / "runs", data=data))
    return Tiny(path, folder / "runs")


def clean_environment() -> dict[str, str]:
    """The environment without what a launcher or a user's MLflow would set."""
    drop = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "ACCELERATE_", "MLFLOW_", "TORCHELASTIC")
    return {key: value for key, value in os.environ.items() if not key.startswith(drop)}


def vitscale(*words: str | Path, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "vitscale.cli", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean_environment(), **environ},
        timeout=LAUNCH_TIMEOUT_S,
        check=False,
    )


def launch(script: Path, procs: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a test's worker script in so many gloo processes."""
    command: Sequence[str] = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(procs)),
        *(str(script), *map(str, words)),
    ]
    return subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(), timeout=LAUNCH_TIMEOUT_S, check=False
    )


def processes_naming(text: str) -> list[int]:
    """Processes that have this on their command line."""
    return _processes("cmdline", text)


def processes_marked(text: str) -> list[int]:
    """Processes that were started with this in their environment, or by one that was."""
    return _processes("environ", text)


def _processes(file: str, text: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if text.encode() in (entry / file).read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
    return found
