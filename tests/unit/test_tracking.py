"""A run's history: whole in metrics.jsonl whatever happens, and once in a real MLflow database."""

import json
import resource
import socket
import time

import pytest
from mlflow import MlflowClient

from vitscale import recipe, tracking
from vitscale.errors import TrackingError
from vitscale.rundir import RunDir
from vitscale.tracking import Tracker, flatten, last_metrics, read_log, sync, tracking_uri


@pytest.fixture
def run(config):
    """A run directory as a training finds it when it starts to log."""
    cfg = config("name=run")
    directory = RunDir(cfg)
    directory.path.mkdir(parents=True)
    directory.recipe.write_text(recipe.dump(cfg))
    return directory


def tracker(run, parent=None):
    return Tracker(recipe.load(run.recipe), run, active=True, parent_run_id=parent)


def log_and_close(run, steps, status="FINISHED", parent=None):
    with tracker(run, parent) as history:
        for step in steps:
            history.log(step, "train", {"train/loss": 1 / step, "train/lr": 0.5}, samples=f"hash{step}")
        history.close(status)


def points(uri, run, key="train/loss"):
    history = MlflowClient(uri).get_metric_history(run.mlflow_run_id.read_text(), key)
    return sorted((metric.step, metric.value) for metric in history)


def test_every_metric_arrives_in_one_run(run, store, capsys):
    log_and_close(run, range(1, 701))  # 1,400 metrics: more than one request may hold
    assert points(store, run) == [(step, 1 / step) for step in range(1, 701)]
    found = MlflowClient(store).get_run(run.mlflow_run_id.read_text())
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert capsys.readouterr().out == ""


def test_a_run_has_its_recipe_and_its_parent(run, store):
    parent = MlflowClient(store).create_run("0").info.run_id
    log_and_close(run, [1], parent=parent)
    found = MlflowClient(store).get_run(run.mlflow_run_id.read_text())
    assert found.data.tags["mlflow.parentRunId"] == parent
    assert found.data.params["train.global_batch"] == "8"
    assert found.data.params["train.total.epochs"] == "2.0"
    assert [file.path for file in MlflowClient(store).list_artifacts(found.info.run_id)] == ["recipe.yaml"]


def test_a_resumed_run_is_the_same_and_replayed_steps_are_not_doubled(run, store):
    log_and_close(run, [1, 2, 3], "KILLED")
    first = run.mlflow_run_id.read_text()
    assert MlflowClient(store).get_run(first).info.status == "KILLED"
    log_and_close(run, [2, 3, 4])
    assert run.mlflow_run_id.read_text() == first
    assert points(store, run) == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert [line["step"] for line in read_log(run.metrics)] == [1, 2, 3, 4]


def test_lines_that_are_sent_twice_are_stored_once(run, store):
    log_and_close(run, [1, 2])
    (run.path / ".mlflow_sent").unlink()  # as after a kill between sending and noting it
    sync(run.path)
    assert points(store, run) == [(1, 1.0), (2, 1 / 2)]


