"""Checkpoints into a real MLflow registry and back, byte by byte."""

import shutil
from pathlib import Path
from urllib.parse import urlparse

import pytest
from mlflow import MlflowClient

from vitscale.errors import ModelError, TrackingError
from vitscale.publish import publish, pull, resolve
from vitscale.source import locate
from vitscale.sums import verify, write_sums

CONTENT = {"model.json": b"{}", "weights.safetensors": bytes(range(256)) * 40, "recipe.yaml": b"name: x\n", "state.json": b"{}"}


@pytest.fixture
def checkpoint(tmp_path):
    """Make a checkpoint directory; the registry does not look into its files."""

    def make(name="checkpoint", weights=CONTENT["weights.safetensors"]):
        folder = tmp_path / name
        (folder / "engine").mkdir(parents=True)
        for file, content in {**CONTENT, "weights.safetensors": weights}.items():
            (folder / file).write_bytes(content)
        (folder / "engine" / "rank_00000.safetensors").write_bytes(b"optimiser")
        write_sums(folder)
        return folder

    return make


@pytest.fixture
def run_id(store, tmp_path):
    """An MLflow run whose experiment keeps its files under tmp_path/artifacts."""
    client = MlflowClient(store)
    experiment = client.create_experiment("here", artifact_location=(tmp_path / "artifacts").as_uri())
    return client.create_run(experiment).info.run_id


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "SHA256SUMS"}


def stored(store, version):
    """Where the registry keeps a version's files."""
    return Path(urlparse(MlflowClient(store).get_logged_model(version.model_id).artifact_location).path)


@pytest.mark.parametrize("uri", ["models:/net@best", "models:/net/1", "runs:/{run}"])
def test_what_is_published_comes_back_byte_by_byte(checkpoint, store, run_id, tmp_path, uri):
    version = publish(checkpoint(), "net", "best", store, run_id)
    assert (version.name, version.number, version.uri, version.run_id) == ("net", "1", "models:/net/1", run_id)
    source = uri.format(run=run_id)
    assert resolve(source, store) == version
    assert pull(source, store, tmp_path / "pulled") == version
    assert content(tmp_path / "pulled") == CONTENT  # no optimiser state
    assert verify(tmp_path / "pulled") == []


def test_the_files_lie_where_the_runs_experiment_keeps_its_own(checkpoint, store, run_id, tmp_path):
    version = publish(checkpoint(), "net", "best", store, run_id)
    assert stored(store, version).is_relative_to(tmp_path / "artifacts")


def test_without_a_run_the_files_lie_beside_the_database(checkpoint, store, tmp_path, monkeypatch):
    (tmp_path / "somewhere").mkdir()
    monkeypatch.chdir(tmp_path / "somewhere")
    version = publish(checkpoint(), "net", "best", store, run_id=None)
    assert version.run_id is None
    assert stored(store, version).is_relative_to(tmp_path / "store")
    assert list(Path().iterdir()) == []
    assert pull("models:/net@best", store, tmp_path / "pulled") == version


def test_a_run_that_the_store_does_not_know_is_an_error_that_names_it(checkpoint, store):
    with pytest.raises(TrackingError, match=f"MLflow at {store}: .*{'0' * 32}"):
        publish(checkpoint(), "net", "best", store, run_id="0" * 32)


def test_publishing_again_makes_no_second_version(checkpoint, store, run_id):
    first = publish(checkpoint(), "net", "best", store, run_id)
    assert publish(checkpoint("copy"), "net", "other", store, run_id) == first
    assert len(MlflowClient(store).search_model_versions("name='net'")) == 1
    assert resolve("models:/net@other", store) == resolve("models:/net@best", store)


def test_the_alias_moves_to_the_new_version(checkpoint, store, run_id):
    publish(checkpoint(), "net", "best", store, run_id)
    second = publish(checkpoint("better", weights=b"better"), "net", "best", store, run_id)
    assert second.number == "2"
    assert resolve("models:/net@best", store) == second
    assert resolve("models:/net/1", store).number == "1"
    assert resolve(f"runs:/{run_id}", store) == second


def test_models_are_found_from_another_working_directory(checkpoint, store, run_id, tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    publish(checkpoint(), "net", "best", store, run_id)
    monkeypatch.chdir(tmp_path / "there")
    pull("models:/net@best", store, Path("pulled"))
    assert content(tmp_path / "there" / "pulled") == CONTENT
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["pulled"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "rewrite", "remove all"])
def test_a_damaged_copy_is_refused_and_nothing_left(checkpoint, store, run_id, tmp_path, damage):
    folder = stored(store, publish(checkpoint(), "net", "best", store, run_id))
    weights = folder / "weights.safetensors"
    if damage == "flip":
        weights.write_bytes(b"\x01" + weights.read_bytes()[1:])
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "remove":
        weights.unlink()
    elif damage == "remove all":
        shutil.rmtree(folder)
    else:  # the sums are rewritten to match: only the registered digest tells
        weights.write_bytes(b"other")
        write_sums(folder)
    with pytest.raises(ModelError, match=r"models:/net/1: .*damaged, publish it again"):
        pull("models:/net@best", store, tmp_path / "to" / "pulled")
    assert list((tmp_path / "to").iterdir()) == []


