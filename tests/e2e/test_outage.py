"""A real MLflow server with passwords is frozen, killed, slow or broken while a real training runs: afterwards it has the whole
history, and the training has lost nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from failing_proxy import proxy
from launching import Tiny, clean_environment, make_tiny, vitscale
from mlflow import MlflowClient
from mlflow_server import LOGIN, Server

STEPS = 150
TRAIN = (
    "--procs",
    "1",
    f"train.total.steps={STEPS}",
    "tracking.log_every=2",
    "eval.every.steps=30",
    "checkpoint.every.steps=50",
)
WITHIN_S = 120
MEASURED = ("train/", "eval/")
pytestmark = pytest.mark.slow  # tests/unit/test_courier.py has the quick one


def start(tiny: Tiny, uri: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "vitscale.cli", "train", str(tiny.recipe), *TRAIN, f"tracking.uri={uri}"]
    with tiny.recipe.with_suffix(".log").open("w") as output:
        return subprocess.Popen(command, env={**clean_environment(), **LOGIN}, stdout=output, stderr=subprocess.STDOUT)


def wait_until(ready: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def measured(tiny: Tiny) -> list[tuple]:
    """What a training's own log says."""
    return [
        (line["step"], {key: value for key, value in line["metrics"].items() if key.startswith(MEASURED)})
        for line in sorted(tiny.metrics(), key=lambda line: (line["step"], line["kind"]))
    ]


def assert_whole(tiny: Tiny, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has every point of the log with its time, none twice, and says that the run is finished."""
    for key, value in LOGIN.items():
        monkeypatch.setenv(key, value)
    client, run_id = MlflowClient(server.uri), (tiny.run_dir() / "mlflow_run_id").read_text()
    expected: dict[str, list] = {}
    for line in tiny.metrics():
        for key, value in line["metrics"].items():
            expected.setdefault(key, []).append((line["step"], value, line["time_ms"]))
    run = client.get_run(run_id)
    assert set(run.data.metrics) == set(expected)
    for key in expected:
        stored = [(point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, key)]
        assert sorted(stored) == sorted(expected[key]), key
    assert run.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run_id)} >= {"recipe.yaml", "environment.json"}
    assert [entry.info.run_id for entry in client.search_runs([run.info.experiment_id])] == [run_id]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Tiny:
    """Without a server: nothing listens there."""
    tiny = make_tiny(tmp_path_factory.mktemp("undisturbed"), digits_dir)
    assert vitscale("train", tiny.recipe, *TRAIN, "tracking.uri=http://127.0.0.1:9").returncode == 0
    return tiny


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as started:
        started.wait()
        yield started


def freeze_and_kill(server: Server, tiny: Tiny, training: subprocess.Popen) -> None:
    wait_until(lambda: len(tiny.metrics()) > 5, training)
    server.send(signal.SIGSTOP)
    wait_until(lambda: len(tiny.metrics()) > 40, training)
    server.kill()


def test_frozen_then_killed_it_costs_nothing_and_gets_all(
    tiny: Tiny, undisturbed: Tiny, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = start(tiny, server.uri)
    wait_until(lambda: (tiny.run_dir() / "mlflow_run_id").exists(), training)
    freeze_and_kill(server, tiny, training)
    assert training.wait(WITHIN_S) == 0
    assert f"to send it: vitscale sync {tiny.run_dir()}" in tiny.recipe.with_suffix(".log").read_text()
    assert tiny.status()["state"] == "finished"
    assert measured(tiny) == measured(undisturbed)
    server.start()
    server.wait()
    done = vitscale("sync", tiny.run_dir(), **LOGIN)
    assert done.returncode == 0, done.stderr
    assert_whole(tiny, server, monkeypatch)


@pytest.mark.parametrize("fault", [{"status": 500}, {"delay_s": 1.5}], ids=str)
def test_broken_or_slow_it_costs_nothing_and_gets_all(
    tiny: Tiny, undisturbed: Tiny, server: Server, monkeypatch: pytest.MonkeyPatch, fault: dict
) -> None:
    with proxy(server.uri) as (uri, wrong):
        training = start(tiny, uri)
        wait_until(lambda: (tiny.run_dir() / "mlflow_run_id").exists(), training)
        wrong.update(fault)
        assert training.wait(WITHIN_S) == 0
    assert measured(tiny) == measured(undisturbed)
    recipe = tiny.run_dir() / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(uri, server.uri))
    assert vitscale("sync", tiny.run_dir(), **LOGIN).returncode == 0
    assert_whole(tiny, server, monkeypatch)


def test_with_its_disk_full_it_costs_nothing_and_gets_all(
    tiny: Tiny, undisturbed: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid():
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    try:
        with Server(tmp_path, store=disk / "mlflow.db") as server:
            server.wait()
            training = start(tiny, server.uri)
            wait_until(lambda: (tiny.run_dir() / "mlflow_run_id").exists(), training)
            with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
                while True:
                    ballast.write(bytes(4096))
            assert training.wait(WITHIN_S) == 0
            assert "to send it: vitscale sync" in tiny.recipe.with_suffix(".log").read_text()
            (disk / "ballast").unlink()
            assert vitscale("sync", tiny.run_dir(), **LOGIN).returncode == 0
            assert_whole(tiny, server, monkeypatch)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert measured(tiny) == measured(undisturbed)