def test_a_full_disk_costs_a_warning_and_what_is_missing_follows(run, store, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tracker(run) as history:
        history.log(1, "train", {"train/loss": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (run.metrics.stat().st_size + 10, limits[1]))
        try:
            history.log(2, "train", {"train/loss": 0.5})
            torn = run.metrics.read_bytes()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        history.log(3, "train", {"train/loss": 0.25})
        history.close("FINISHED")
    assert torn.endswith(b'\n{"step": 2')
    assert f"warning: {run.metrics}: File too large" in capsys.readouterr().out
    assert [line["step"] for line in read_log(run.metrics)] == [1, 2, 3]
    assert points(store, run) == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_a_training_that_fails_is_marked_failed(run, store):
    with pytest.raises(ZeroDivisionError), tracker(run) as history:
        history.log(1, "train", {"train/loss": 1.0})
        raise ZeroDivisionError
    assert MlflowClient(store).get_run(run.mlflow_run_id.read_text()).info.status == "FAILED"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_history_too(run, store, value):
    with tracker(run) as history:
        history.log(1, "train", {"train/loss": value})
        history.log(2, "train", {"train/loss": 2.0})
        history.close("FINISHED")
    assert [step for step, _ in points(store, run)] == [1, 2]


def test_metrics_arrive_while_the_training_goes_on(run, store, monkeypatch):
    monkeypatch.setattr(tracking, "SEND_EVERY_S", 0.1)
    with tracker(run) as history:
        history.log(1, "train", {"train/loss": 1.0})
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (run.mlflow_run_id.exists() and points(store, run)):
            time.sleep(0.05)
        assert points(store, run) == [(1, 1.0)]


def test_other_ranks_keep_no_history(run, store):
    with Tracker(recipe.load(run.recipe), run, active=False, parent_run_id=None) as history:
        history.log(1, "train", {"train/loss": 1.0})
        history.close("FINISHED")
    assert not run.metrics.exists()
    assert MlflowClient(store).search_runs(["0"]) == []


def test_step_and_kind_name_a_line(run, store):
    with tracker(run) as history:
        history.log(1, "train", {"train/loss": 1.0})
        history.log(1, "eval", {"eval/top1": 0.5})
        history.log(1, "eval", {"eval/top1": 0.6})
        history.close("FINISHED")
    assert [(line["step"], line["kind"]) for line in read_log(run.metrics)] == [(1, "train"), (1, "eval")]
    assert points(store, run, "eval/top1") == [(1, 0.5)]


def test_a_torn_last_line_is_cut_off_and_the_step_logged_again(run, store):
    log_and_close(run, [1, 2])
    whole = run.metrics.read_bytes()
    run.metrics.write_bytes(whole + b'{"step": 3, "kind": "train", "time_ms": 17')
    assert [line["step"] for line in read_log(run.metrics)] == [1, 2]
    assert run.metrics.read_bytes() == whole
    run.metrics.write_bytes(whole + b'{"step": 3, "kind": "train", "time_ms": 17')
    log_and_close(run, [3, 4])
    assert [line["step"] for line in read_log(run.metrics)] == [1, 2, 3, 4]
    assert points(store, run) == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]


def test_the_newest_value_of_every_metric_counts(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert last_metrics(log) == {}
    lines = [
        {"step": 2, "metrics": {"a": 2, "b": 2}},
        {"step": 3, "metrics": {"a": 3}},
        {"step": 1, "metrics": {"a": 1, "c": 1}},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_metrics(log) == {"a": 3, "b": 2, "c": 1}


@pytest.fixture
def closed_server(monkeypatch):
    """The address of a server that refuses every connection, and little patience with it."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return uri


@pytest.fixture
def frozen_server(monkeypatch):
    """The address of a server that takes every connection and never answers; each call waits for a second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        yield uri


@pytest.mark.parametrize("server", ["closed_server", "frozen_server"])
def test_a_server_that_does_not_answer_costs_the_training_nothing(run, server, capsys, request):
    uri = request.getfixturevalue(server)
    with tracker(run) as history:
        time.sleep(0.5)  # the first attempt to connect is under way or has failed
        began = time.monotonic()
        for step in range(1, 101):
            history.log(step, "train", {"train/loss": 1.0})
        assert time.monotonic() - began < 0.5
        history.close("FINISHED")
    assert len(read_log(run.metrics)) == 100
    said = capsys.readouterr().out
    assert said.count(f"warning: MLflow at {uri}: ") == 1
    assert f"vitscale sync {run.path}" in said


def test_what_a_server_missed_is_delivered_later(run, closed_server, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_server)
    log_and_close(run, [1, 2, 3])
    with pytest.raises(TrackingError, match=rf"MLflow at {closed_server}: .*; nothing is lost, try again"):
        sync(run.path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run.write_status("finished")
    assert sync(run.path) == run.mlflow_run_id.read_text()
    assert points(store, run) == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert MlflowClient(store).get_run(run.mlflow_run_id.read_text()).info.status == "FINISHED"


def test_a_run_directory_that_was_moved_can_be_synced(run, store, tmp_path):
    log_and_close(run, [1])
    with run.metrics.open("a") as log:
        log.write(json.dumps({"step": 2, "kind": "train", "time_ms": 5, "metrics": {"train/loss": 0.5}}) + "\n")
    moved = run.path.rename(tmp_path / "elsewhere")
    sync(moved)
    run_id = (moved / "mlflow_run_id").read_text()
    assert {metric.step for metric in MlflowClient(store).get_metric_history(run_id, "train/loss")} == {1, 2}


def test_a_folder_that_is_no_run_directory_cannot_be_synced(tmp_path):
    with pytest.raises(TrackingError, match="not a run directory"):
        sync(tmp_path)


def test_the_recipes_server_comes_before_the_environments(config, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(config().tracking, "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri(config().tracking, "runs") == "http://environment"
    assert tracking_uri(config("tracking.uri=http://recipe").tracking, "runs") == "http://recipe"


def test_flatten_names_leaves_by_their_path():
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None, "f": False}) == [("a.b", 1), ("a.c.d", [1, 2]), ("f", False)]
