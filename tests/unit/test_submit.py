"""Recipe and cluster file become a script that says what was meant, and nothing else."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from launching import vitscale

from launcher import cluster as clusters
from launcher.cluster import Cluster
from launcher.command import node_command
from launcher.sbatch import render, settings, slurm_dir
from vitscale import failure
from vitscale.errors import RecipeError

ROOT = Path(__file__).parents[2]
CLUSTERS = sorted((ROOT / "recipes" / "clusters").glob("*.yaml"))
SCRIPTS = sorted(path for path in (ROOT / "slurm").rglob("*") if path.suffix in (".sbatch", ".sh"))
HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "a'; touch pwned; '",
    'a"; touch pwned; "',
    "a b",
    "; touch pwned",
    "\\",
    "${HOME}",
]


@pytest.fixture
def cluster_file(tmp_path):
    def write(text):
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        return path

    return write


def bash(script: str, cwd: Path, *words: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # with shellcheck
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert (done.returncode, done.stdout if done.returncode else "", done.stderr) == (0, "", "")
    return done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_by_hand_are_sound(path):
    bash(f"shellcheck {path}", ROOT)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_pipe_of_a_script_ends_before_all_is_written(path):
    """With pipefail the whole pipe then fails if there was much, of a thousand hosts say, and the job with it."""
    assert "pipefail" in path.read_text()
    assert re.findall(r"(?<!\|)\| *(?:head|grep -\w*q|grep -\w*m)\b.*", path.read_text()) == []


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_example_gives_a_sound_script(path, tmp_path):
    script = render(clusters.load(path), "run", tmp_path / "run", [str(tmp_path / "run" / "submitted.yaml")])
    bash('shellcheck - <<<"$1"', tmp_path, script)
    head = script.split("set -euo pipefail")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert script.endswith((slurm_dir() / "train.sbatch").read_text().split("# == End of settings ==\n")[1])


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_becomes_shell_code(tmp_path, value):
    cluster = Cluster(environment={"GIVEN": value}, container={"kind": "apptainer", "image": value, "mounts": [value]})
    lines = settings(cluster, tmp_path / "run", [value, f"x={value}"])
    said = bash("\n".join([*lines, 'printf "%s\\n" "$GIVEN" "${INSIDE[@]}" "$@"']), tmp_path)
    assert said.splitlines() == [value, "apptainer", "exec", "--nv", "--bind", value, value, value, f"x={value}"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("field", ["partition", "account", "time", "interface"])
@pytest.mark.parametrize("value", ["a b", "x\n#SBATCH --wrap=evil", "$(x)", "-x", "a;b", ""])
def test_words_of_sbatch_lines_are_words(cluster_file, field, value):
    with pytest.raises(RecipeError, match=field):
        clusters.load(cluster_file(json.dumps({field: value})))


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "api_key"])
def test_secrets_are_refused(cluster_file, name):
    with pytest.raises(RecipeError, match=f"{name} looks like a secret"):
        clusters.load(cluster_file(f"environment: {{{name}: hush}}"))


@pytest.mark.parametrize(
    "line",
    [
        "export HF_TOKEN=hush",
        "pip config set global.index-url https://me:hush@host/simple",
        "docker login --password hush",
        "export MY_PASS=hush GH_PAT=hush",
        'curl -H "Authorization: Bearer hush"',
    ],
)
def test_secrets_in_setup_are_refused_and_not_shown(cluster_file, line):
    with pytest.raises(RecipeError, match="export it in the shell that submits") as refused:
        clusters.load(cluster_file(json.dumps({"setup": [line]})))
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("option", [{"export": "ALL,HF_TOKEN=hush"}, {"comment": "token=hush"}])
def test_secrets_in_options_are_refused(cluster_file, option):
    with pytest.raises(RecipeError, match="holds a secret"):
        clusters.load(cluster_file(json.dumps({"options": option})))


@pytest.mark.parametrize("name", ["A B", "A;touch pwned", "$(x)", "1A", "A=B"])
def test_names_of_variables_are_names(cluster_file, name):
    with pytest.raises(RecipeError, match="is no name of a variable"):
        clusters.load(cluster_file(json.dumps({"environment": {name: "x"}})))


@pytest.mark.parametrize("section", [{"setup": ["a\nb"]}, {"environment": {"A": "a\nb"}}, {"options": {"a": "b c"}}])
def test_values_are_single_lines_and_options_words(cluster_file, section):
    with pytest.raises(RecipeError, match="is allowed here"):
        clusters.load(cluster_file(json.dumps(section)))


def test_one_process_drives_one_gpu(cluster_file):
    with pytest.raises(RecipeError, match="one process drives one GPU"):
        clusters.load(cluster_file("{gpus_per_node: 8, procs_per_node: 4}"))


def test_the_script_asks_for_what_the_cluster_file_says(tmp_path):
    cluster = Cluster(
        nodes=3,
        gpus_per_node=4,
        account="mine",
        max_failures=7,
        interface="ib0",
        options={"qos": "high", "cpus-per-task": "24", "time": "1:00:00"},
        container={"kind": "pyxis", "image": "registry#a:b", "mounts": ["/data:/data"]},
    )
    script = render(cluster, "run", tmp_path, ["r.yaml"]).splitlines()
    options = dict((*line.removeprefix("#SBATCH --").split("=", 1), "")[:2] for line in script if line.startswith("#SBATCH"))
    here, mounts = Path.cwd(), "--container-mounts="
    assert options == {
        "job-name": "run",
        "nodes": "3",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "exclusive": "",
        "time": "1:00:00",
        "account": "mine",
        "signal": "B:USR1@300",
        "requeue": "",
        "open-mode": "append",
        "output": f"{tmp_path}/job-%j.log",
        "qos": "high",
        "cpus-per-task": "24",
    }
    for line in (
        "export NCCL_SOCKET_IFNAME=ib0",
        "export GLOO_SOCKET_IFNAME=ib0",
        f"SRUN_OPTIONS=('--container-image=registry#a:b' '{mounts}{here}:{here},/data:/data' '--container-workdir={here}')",
        "PROCS_PER_NODE=4",
        "MAX_FAILURES=7",
    ):
        assert line in script


def test_jobs_of_one_node_do_not_meet_at_one_port():
    environ = {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "PROCS_PER_NODE": "2"}
    environ |= {"MAIN_ADDRESS": "node0", "MAIN_PORT": "20001"}
    words = node_command(["r.yaml"], environ, "/runs/x/logs/7.0/node0")
    assert "--rdzv_backend" not in words and dict(pairwise(words))["--main_process_port"] == "0"


def test_a_secret_that_is_read_from_elsewhere_is_none(cluster_file):
    assert clusters.load(cluster_file(json.dumps({"setup": ['export HF_TOKEN="$(cat ~/.token)"', "module load cuda"]})))


def test_a_password_in_the_recipe_is_refused(cluster_file, write_recipe, tmp_path):
    words = (
        f"runs={tmp_path}/runs",
        "tracking.uri=https://me:hush@mlflow.example",
        "--cluster",
        cluster_file("{gpus_per_node: 0}"),
    )
    done = vitscale("submit", write_recipe(), *words)
    assert done.returncode == 1
    assert "holds a secret" in done.stderr and "hush" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_queued(cluster_file, write_recipe, tmp_path):
    path = cluster_file("{nodes: 3, gpus_per_node: 0}")
    done = vitscale("submit", write_recipe(), f"runs={tmp_path}/runs", "--cluster", path)
    assert done.returncode == 1
    assert "3 nodes x 1 processes: data.lanes" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_model_that_does_not_fit_the_gpus_is_refused(cluster_file):
    path = cluster_file("{nodes: 1, gpus_per_node: 1, gpu: a100-40g}")
    words = ("data.train.samples=1000", "hardware.micro_batch=4096", "--cluster", path, "--dry-run")
    done = vitscale("submit", "recipes/pretrain/vit-l16-in21k.yaml", *words)
    assert done.returncode == 1
    assert "hardware.micro_batch" in done.stderr


def test_dry_run_prints_both_and_leaves_nothing(cluster_file, write_recipe, tmp_path):
    path = cluster_file("{nodes: 2, gpus_per_node: 0, partition: cpu}")
    done = vitscale("submit", write_recipe(), f"runs={tmp_path}/runs", "--cluster", path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --partition=cpu" in done.stdout
    assert "-m vitscale.train" in done.stdout.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_where_there_is_no_slurm_that_is_said(cluster_file, write_recipe, tmp_path):
    words = ("submit", write_recipe(), f"runs={tmp_path}/runs", "--cluster", cluster_file("{gpus_per_node: 0}"))
    done = vitscale(*words, PATH=str(tmp_path))
    assert "sbatch: not found, so this is no machine to submit from" in done.stderr


def test_a_path_that_slurm_cannot_take_is_refused(cluster_file, write_recipe, tmp_path):
    done = vitscale("submit", write_recipe(), f"runs={tmp_path}/my runs", "--cluster", cluster_file("{gpus_per_node: 0}"))
    assert "Slurm takes letters, digits" in done.stderr


def test_each_node_starts_its_part():
    environ = {"SLURM_NNODES": "4", "SLURM_NODEID": "2", "PROCS_PER_NODE": "8"}
    environ |= {"MAIN_ADDRESS": "node0", "MAIN_PORT": "20001"}
    words = node_command(["r.yaml", "a.b=c d"], environ, "/runs/x/logs/7.0/node2")
    pairs = dict(pairwise(words))
    assert (pairs["--num_machines"], pairs["--num_processes"], pairs["--machine_rank"]) == ("4", "32", "2")
    assert (pairs["--main_process_ip"], pairs["--main_process_port"], pairs["--log_dir"]) == (
        "node0",
        "20001",
        "/runs/x/logs/7.0/node2",
    )
    assert words[-3:] == ["vitscale.train", "r.yaml", "a.b=c d"]


def test_the_first_error_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    assert failure.note(tmp_path, failure.place(3, 12, "train"), "RuntimeError: out of memory")
    assert not failure.note(tmp_path, failure.place(0, 12, "train"), "connection lost")
    assert (tmp_path / failure.NAME).read_text() == "rank 3 on node7, step 12, phase train: RuntimeError: out of memory\n"
