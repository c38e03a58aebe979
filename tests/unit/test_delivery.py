"""What MLflow gets of a run directory, in a real database: everything, once, whatever came in between."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from launching import vitscale
from mlflow import MlflowClient
from work import calls

from vitscale import recipe
from vitscale.courier import sync
from vitscale.delivery import Delivery, left
from vitscale.errors import RecipeError, TrackingError
from vitscale.history import History, Log, read_log
from vitscale.recipe import flatten
from vitscale.rundir import RunDir, replace_text
from vitscale.tracking import connect, reason, sqlite_path, sqlite_uri, tracking_uri, without_secrets

pytestmark = pytest.mark.usefixtures("store")
PARENT = "a" * 32
DATA = {"context": "training", "name": "/data/train.json", "digest": "d" * 36, "source_type": "local", "source": "{}"}
START = {"step": 0, "processes": 2, "reason": "first start", "nodes": ["a", "b"], "commit": "c0ffee", "data": [DATA]}


@pytest.fixture
def make_run(config):
    """A run directory as a training leaves it."""

    def make(*overrides):
        cfg = config("name=run", *overrides)
        run = RunDir(cfg)
        run.path.mkdir(parents=True)
        run.recipe.write_text(recipe.dump(cfg))
        return run

    return make


@pytest.fixture
def run(make_run):
    return make_run()


def log(run, *steps, value=lambda step: 1 / step):
    history = History(run.metrics)
    for step in steps:
        history.add(step, "train", {"train/loss": value(step), "train/lr": 0.5})
    history.close()


def deliver(run, status="FINISHED"):
    """As a courier that starts anew; what the store then says of the run."""
    delivery = Delivery(recipe.load(run.recipe), run)
    return MlflowClient(delivery.uri).get_run(delivery.round(status))


def points(uri, run, key="train/loss"):
    history = MlflowClient(uri).get_metric_history(run.mlflow_run_id.read_text(), key)
    return sorted((metric.step, metric.value, metric.timestamp) for metric in history)


def lines(run, key="train/loss"):
    return [(line["step"], line["metrics"][key], line["time_ms"]) for line in read_log(run.metrics)]


def test_every_metric_arrives_in_one_run(run, store):
    log(run, *range(1, 701))  # 1,400 metrics: more than one request may hold
    found = deliver(run)
    assert points(store, run) == lines(run)
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert left(run) == ""


def test_more_metrics_at_one_step_than_a_request_may_hold(run):
    history = History(run.metrics)
    history.add(1, "train", {f"system/host{n}/cpu_percent": float(n) for n in range(1_100)})
    history.close()
    assert len(deliver(run).data.metrics) == 1_100


def test_a_resumed_run_is_the_same_and_replayed_steps_are_not_doubled(run, store):
    log(run, 1, 2, 3)
    first = deliver(run, "KILLED")
    log(run, 2, 3, 4)
    assert deliver(run, "RUNNING").info.status == "RUNNING"
    second = deliver(run, "FAILED")
    assert (first.info.run_id, first.info.status, second.info.status) == (second.info.run_id, "KILLED", "FAILED")
    assert points(store, run) == lines(run)


def test_lines_that_are_sent_twice_are_stored_once(run, store):
    log(run, 1, 2)
    Log(run.attempts).add(START)
    deliver(run)
    run.mlflow_sent.unlink()  # as after a kill between sending and noting it
    found = deliver(run)
    assert points(store, run) == lines(run)
    assert len(found.inputs.dataset_inputs) == 1
    assert len(MlflowClient(store).search_runs([found.info.experiment_id])) == 1


@pytest.mark.parametrize("point", ["tracking.created", "tracking.sent"])
def test_a_kill_leaves_one_run_with_every_point_once(run, store, point):
    log(run, 1, 2)
    code = "import sys; from pathlib import Path; from vitscale.courier import sync; sync(Path(sys.argv[1]))"
    environ = {**os.environ, "VITSCALE_FAULT": point}
    done = subprocess.run([sys.executable, "-c", code, run.path], env=environ, check=False)
    assert done.returncode == -signal.SIGKILL and run.mlflow_run_id.exists() == (point == "tracking.sent")
    found = deliver(run)
    assert points(store, run) == lines(run)
    assert [entry.info.run_id for entry in MlflowClient(store).search_runs([found.info.experiment_id])] == [found.info.run_id]


def test_another_store_gets_everything(run, tmp_path, empty_database, monkeypatch):
    log(run, 1, 2)
    first = deliver(run).info.run_id
    other = tmp_path / "other.db"
    other.write_bytes(Path(empty_database).read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(other))
    assert deliver(run).info.run_id != first
    assert points(sqlite_uri(other), run) == lines(run)


def test_a_run_that_somebody_deleted_is_not_written_to(run, store):
    log(run, 1)
    run_id = deliver(run).info.run_id
    MlflowClient(store).delete_run(run_id)
    with pytest.raises(TrackingError, match=f"is deleted there; `mlflow runs restore --run-id {run_id}` brings it back"):
        sync(run.path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_history_too(run, store, value):
    log(run, 1, 2, value=lambda step: value if step == 1 else 2.0)
    deliver(run)
    assert [step for step, *_ in points(store, run)] == [1, 2]


def test_the_run_says_what_it_is(make_run, store):
    run = make_run(f"tracking={{experiment: mine, tags: {{team: a, b: c}}, parent: {PARENT}}}", "about=from a table")
    log(run, 1)
    Log(run.attempts).add(START)
    Log(run.attempts).add({**START, "step": 7, "reason": "killed"})
    found = deliver(run)
    tags, params, data = found.data.tags, found.data.params, found.inputs.dataset_inputs
    assert MlflowClient(store).get_experiment(found.info.experiment_id).name == "mine"
    assert (tags["team"], tags["mlflow.parentRunId"], tags["mlflow.note.content"]) == ("a", PARENT, "from a table")
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    starts = [json.loads(tags[f"restart.{number}"]) for number in (0, 1)]
    assert [(start["step"], start["reason"], start["nodes"]) for start in starts] == [
        (0, "first start", ["a", "b"]),
        (7, "killed", ["a", "b"]),
    ]
    assert (params["train.global_batch"], params["train.total.epochs"]) == ("8", "2.0")
    assert [(entry.dataset.name, entry.dataset.digest, entry.tags[0].value) for entry in data] == [
        ("/data/train.json", "d" * 36, "training")
    ]


def test_a_changed_recipe_keeps_the_first_parameters(run):
    log(run, 1)
    deliver(run)
    run.recipe.write_text(recipe.dump(recipe.load(run.recipe, ["hardware.micro_batch=4", "eval.batch=7"])))
    params = deliver(run).data.params
    assert (params["hardware.micro_batch"], params["eval.batch"]) == ("4", "64")


def test_files_arrive_under_their_path_and_again_when_they_change(run):
    log(run, 1)
    replace_text(run.artifacts / "recipe.yaml", "a: 1")
    replace_text(run.artifacts / "eval/step_1/per class.csv", "one")
    (run.artifacts / ".half.partial").write_text("being written")
    (run.artifacts / "outside").symlink_to("/etc/hostname")
    found = deliver(run)
    at = Path(found.info.artifact_uri.removeprefix("file://"))
    assert {str(p.relative_to(at)) for p in at.rglob("*") if p.is_file()} == {"recipe.yaml", "eval/step_1/per class.csv"}
    replace_text(run.artifacts / "eval/step_1/per class.csv", "two")
    assert left(run) == "files: 1"
    deliver(run)
    assert (at / "eval/step_1/per class.csv").read_text() == "two"
    assert left(run) == ""


def test_the_mark_which_names_all_files_is_written_once_for_many(run):
    def marks(number):
        for name in range(number):
            replace_text(run.artifacts / f"{number}-{name}.txt", "new")
        delivery = Delivery(recipe.load(run.recipe), run)
        return calls(Delivery._note, lambda: delivery.round("RUNNING"))

    marks(1)  # makes the run
    assert marks(2) == marks(20)


def test_files_that_get_their_names_meanwhile_are_no_error(run):
    run.artifacts.mkdir()
    enough = threading.Event()

    def write():
        while not enough.is_set():
            replace_text(run.artifacts / "table.csv", "one")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {left(run) for _ in range(300)} <= {"", "files: 1"}
    finally:
        enough.set()
        writer.join()


def test_origin_is_named_both_ways(run, store):
    client = connect(store)
    pretraining = client.create_run("0").info.run_id
    model = client.create_logged_model("0", "net", source_run_id=pretraining)
    client.create_registered_model("net")
    client.create_model_version("net", f"models:/{model.model_id}", pretraining, model_id=model.model_id)
    run.init.mkdir()
    origin = {"source": "models:/net@best", "resolved": "models:/net/1", "run_id": pretraining}
    (run.init / "origin.json").write_text(json.dumps(origin))
    log(run, 1)
    found = deliver(run)
    assert [entry.model_id for entry in found.inputs.model_inputs] == [model.model_id]
    assert found.data.tags["vitscale.origin.run_id"] == pretraining
    assert found.data.tags["vitscale.origin.model"] == "models:/net/1"
    assert client.get_run(pretraining).data.tags[f"vitscale.origin_of.{found.info.run_id}"] == "run"


def test_an_origin_of_another_store_is_still_named(run):
    run.init.mkdir()
    origin = {"source": "models:/net@best", "resolved": "models:/net/1", "run_id": "f" * 32}
    (run.init / "origin.json").write_text(json.dumps(origin))
    log(run, 1)
    assert deliver(run).data.tags["vitscale.origin.run_id"] == "f" * 32


def test_passwords_in_a_recipe_stay_there(make_run):
    run = make_run("data.train.manifest=https://me:hush@host/train.json?X-Amz-Signature=hush")
    log(run, 1)
    assert "hush" not in str(deliver(run).data)


@pytest.mark.parametrize(
    ("status", "expected"),
    [("finished", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED"), ("running", "KILLED"), ("starting", "KILLED")],
)
def test_sync_says_how_it_ended(run, store, status, expected):
    log(run, 1)
    run.write_status(status)
    assert MlflowClient(store).get_run(sync(run.path)).info.status == expected


def test_a_run_directory_that_was_moved_is_the_same_run(run, store, tmp_path):
    log(run, 1)
    first = deliver(run).info.run_id
    moved = run.path.rename(tmp_path / "elsewhere")
    with (moved / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "kind": "train", "time_ms": 5, "metrics": {"train/loss": 0.5}}) + "\n")
    assert sync(moved) == first
    assert {metric.step for metric in MlflowClient(store).get_metric_history(first, "train/loss")} == {1, 2}


def test_moved_away_from_the_default_store_it_finds_its_run_there(run, empty_database, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (run.path.parent / "mlflow.db").write_bytes(Path(empty_database).read_bytes())
    log(run, 1)
    first = deliver(run).info.run_id
    (tmp_path / "archive").mkdir()
    moved = run.path.rename(tmp_path / "archive/run")
    assert sync(moved) == first
    assert not (tmp_path / "archive/mlflow.db").exists()


def test_a_folder_that_is_no_run_directory_cannot_be_synced(tmp_path):
    with pytest.raises(TrackingError, match="not a run directory"):
        sync(tmp_path)


def test_a_store_is_made_whole_or_not_at_all_also_by_several(tmp_path):
    """One is killed amid MLflow's tables; then two start at once, in a folder whose name a URL would not hold."""
    uri = sqlite_uri(tmp_path / "100% a?b#c%20d" / "mlflow.db")
    code = "import sys; from vitscale.tracking import connect; print(len(connect(sys.argv[1]).search_experiments()))"
    killed = subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE, text=True)
    made = sqlite_path(uri).with_name(".mlflow.db.new") / "mlflow.db"
    while not (made.exists() and made.stat().st_size > 100_000):
        assert killed.poll() is None
    killed.kill()
    assert killed.communicate()[0] == "" and not sqlite_path(uri).exists()
    other = subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE, text=True)
    assert connect(uri).create_experiment("one") == "1"
    assert other.communicate()[0] in ("1\n", "2\n")
    assert not made.parent.exists()


