"""Checkpoints into a real MLflow registry: complete or not to be seen, whatever happens on the way."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import FILES, WRITTEN, client_of, content, stored
from launching import clean_environment

from vitscale import recipe
from vitscale.courier import Chores
from vitscale.errors import ModelError, TrackingError, UserError
from vitscale.publish import publish, publish_due
from vitscale.pull import pull
from vitscale.registry import resolve
from vitscale.sums import verify, write_sums


@pytest.fixture
def uploads(monkeypatch):
    """Names of the files that were sent to the store from here on."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    sent, log_artifact = [], LocalArtifactRepository.log_artifact

    def note(self, path, *rest):
        sent.append(Path(path).name)
        return log_artifact(self, path, *rest)

    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", note)
    return sent


@pytest.mark.parametrize("uri", ["models:/net@best", "models:/net/1", "runs:/{run}"])
def test_what_is_published_comes_back_byte_by_byte(checkpoint, store, run_id, tmp_path, uri):
    source = checkpoint()
    version = publish(source, "net", "best", store, run_id)
    assert (version.name, version.number, version.uri, version.run_id) == ("net", "1", "models:/net/1", run_id)
    assert resolve(uri.format(run=run_id), store) == version
    assert pull(uri.format(run=run_id), store, tmp_path / "pulled") == version
    assert content(tmp_path / "pulled") == content(source)
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == FILES | WRITTEN  # no optimiser state
    assert verify(tmp_path / "pulled") == []


def test_the_sums_are_sent_last_and_nothing_twice(checkpoint, store, run_id, uploads):
    publish(checkpoint(), "net", "best", store, run_id)
    assert uploads[-1] == "SHA256SUMS"
    assert sorted(uploads) == sorted(FILES | WRITTEN)


def test_the_files_lie_where_the_runs_experiment_keeps_its_own(checkpoint, store, run_id, tmp_path):
    version = publish(checkpoint(), "net", "best", store, run_id)
    assert stored(store, version).is_relative_to(tmp_path / "artifacts")


def test_without_a_run_the_files_lie_beside_the_database(checkpoint, store, tmp_path, monkeypatch):
    (tmp_path / "somewhere").mkdir()
    source = checkpoint()
    monkeypatch.chdir(tmp_path / "somewhere")
    version = publish(source, "net", "best", store, run_id=None)
    assert version.run_id is None
    assert stored(store, version).is_relative_to(tmp_path / "store")
    assert list(tmp_path.joinpath("somewhere").iterdir()) == []
    assert pull("models:/net@best", store, tmp_path / "pulled") == version


def test_all_parts_of_weights_and_average_are_published(store, checkpoint, tmp_path):
    folder = checkpoint()
    parts = {"ema-00001-of-00002.safetensors", "ema-00002-of-00002.safetensors", "ema.safetensors.index.json"}
    parts |= {"weights-00001-of-00002.safetensors"}
    for name in parts:
        (folder / name).write_bytes(name.encode())
    write_sums(folder)
    pull(publish(folder, "net", "best", store, None).uri, store, tmp_path / "got")
    assert {path.name for path in (tmp_path / "got").iterdir()} == FILES | WRITTEN | parts


def test_publishing_again_makes_no_second_version(checkpoint, store, run_id, uploads):
    first = publish(checkpoint(), "net", "best", store, run_id)
    uploads.clear()
    assert publish(checkpoint("copy"), "net", "other", store, run_id) == first
    assert uploads == []
    assert len(client_of(store).search_model_versions("name='net'")) == 1
    assert resolve("models:/net@other", store) == resolve("models:/net@best", store)


def test_the_alias_moves_to_the_new_version(checkpoint, store, run_id):
    publish(checkpoint(), "net", "best", store, run_id)
    second = publish(checkpoint("better", seed=1), "net", "best", store, run_id)
    assert second.number == "2"
    assert resolve("models:/net@best", store) == second
    assert resolve("models:/net/1", store).number == "1"
    assert resolve(f"runs:/{run_id}", store) == second


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_publishing_again_mends_a_damaged_copy_and_sends_no_other_file(checkpoint, store, run_id, tmp_path, uploads, damage):
    source = checkpoint()
    first = publish(source, "net", "best", store, run_id)
    weights = stored(store, first) / "weights.safetensors"
    raw = weights.read_bytes()
    weights.unlink() if damage == "remove" else weights.write_bytes(raw[:-1] if damage == "cut" else b"\x01" + raw[1:])
    uploads.clear()
    assert publish(source, "net", "best", store, run_id) == first
    assert uploads == ["weights.safetensors"]
    pull("models:/net@best", store, tmp_path / "pulled")
    assert content(tmp_path / "pulled") == content(source)


def test_a_checkpoint_that_is_damaged_here_is_never_registered(checkpoint, store, run_id):
    first = publish(checkpoint(), "net", "best", store, run_id)
    bad = checkpoint("bad", seed=1)
    raw = (bad / "weights.safetensors").read_bytes()
    (bad / "weights.safetensors").write_bytes(raw[:-1] + b"\x01")
    with pytest.raises(ModelError, match=r"bad/weights.safetensors: damaged here or on the way"):
        publish(bad, "net", "best", store, run_id)
    assert resolve("models:/net@best", store) == first
    assert len(client_of(store).search_model_versions("name='net'")) == 1


