"""The process beside a training: it follows, it is never waited for longer than said, it is never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from launching import processes_naming
from mlflow import MlflowClient
from mlflow_server import LOGIN, Server

from vitscale import courier, recipe
from vitscale.courier import Tracker, alone, sync
from vitscale.errors import TrackingError
from vitscale.history import read_log
from vitscale.rundir import RunDir, replace_text

WITHIN_S = 120
TRAINER = """
import os, sys, time
from vitscale import recipe
from vitscale.courier import Tracker
from vitscale.rundir import RunDir
cfg = recipe.load(sys.argv[1])
run = RunDir(cfg)
tracker = Tracker(cfg, run, True).__enter__()
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """As long as a busy machine may need."""
    monkeypatch.setattr(courier, "CLOSE_WITHIN_S", WITHIN_S)
    monkeypatch.setattr(courier, "STOP_WITHIN_S", WITHIN_S)


@pytest.fixture
def run(config):
    cfg = config("name=run")
    directory = RunDir(cfg)
    directory.path.mkdir(parents=True)
    directory.recipe.write_text(recipe.dump(cfg))
    return directory


def tracker(run):
    return Tracker(recipe.load(run.recipe), run, active=True)


def couriers(run):
    return [pid for pid in processes_naming(str(run.path)) if pid != os.getpid()]


def wait_until(ready):
    deadline = time.monotonic() + WITHIN_S
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stored(uri, run):
    """Steps of the loss that MLflow has."""
    if not run.mlflow_run_id.exists():
        return []
    return sorted(metric.step for metric in MlflowClient(uri).get_metric_history(run.mlflow_run_id.read_text(), "train/loss"))


def test_metrics_arrive_while_the_training_goes_on_and_the_rest_at_its_end(run, store, capfd):
    with tracker(run) as history:
        history.log(1, "train", {"train/loss": 1.0})
        wait_until(lambda: stored(store, run) == [1])
        assert MlflowClient(store).get_run(run.mlflow_run_id.read_text()).info.status == "RUNNING"
        for pid in couriers(run):  # as of Ctrl-C and `scancel`: they are for the ranks
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(pid, number)
        history.log(2, "train", {"train/loss": 0.5})
        history.close("FINISHED")
    assert stored(store, run) == [1, 2]
    assert MlflowClient(store).get_run(run.mlflow_run_id.read_text()).info.status == "FINISHED"
    assert capfd.readouterr().out == ""
    assert couriers(run) == []


def test_a_finished_run_waits_for_no_picture_but_has_them_drawn(run, store, monkeypatch):
    table = run.artifacts / "eval" / "step_00000001" / "confusion.csv"
    replace_text(table, "true,a,b\na,3,1\nb,0,4\n")
    statuses, finish = [], courier.Chores.finish

    def note(self):
        statuses.append(MlflowClient(store).get_run(run.mlflow_run_id.read_text()).info.status)
        finish(self)

    monkeypatch.setattr(courier.Chores, "finish", note)
    reading, writing = os.pipe()
    os.write(writing, b"FINISHED")
    os.close(writing)
    with os.fdopen(reading) as told:
        monkeypatch.setattr(sys, "stdin", told)
        courier.main(run.path)
    assert statuses == ["FINISHED"]
    files = MlflowClient(store).list_artifacts(run.mlflow_run_id.read_text(), "eval/step_00000001")
    assert {"confusion.csv", "confusion.png", "confusion.svg"} <= {file.path.rpartition("/")[2] for file in files}


def test_a_killed_courier_is_replaced_and_a_failed_training_is_marked_so(run, store, monkeypatch):
    monkeypatch.setattr(courier, "REVIVE_EVERY_S", 0.0)
    with pytest.raises(ZeroDivisionError), tracker(run) as history:
        wait_until(lambda: couriers(run))
        os.kill(couriers(run)[0], signal.SIGKILL)
        wait_until(lambda: couriers(run) == [])
        wait_until(lambda: history.log(1, "train", {"train/loss": 1.0}) or couriers(run))
        raise ZeroDivisionError
    assert stored(store, run) == [1]
    assert MlflowClient(store).get_run(run.mlflow_run_id.read_text()).info.status == "FAILED"