def test_publishing_a_damaged_copy_again_mends_it(checkpoint, store, run_id, tmp_path):
    folder = stored(store, publish(checkpoint(), "net", "best", store, run_id))
    (folder / "weights.safetensors").write_bytes(b"")
    second = publish(checkpoint("again"), "net", "best", store, run_id)
    assert second.number == "2"
    assert pull("models:/net@best", store, tmp_path / "pulled") == second
    assert content(tmp_path / "pulled") == CONTENT
    assert publish(checkpoint("more"), "net", "best", store, run_id) == second


def test_a_copy_that_cannot_be_read_is_an_error_of_ours(checkpoint, store, run_id, tmp_path):
    weights = stored(store, publish(checkpoint(), "net", "best", store, run_id)) / "weights.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "gone")
    with pytest.raises((ModelError, TrackingError)):
        pull("models:/net@best", store, tmp_path / "to" / "pulled")
    assert list((tmp_path / "to").iterdir()) == []


def test_an_alias_never_points_at_a_copy_that_was_not_read_back(checkpoint, store, run_id, monkeypatch):
    first = publish(checkpoint(), "net", "best", store, run_id)
    log_model_artifacts = MlflowClient.log_model_artifacts

    def lose_a_file(client, model_id, folder):
        log_model_artifacts(client, model_id, folder)
        shutil.rmtree(Path(urlparse(client.get_logged_model(model_id).artifact_location).path))

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", lose_a_file)
    with pytest.raises(ModelError, match="damaged"):
        publish(checkpoint("next", weights=b"next"), "net", "best", store, run_id)
    assert resolve("models:/net@best", store) == first


def test_pulling_again_costs_nothing(checkpoint, store, run_id, tmp_path):
    publish(checkpoint(), "net", "best", store, run_id)
    version = pull("models:/net@best", store, tmp_path / "pulled")
    shutil.rmtree(stored(store, version))
    assert pull("models:/net@best", store, tmp_path / "pulled") == version


def test_what_else_lies_at_the_target_is_left_alone(checkpoint, store, run_id, tmp_path):
    publish(checkpoint(), "net", "best", store, run_id)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ModelError, match="choose another directory or remove it"):
        pull("models:/net@best", store, tmp_path / "mine")
    assert content(tmp_path / "mine") == {"thesis.txt": b"precious"}


def test_an_empty_directory_is_filled(checkpoint, store, run_id, tmp_path):
    publish(checkpoint(), "net", "best", store, run_id)
    (tmp_path / "empty").mkdir()
    pull("models:/net@best", store, tmp_path / "empty")
    assert content(tmp_path / "empty") == CONTENT


def test_what_is_not_there_is_answered_with_what_is(checkpoint, store, run_id):
    publish(checkpoint(), "net", "best", store, run_id)
    for source in ("models:/net@worst", "models:/nett@best", "models:/net/7", "models:/net/x", "models:/net", "runs:/none"):
        with pytest.raises(TrackingError) as caught:
            resolve(source, store)
        assert str(caught.value).startswith(f"{source}: not found in the MLflow registry at {store}")
        assert "it has net@best; set MLFLOW_TRACKING_URI" in str(caught.value)


def test_a_store_that_is_not_there_is_not_made_by_asking(tmp_path):
    with pytest.raises(TrackingError, match="no MLflow store"):
        resolve("models:/net@best", f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_registry_says_so(store):
    with pytest.raises(TrackingError, match=r"it has none"):
        resolve("models:/net@best", store)


def test_a_server_that_is_down_is_an_error_of_ours(checkpoint, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"MLflow .*http://127.0.0.1:9"):
        publish(checkpoint(), "net", "best", "http://127.0.0.1:9", None)


def test_a_model_of_the_registry_is_cached_by_version(checkpoint, store, run_id, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    publish(checkpoint(), "net", "best", store, run_id)
    first = locate("models:/net@best", store)
    publish(checkpoint("better", weights=b"better"), "net", "best", store, run_id)
    second = locate("models:/net@best", store)
    assert first != second
    assert (content(first)["weights.safetensors"], content(second)["weights.safetensors"]) == (
        CONTENT["weights.safetensors"],
        b"better",
    )
    assert first.is_relative_to(tmp_path / "cache")


def test_published_files_are_those_of_a_checkpoint_with_all_parts_of_weights_and_average(store, checkpoint, tmp_path):
    folder = checkpoint()
    parts = {"ema-00001-of-00002.safetensors", "ema-00002-of-00002.safetensors", "ema.safetensors.index.json"}
    for name in (*parts, "weights-00001-of-00002.safetensors", "engine/rank_00000.safetensors"):
        (folder / name).write_bytes(name.encode())
    pull(publish(folder, "net", "best", store, None).uri, store, tmp_path / "got")
    found = {path.name for path in (tmp_path / "got").iterdir()}
    assert found == {*CONTENT, *parts, "weights-00001-of-00002.safetensors", "SHA256SUMS"}


def test_a_server_that_does_not_answer_is_not_called_a_missing_model(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        resolve("models:/net@best", "http://127.0.0.1:9")
    assert "MLflow at http://127.0.0.1:9" in str(caught.value)
    assert "not found" not in str(caught.value)