def test_the_recipes_server_comes_before_the_environments(config, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(config().tracking, "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri(config().tracking, "runs") == "http://environment"
    assert tracking_uri(config("tracking.uri=http://recipe").tracking, "runs") == "http://recipe"


def test_flatten_names_leaves_by_their_path():
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None, "f": False}) == {"a.b": 1, "a.c.d": [1, 2], "f": False}


def test_urls_lose_what_is_secret():
    text = "at http://me:hush@host:1/a?sig=hush, 's3://k:hush@b/c' [sqlite:////a/b.db] https://h/x?y#z"
    assert without_secrets(text) == "at http://host:1/a, 's3://b/c' [sqlite:////a/b.db] https://h/x"
    assert reason(ValueError("no\n  such http://me:hush@host")) == "no such http://host"


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("ResponseError('too many 500 error responses')", "too many 500 error responses"),
        (
            "NewConnectionError(\"HTTPConnection(host='h', port=1): Failed: [Errno 111] refused\")",
            "Failed: [Errno 111] refused",
        ),
        (
            "ReadTimeoutError(\"HTTPConnectionPool(host='h', port=1): Read timed out. (read timeout=5)\")",
            "Read timed out. (read timeout=5)",
        ),
    ],
)
def test_the_reason_of_a_failed_request_is_named(cause, said):
    error = OSError(f"API request to http://h failed with HTTPConnectionPool(host='h'): Max retries (Caused by {cause})")
    assert reason(error).startswith(f"no answer ({said}); start or mend the server")


