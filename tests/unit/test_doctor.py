"""`vitscale doctor`: each failing case is brought about for real."""

import os
import resource
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from launcher.cluster import Cluster
from vitscale import doctor
from vitscale.config import HardwareConfig, RunConfig


def source_of(cfg: RunConfig):
    return cfg.data.train[0]


def test_the_command_passes_what_is_sound_and_fails_where_one_check_does(vitscale_here, write_recipe, shards, store):
    write_recipe()
    manifest = shards["train"].location
    settings = (f"data.train.manifest={manifest}", "data.val={manifest: nowhere.json}", f"tracking.uri={store}")
    done = vitscale_here("doctor", "recipe.yaml", *settings, "--cluster", "recipes/clusters/cpu.yaml")
    assert (done.returncode, done.stderr) == (1, "")
    lines = [(line[:4], line[6:20].strip(), line[20:]) for line in done.stdout.splitlines()]
    passed = {name: found for status, name, found in lines if status in ("pass", "warn")}
    assert passed["shards"].startswith(f"{manifest}: 20 images, ")
    assert passed["mlflow"].startswith(f"{store}: written in ")
    assert float(passed["all-reduce"].split()[0]) > 0.01
    assert {"packages", "origin", "gpus", "matmul", "room", "file clock", "open files", "/dev/shm"} <= set(passed)
    failed = {name: found for status, name, found in lines if status == "fail"}
    assert set(failed) == {"shards", "slurm"}  # no Slurm answers here
    assert "nowhere.json: no manifest to read" in failed["shards"]
    assert "\n      -> the message says what to do" in done.stdout


def test_a_missing_shard(config, shards):
    path = Path(shards["train"].location)
    (path.parent / "train-00001.tar").unlink()
    found = doctor.guarded(partial(doctor.check_shards, source_of(config(f"data.train.manifest={path}")), config()))
    assert (found.name, found.status) == ("shards", "fail") and "train-00001.tar" in found.found


def test_a_dead_mlflow_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = doctor.guarded(partial(doctor.check_mlflow, f"http://127.0.0.1:{free.getsockname()[1]}"))
    assert (found.name, found.status) == ("mlflow", "fail")
    assert "refused" in found.found and "correct tracking.uri" in found.found


def test_a_file_server_of_this_time(tmp_path):
    assert doctor.check_file_clock(tmp_path / "not" / "there").status == "pass"


def test_a_full_disk(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        found = doctor.check_room(tmp_path / "runs")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert found.status == "fail" and str(tmp_path) in found.found


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Say that a package is installed in some version, as its metadata would."""

    def install(name, version):
        info = tmp_path / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(tmp_path / "site")

    return install


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [("deepspeed", "0.18.1", "ZeRO-2 are wrong"), ("deepspeed", "0.18.5", "slow"), ("rich", "1.0", "rich>=13 is needed")],
)
def test_versions_that_are_bad(installed, name, version, said):
    assert doctor.check_packages().status == "pass"
    installed(name, version)
    found = doctor.check_packages()
    assert found.status == "fail" and f"{name} {version}: " in found.found and said in found.found


def test_an_unrelated_package_of_one_of_our_names(tmp_path):
    (tmp_path / "data_pipeline").mkdir()
    (tmp_path / "data_pipeline" / "__init__.py").touch()
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(doctor.__file__).parents[1]}"}
    command = [sys.executable, "-m", "vitscale.cli", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    found, fix = done.stdout.splitlines()
    assert found.startswith("fail  origin") and f"data_pipeline from {tmp_path}" in found and "PYTHONPATH" in fix


def test_few_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
        found = doctor.check_limit("open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.status, found.found) == ("warn", "limit 1,000")


def test_a_machine_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor.guarded(partial(doctor.check_slurm, Cluster()))
    assert (found.name, found.status) == ("slurm", "fail") and "sinfo" in found.found


def test_a_recipe_that_does_not_fit_the_cluster(config):
    found = doctor.guarded(partial(doctor.check_fit, config(), Cluster(gpus_per_node=3)))
    assert (found.name, found.status) == ("fit", "fail") and "cannot feed 3 processes" in found.found


def test_a_slow_device():
    found = doctor.check_matmul(HardwareConfig(device="cpu", precision="fp32", peak_tflops=1e6))
    assert found.status == "warn" and "of 1000000" in found.found