def test_other_ranks_keep_no_history(run):
    with Tracker(recipe.load(run.recipe), run, active=False) as history:
        history.log(1, "train", {"train/loss": 1.0})
        history.note_start(step=0)
        history.close("FINISHED")
    assert not run.metrics.exists() and not run.attempts.exists() and couriers(run) == []


def test_what_a_killed_trainer_left_is_sent_and_its_run_is_marked_so(run, store):
    run.write_status("running")
    code = (
        "tracker.log(1, 'train', {'train/loss': 1.0})\n"
        "while not run.mlflow_run_id.exists(): time.sleep(0.02)\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", TRAINER + code, run.recipe], check=False)
    wait_until(lambda: couriers(run) == [])
    assert stored(store, run) == [1]
    assert MlflowClient(store).get_run(run.mlflow_run_id.read_text()).info.status == "KILLED"


@pytest.mark.slow  # ten seconds of patience
def test_it_does_not_outlive_the_trainer_for_long_even_amid_a_request(run, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{frozen.getsockname()[1]}")
        trainer = subprocess.Popen([sys.executable, "-c", TRAINER + "time.sleep(100)", run.recipe])
        with frozen.accept()[0]:
            (courier_pid,) = set(couriers(run)) - {trainer.pid}
            trainer.kill()
            trainer.wait()
            wait_until(lambda: courier_pid not in couriers(run))


def test_two_never_send_at_once(run):
    with alone(run), pytest.raises(TrackingError, match="another process is sending"):
        with alone(run):
            pass


def test_a_server_that_does_not_answer_costs_the_training_nothing(run, capfd, monkeypatch, request):
    """It takes every connection and never says a word."""
    server = socket.create_server(("127.0.0.1", 0))
    request.addfinalizer(server.close)
    uri = f"http://me:hush@127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(courier, "CLOSE_WITHIN_S", 1.0)
    said = ""

    def has_warned():
        nonlocal said
        said += capfd.readouterr().out
        return "warning" in said

    with tracker(run) as history:
        began = time.monotonic()
        for step in range(1, 101):
            history.log(step, "train", {"train/loss": 1.0})
        assert time.monotonic() - began < 0.5
        wait_until(has_warned)
        history.close("FINISHED")
    assert len(read_log(run.metrics)) == 100
    said += capfd.readouterr().out
    assert said.count("warning: MLflow at http://127.0.0.1:") == 2 and "hush" not in said
    assert "no answer (" in said and "tracking.uri" in said
    assert [path for path in run.path.rglob("*") if path.is_file() and b"hush" in path.read_bytes()] == []
    assert f"(lines of metrics: 100 left); to send it: vitscale sync {run.path}" in said
    assert couriers(run) == []
    with pytest.raises(
        TrackingError, match=r"MLflow at http://127.0.0.1:\d+: no answer .*nothing is changed or lost, try again"
    ):
        sync(run.path)


@pytest.mark.slow
def test_a_server_that_was_frozen_and_killed_gets_everything_when_it_is_back(run, tmp_path, monkeypatch):
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with Server(tmp_path) as server:
        server.wait()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        with tracker(run) as history:
            history.log(1, "train", {"train/loss": 1.0})
            wait_until(lambda: stored(server.uri, run) == [1])
            server.send(signal.SIGSTOP)
            history.log(2, "train", {"train/loss": 0.5})
            time.sleep(courier.SEND_EVERY_S)  # amid a request, or soon to be
            server.kill()
            history.log(3, "train", {"train/loss": 0.25})
            monkeypatch.setattr(courier, "CLOSE_WITHIN_S", 1.0)
            history.close("FINISHED")
        run.write_status("finished")
        server.start()
        server.wait()
        sync(run.path)
        client, run_id = MlflowClient(server.uri), run.mlflow_run_id.read_text()
        points = [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run_id, "train/loss")]
        assert sorted(points) == [
            (line["step"], line["metrics"]["train/loss"], line["time_ms"]) for line in read_log(run.metrics)
        ]
        assert client.get_run(run_id).info.status == "FINISHED"
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
        with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
            sync(run.path)