def test_a_killed_publishing_is_taken_up_and_nobody_sees_a_part(checkpoint, store, run_id, uploads):
    old = publish(checkpoint(), "net", "best", store, run_id)
    source = checkpoint("next", seed=1)
    code = f"from pathlib import Path; from vitscale.publish import publish; publish(Path({str(source)!r}), 'net', 'best', "
    command = [sys.executable, "-c", f"{code}{store!r}, {run_id!r})"]
    environment = {**clean_environment(), "VITSCALE_FAULT": "publish.sent::3"}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert resolve("models:/net@best", store) == old
    assert len(client_of(store).search_model_versions("name='net'")) == 1
    uploads.clear()
    new = publish(source, "net", "best", store, run_id)
    assert len(uploads) == len(FILES | WRITTEN) - 3
    assert (new.number, resolve("models:/net@best", store)) == ("2", new)
    assert len(client_of(store).search_logged_models([client_of(store).get_run(run_id).info.experiment_id])) == 2


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "../a", ".a", "a'b", "a%b", "a ", "x" * 251])
def test_a_name_that_is_not_allowed_is_refused_before_anything_is_sent(checkpoint, store, run_id, uploads, name):
    with pytest.raises(UserError, match="is no name for a registered model"):
        publish(checkpoint(), name, "best", store, run_id)
    assert (uploads, client_of(store).search_registered_models()) == ([], [])


@pytest.mark.parametrize("alias", ["latest", "Latest", "v1", "V20", "a b", "a.b", "x" * 256])
def test_an_alias_that_is_not_allowed_is_refused_before_anything_is_sent(checkpoint, store, run_id, uploads, alias):
    with pytest.raises(UserError, match="is no alias"):
        publish(checkpoint(), "net", alias, store, run_id)
    assert (uploads, client_of(store).search_registered_models()) == ([], [])


@pytest.mark.parametrize("name", ["net", "ViT-L_16.v2", "a b", "(x)+y", "é"])
def test_names_that_we_allow_mlflow_takes(checkpoint, store, run_id, tmp_path, name):
    publish(checkpoint(), name, "ok-1_x", store, run_id)
    pull(f"models:/{name}@ok-1_x", store, tmp_path / "pulled")
    assert verify(tmp_path / "pulled") == []


def test_a_server_that_is_down_is_an_error_of_ours(checkpoint, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"MLflow .*http://127.0.0.1:9"):
        publish(checkpoint(), "net", "best", "http://127.0.0.1:9", None)


def published(run, store, run_id, finished=False):
    return {role: entry["version"] for role, entry in publish_due(run.directory, run.cfg, store, run_id, finished).items()}


def test_best_and_last_of_a_run_are_published_once(run, store, run_id, tmp_path):
    run = run("checkpoint.best=eval/top1")
    run.save(1, eval_top1=0.5)
    assert published(run, store, run_id) == {"best": "models:/net/1"}
    best = run.save(2, eval_top1=0.75)
    assert published(run, store, run_id) == {"best": "models:/net/2"}
    last = run.save(3, eval_top1=0.625)
    assert published(run, store, run_id) == {"best": "models:/net/2"}
    assert published(run, store, run_id, finished=True) == {"best": "models:/net/2", "last": "models:/net/3"}
    for version, source in (("2", best), ("3", last)):
        pull(f"models:/net/{version}", store, tmp_path / version)
        assert content(tmp_path / version) == content(source)
    assert resolve("models:/net@last", store).number == "3"
    assert client_of(store).get_model_version("net", "2").tags["vitscale.eval/top1"] == "0.75"


def test_nothing_new_costs_no_look_at_mlflow(run, store, run_id, tmp_path):
    run = run("checkpoint.best=eval/top1")
    run.save(1, eval_top1=0.5)
    done = published(run, store, run_id, finished=True)
    assert done == {"best": "models:/net/1", "last": "models:/net/1"}  # the same checkpoint is one version
    (tmp_path / "store" / "mlflow.db").unlink()
    assert published(run, "http://127.0.0.1:9", run_id, finished=True) == done
    assert json.loads((run.directory.path / "published.json").read_text())["last"]["checkpoint"] == "step_00000001"


def test_without_a_measure_of_the_best_only_the_last_is_published(run, store, run_id):
    run = run()
    run.save(1, eval_top1=0.5)
    assert published(run, store, run_id) == {}
    assert published(run, store, run_id, finished=True) == {"last": "models:/net/1"}


