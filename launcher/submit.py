"""A run into the queue of Slurm."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from launcher import cluster as clusters
from launcher.cluster import Cluster
from launcher.command import node_command
from launcher.sbatch import quoted, render, sbatch_lines, sbatch_options
from vitscale import recipe
from vitscale.config import RunConfig
from vitscale.errors import LaunchError, RecipeError

SBATCH_WITHIN_S = 120.0
SUBMITTED = "submitted.yaml"


def resolve(path: str, overrides: Sequence[str], cluster: Cluster) -> RunConfig:
    """The recipe as it will run on the cluster; RecipeError where it cannot."""
    cfg = recipe.load(path, overrides)
    if cluster.scratch and not cfg.hardware.cache_dir:
        cfg = recipe.load(path, [*overrides, f"hardware.cache_dir={cluster.scratch}"])
    clusters.check(cfg, cluster)
    if clusters.IN_URL.search(recipe.dump(cfg)):
        raise RecipeError(f"{path}: holds a secret, e.g. a URL with a password; {clusters.SECRETS_STAY}")
    return cfg


def script(cfg: RunConfig, cluster: Cluster, run_dir: Path) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_./+=@:,-]+", str(run_dir)):  # it stands in an #SBATCH line, where nothing can be quoted
        raise RecipeError(f"{run_dir}: Slurm takes letters, digits and _./+=@:,- in paths; choose another folder with runs=...")
    return render(cluster, cfg.name, run_dir, [str(run_dir / SUBMITTED)])


def launch_line(cluster: Cluster, run_dir: Path) -> list[str]:
    """What the script runs on each node."""
    known = {"SLURM_NNODES": str(cluster.nodes), "PROCS_PER_NODE": str(cluster.procs)}
    job = known | {name: f"${name}" for name in ("SLURM_NODEID", "MAIN_ADDRESS", "MAIN_PORT")}
    return node_command([str(run_dir / SUBMITTED)], job, "$LOG_DIR")


def submit_array(cluster: Cluster, name: str, folder: Path, scripts: Sequence[Path]) -> str:
    """Queue the scripts of several runs as one array of jobs; returns its number. Each lives until its run is finished."""
    options = sbatch_options(cluster, name, folder) | {"array": f"0-{len(scripts) - 1}", "output": f"{folder}/job-%A-%a.log"}
    lines = ["#!/usr/bin/env bash", *sbatch_lines(options), f"SCRIPTS=({quoted(list(map(str, scripts)))})"]
    path = folder / "sweep.sbatch"
    path.write_text("\n".join([*lines, 'exec bash "${SCRIPTS[SLURM_ARRAY_TASK_ID]}"', ""]))
    return queue(path)


def write(cfg: RunConfig, text: str, run_dir: Path) -> Path:
    """Recipe and script in the run directory; returns the script's path.

    The job trains that copy: what happens to the recipe's own file afterwards changes no job that waits.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "train.sbatch"
    path.write_text(text)
    (run_dir / SUBMITTED).write_text(recipe.dump(cfg))
    return path


def queue(path: Path) -> str:
    """Hand a script to Slurm; returns the job's number."""
    if not shutil.which("sbatch"):
        raise LaunchError("sbatch: not found, so this is no machine to submit from; log in to one, or look at --dry-run")
    command = ["sbatch", "--parsable", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SBATCH_WITHIN_S)
    if done.returncode:
        raise LaunchError(
            f"sbatch {path}: {' '.join(done.stderr.split())}; correct the cluster file, or ask who runs the cluster"
        )
    return done.stdout.strip().split(";")[0]
