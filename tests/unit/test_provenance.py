"""What a start notes of its machine, code and data: enough to repeat it, nothing that is secret."""

import json
import subprocess

import psutil
import pytest

from data_pipeline.manifest import read_manifest
from vitscale import machine, provenance, recipe
from vitscale.rundir import RunDir

HOSTILE = {
    "NCCL_DEBUG": "INFO\n\x1b[31m" + "x" * 10_000,
    "NCCL_TOKEN": "hush",
    "NCCL_SOCKET_IFNAME": "http://me:hush@host/?sig=hush",
    "OMP_PASSWORD": "hush",
    "SLURM_JOB_ID": "17",
    "SLURM_JWT": "hush",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "MLFLOW_TRACKING_PASSWORD": "hush",
    "HF_TOKEN": "hush",
    "WANDB_API_KEY": "hush",
    "PATH_OF_hush": "hush",
}


@pytest.fixture
def run(config, shards):
    def make(*overrides):
        cfg = config("name=run", f"data.train.manifest={shards['train'].location}", *overrides)
        return cfg, RunDir(cfg)

    return make


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository that is the current directory, with a change that is not committed."""
    folder = tmp_path / "mine"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("old\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    (folder / "code.py").write_text("new\n")
    monkeypatch.chdir(folder)
    return folder


def test_no_secret_of_the_environment_is_noted(monkeypatch):
    for key, value in HOSTILE.items():
        monkeypatch.setenv(key, value)
    noted = provenance.environment()
    assert "hush" not in json.dumps(noted)
    variables = noted["variables"]
    assert variables["SLURM_JOB_ID"] == "17"
    assert len(variables["NCCL_DEBUG"]) == 500
    assert noted["packages"]["torch"].startswith("2.")


def test_commit_and_changes_of_the_directory_are_kept(run, checkout):
    cfg, directory = run()
    noted = provenance.note(cfg, directory)
    commit = git(checkout, "rev-parse", "HEAD")
    environment = json.loads((directory.artifacts / "environment.json").read_text())
    assert environment["commits"]["here"] == f"{commit} with changes"
    (diff,) = directory.artifacts.glob(f"here-{commit[:12]}-*.diff")
    assert "-old\n+new\n" in diff.read_text()
    (checkout / "new.py").write_text("x = 1\n")
    provenance.note(cfg, directory)
    (second,) = set(directory.artifacts.glob("here-*.diff")) - {diff}
    assert second.read_text().endswith("# not in git: new.py\n")
    assert noted["commit"] in environment["commits"].values()


def test_a_huge_difference_is_cut(run, checkout):
    (checkout / "code.py").write_text("line\n" * 2**20)
    cfg, directory = run()
    provenance.note(cfg, directory)
    (diff,) = directory.artifacts.glob("here-*.diff")
    assert diff.stat().st_size == provenance.MAX_DIFF_BYTES


def test_data_are_named_with_their_digest(run, shards):
    cfg, directory = run(f"data.val.manifest={shards['val'].location}")
    noted = provenance.note(cfg, directory)["data"]
    manifests = [read_manifest(shards[name].location) for name in ("train", "val")]
    assert [(d["context"], d["digest"], d["profile"]) for d in noted] == [
        ("training", manifests[0].digest[:36], '{"num_rows": 20}'),
        ("evaluation", manifests[1].digest[:36], '{"num_rows": 4}'),
    ]


def test_the_recipe_is_kept_without_passwords(run):
    cfg, directory = run("tracking.uri=http://me:hush@host:5000")
    provenance.note(cfg, directory)
    kept = recipe.load(directory.artifacts / "recipe.yaml")
    assert kept.tracking.uri == "http://host:5000"
    assert kept.model_copy(update={"tracking": cfg.tracking}) == cfg


def test_the_header_of_a_recipe_is_what_it_is_about(write_recipe, tmp_path):
    text = write_recipe().read_text()
    path = write_recipe(f"# From Table 3.\n# Deviations: none.\n{text}", "base.yaml")
    assert recipe.load(path).about == "From Table 3.\nDeviations: none."
    child = write_recipe("extends: base.yaml\nname: child\n", "child.yaml")
    assert recipe.load(child).about == "From Table 3.\nDeviations: none."
    child.write_text("# Mine.\nextends: base.yaml\n")
    assert recipe.load(child).about == "Mine."
    (tmp_path / "again.yaml").write_text(recipe.dump(recipe.load(path)))
    assert recipe.load(tmp_path / "again.yaml") == recipe.load(path)


def test_a_machine_says_how_busy_it_is():
    found = {name.rpartition("/")[2]: value for name, value in machine.load().items()}
    assert 0 <= found["cpu_percent"] <= 100
    assert 0.05 < found["memory_gib"] < psutil.virtual_memory().total / 2**30