def test_a_best_checkpoint_that_goes_while_it_is_sent_leaves_nothing_behind(run, store, run_id, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    run, log_artifact = run("checkpoint.best=eval/top1"), LocalArtifactRepository.log_artifact
    overtaken = run.save(1, eval_top1=0.5)

    def while_it_is_dropped(self, path, *rest):
        log_artifact(self, path, *rest)
        if overtaken.exists():
            shutil.rmtree(overtaken)

    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", while_it_is_dropped)
    assert published(run, store, run_id) == {}
    run.save(2, eval_top1=0.75)
    assert published(run, store, run_id) == {"best": "models:/net/1"}
    assert len(client_of(store).search_logged_models([client_of(store).get_run(run_id).info.experiment_id])) == 1


def test_what_an_overtaken_upload_left_is_removed(run, store, run_id):
    run, client = run("checkpoint.best=eval/top1"), client_of(store)
    experiment = client.get_run(run_id).info.experiment_id
    left = client.create_logged_model(experiment, "net", source_run_id=run_id, tags={"vitscale.digest": "0"})
    mine = client.create_logged_model(experiment, "mine", source_run_id=run_id)
    run.save(1, eval_top1=0.5)
    published(run, store, run_id)
    assert {model.name for model in client.search_logged_models([experiment])} == {"net", "mine"}
    assert left.model_id not in {model.model_id for model in client.search_logged_models([experiment])}
    assert mine.model_id in {model.model_id for model in client.search_logged_models([experiment])}


@pytest.mark.parametrize(
    "metric, scores, champions",
    [("eval/top1", (0.5, 0.25, 0.75), ("1", "1", "3")), ("eval/loss", (0.5, 0.75, 0.25), ("1", "1", "3"))],
)
def test_the_champion_changes_only_when_it_is_beaten(run, store, run_id, metric, scores, champions):
    run = run(f"publish.champion={metric}")
    for step, (score, champion) in enumerate(zip(scores, champions, strict=True), start=1):
        run.save(step, **{metric.replace("/", "_"): score})
        published(run, store, run_id, finished=True)
        assert resolve("models:/net@champion", store).number == champion
        assert resolve("models:/net@last", store).number == str(step)


def test_a_champion_that_was_not_measured_stays(run, store, run_id, checkpoint):
    publish(checkpoint(), "net", "champion", store, run_id)
    run = run("publish.champion=eval/top1")
    run.save(1, eval_top1=0.5)
    published(run, store, run_id, finished=True)
    assert resolve("models:/net@champion", store).number == "1"


def test_the_newest_versions_and_all_with_an_alias_are_kept(run, store, run_id, checkpoint, tmp_path):
    first = publish(checkpoint(), "net", "paper", store, run_id)
    second = publish(checkpoint("other", seed=99), "net", None, store, run_id)
    client = client_of(store)
    client.create_model_version("net", "somewhere/else")  # not by vitscale
    files = stored(store, second)
    run = run("publish.keep=2")
    for step in (1, 2, 3):
        run.save(step)
        published(run, store, run_id, finished=True)
    assert {v.version for v in client.search_model_versions("name='net'")} == {1, 3, 5, 6}
    assert not files.exists()
    pull("models:/net@paper", store, tmp_path / "paper")
    assert first.number == "1" and verify(tmp_path / "paper") == []


def test_a_version_that_was_copied_under_another_name_is_kept(run, store, run_id, tmp_path):
    run, client = run("publish.keep=1"), client_of(store)
    run.save(1)
    published(run, store, run_id, finished=True)
    client.copy_model_version("models:/net/1", "production")
    run.save(2)
    published(run, store, run_id, finished=True)
    assert {v.version for v in client.search_model_versions("name='net'")} == {1, 2}
    assert pull("models:/production/1", store, tmp_path / "copy").name == "production"
    assert verify(tmp_path / "copy") == []


def test_no_password_is_published(run, store, run_id, tmp_path):
    secret = run("tracking.uri=http://admin:hush@host", "data.train.manifest=s3://me:hush@bucket/train.json")
    publish(secret.save(1, eval_top1=0.5), "net", "best", store, run_id)
    pull("models:/net@best", store, tmp_path / "pulled")
    assert b"hush" in (secret.directory.checkpoints / "step_00000001" / "recipe.yaml").read_bytes()
    assert not [path.name for path in (tmp_path / "pulled").iterdir() if b"hush" in path.read_bytes()]


def test_the_best_is_published_beside_a_training_though_no_picture_can_be_drawn(run, store, run_id):
    run = run("checkpoint.best=eval/top1", "tracking.figures_every={steps: 1}", "data.train.manifest=/gone/train.json")
    run.save(1, eval_top1=0.5)
    run.directory.recipe.write_text(recipe.dump(run.cfg))
    run.directory.mlflow_run_id.write_text(run_id)
    chores, deadline = Chores(run.cfg, run.directory, store), time.monotonic() + 60
    while not (run.directory.path / "published.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    chores.finish()
    assert published(run, store, run_id) == {"best": "models:/net/1"}


def test_a_run_of_another_store_is_left_away(checkpoint, store, capsys):
    assert publish(checkpoint(), "net", "best", store, "a" * 32).run_id is None
    assert "does not have the run of" in capsys.readouterr().out