@pytest.mark.parametrize("password", ["pw", "hu,sh", "hu)sh", "hu'sh", "hu}sh", "p@w"])
def test_no_password_of_a_url_is_shown(password):
    assert without_secrets(f"at http://me:{password}@host:1/a: no") == "at http://host:1/a: no"
    assert without_secrets("GET https://host/a?sig=a,b;c failed") == "GET https://host/a failed"


def test_a_copied_directory_is_a_run_of_its_own(run, store, tmp_path):
    log(run, 1)
    first = deliver(run).info.run_id
    copied = tmp_path / "copied"
    shutil.copytree(run.path, copied)
    assert sync(copied) != first
    log(run, 2)
    assert sync(run.path) == first
    assert [step for step, _, _ in points(store, run)] == [1, 2]


def test_a_line_that_a_power_cut_has_damaged_is_passed_over(run, store):
    log(run, 1)
    with run.metrics.open("ab") as file:
        file.write(b"\0" * 40 + b"\n")
    log(run, 2)
    deliver(run)
    assert [step for step, _, _ in points(store, run)] == [1, 2]


def test_a_run_that_was_killed_before_its_first_metric_is_synced(run, store):
    MlflowClient(store).get_run(sync(run.path))


def test_pictures_that_cannot_be_drawn_hold_nothing_back(make_run, store, capfd):
    run = make_run("tracking.figures_every={steps: 1}", "data.train.manifest=/gone/train.json")
    log(run, 1)
    (checkpoint := run.checkpoints / "step_00000001").mkdir(parents=True)
    (checkpoint / "SHA256SUMS").touch()
    sync(run.path)
    assert [step for step, _, _ in points(store, run)] == [1]
    assert "pictures that are due cannot be drawn: /gone/train.json" in capfd.readouterr().out


def test_a_trained_run_is_finished_though_its_publishing_failed(run, store):
    run.write_status("running", trained=False)
    run.write_status(trained=True)
    run.write_status("failed", error="publish: no answer")
    assert MlflowClient(store).get_run(sync(run.path)).info.status == "FINISHED"


def test_tags_and_parents_that_mlflow_would_refuse_are_refused_by_the_recipe(config):
    with pytest.raises(RecipeError, match=r"tracking\.parent"):
        config("tracking.parent=sweep")
    with pytest.raises(RecipeError, match=r"tracking\.tags"):
        config('tracking.tags={"a b%c\'": d}')


@pytest.mark.slow
def test_a_store_that_was_moved_is_said(make_run, monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before, now = (run := make_run()).path.parent, tmp_path / "moved"
    assert vitscale("sync", run.path).returncode == 0
    before.rename(now)
    done = vitscale("sync", now / "run")
    assert f"mlflow.db: was moved, and MLflow remembers that its files are in {before}; link that to {now}" in done.stderr
    before.symlink_to(now)
    assert vitscale("sync", now / "run").returncode == 0


def test_a_user_without_a_name_as_in_containers_is_a_number(run, monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert deliver(run).data.tags["mlflow.user"] == str(os.getuid())
