"""What a start ran on, for whoever wants to repeat it: versions, variables by an allow-list, commits. No secrets."""

import hashlib
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.remote import scheme_of
from vitscale import recipe
from vitscale.config import RunConfig
from vitscale.rundir import RunDir, replace_text
from vitscale.tracking import without_secrets

PACKAGES = (
    *("vitscale", "torch", "deepspeed", "accelerate", "mlflow", "webdataset"),
    *("safetensors", "numpy", "simplejpeg", "pillow"),
)
SLURM = "CLUSTER_NAME|JOB_ID|JOB_NAME|JOB_PARTITION|JOB_NODELIST|JOB_NUM_NODES|NTASKS|RESTART_COUNT|ARRAY_JOB_ID|ARRAY_TASK_ID"
VARIABLES = re.compile(rf"SLURM_({SLURM})|(TORCH_)?NCCL_\w+|OMP_\w+|CUDA_VISIBLE_DEVICES|GLOO_SOCKET_IFNAME")
SECRET = re.compile("key|token|secret|pass|cred|auth", re.IGNORECASE)
MAX_VALUE, MAX_DIFF_BYTES, GIT_WITHIN_S = 500, 2**20, 10.0


def note(cfg: RunConfig, run: RunDir) -> dict[str, Any]:
    """Write recipe, environment and uncommitted changes into `artifacts/`; returns what names commit and data."""
    code = {name: _git(folder) for name, folder in (("here", Path.cwd()), ("vitscale", Path(__file__).parent))}
    if code["here"] == code["vitscale"]:
        del code["here"]
    for name, (commit, diff) in code.items():
        if diff:  # named by commit and content: each start's own is kept
            content = hashlib.sha256(diff.encode()).hexdigest()[:8]
            replace_text(run.artifacts / f"{name}-{commit[:12]}-{content}.diff", without_secrets(diff))
    commits = {name: f"{commit}{' with changes' if diff else ''}" for name, (commit, diff) in code.items() if commit}
    replace_text(run.artifacts / "recipe.yaml", without_secrets(recipe.dump(cfg)))
    replace_text(run.artifacts / "environment.json", json.dumps({**environment(), "commits": commits}, indent=1) + "\n")
    return {"commit": commits.get("vitscale") or commits.get("here", ""), "data": datasets(cfg)}


def environment() -> dict[str, Any]:
    """Versions of what computes, and the allowed variables."""
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else ()
    allowed = {key: value for key, value in os.environ.items() if VARIABLES.fullmatch(key) and not SECRET.search(key)}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, nccl)),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "variables": {key: without_secrets(allowed[key])[:MAX_VALUE] for key in sorted(allowed)},
    }


def _git(folder: Path) -> tuple[str, str]:
    """Commit of a checkout and what differs from it, ("", "") where there is none."""

    def git(*words: str) -> str:
        command = ("git", "-C", str(folder), *words)
        environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, timeout=GIT_WITHIN_S, check=True, env=environ)
        return done.stdout[:MAX_DIFF_BYTES].decode(errors="replace")

    try:
        unknown = git("ls-files", "--others", "--exclude-standard", "--full-name", "*.py", "*.yaml").splitlines()
        added = "".join(f"# not in git: {name}\n" for name in unknown)
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD", "--no-ext-diff") + added
    except (OSError, subprocess.SubprocessError):
        return "", ""


def datasets(cfg: RunConfig) -> list[dict[str, Any]]:
    """The manifests that are trained and evaluated on, as MLflow names data: where, what (digest), how many images."""
    sources = [("training", source) for source in cfg.data.train] + [("evaluation", cfg.data.val)] * bool(cfg.data.val)
    return [{"context": context, **_dataset(read_manifest(source.manifest))} for context, source in sources if source]


def _dataset(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name[-500:],
        "digest": manifest.digest[:36],  # MLflow's limits
        "source_type": scheme_of(manifest.location) or "local",
        "source": json.dumps({"uri": manifest.name}),
        "profile": json.dumps({"num_rows": manifest.num_samples}),
    }
