"""Models out of the registry: whole, verified and private, or not at all."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import client_of, content, stored
from launching import clean_environment

from vitscale.errors import ModelError, TrackingError
from vitscale.publish import publish
from vitscale.pull import pull
from vitscale.registry import DIGEST, resolve
from vitscale.source import locate
from vitscale.sums import sha256, verify, write_sums


@pytest.fixture
def version(checkpoint, store, run_id):
    """A published model."""
    return publish(checkpoint(), "net", "best", store, run_id)


@pytest.fixture
def fetched(monkeypatch):
    """Names of the files that come out of the store from here on."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    names, download = [], LocalArtifactRepository._download_file

    def note(self, remote_file_path, local_path):
        names.append(remote_file_path)
        return download(self, remote_file_path, local_path)

    monkeypatch.setattr(LocalArtifactRepository, "_download_file", note)
    return names


def test_a_logged_model_is_pulled_by_its_id(version, store, tmp_path):
    found = pull(f"models:/{version.model_id}", store, tmp_path / "pulled")
    assert (found.uri, found.digest) == (f"models:/{version.model_id}", version.digest)
    assert verify(tmp_path / "pulled") == []


def test_nobody_else_may_look_into_it(version, store, tmp_path):
    pull(version.uri, store, tmp_path / "pulled")
    assert stat.S_IMODE((tmp_path / "pulled").stat().st_mode) == 0o700
    assert [path.name for path in tmp_path.glob("*pulled*")] == ["pulled"]


@pytest.mark.usefixtures("version")
def test_models_are_found_from_another_working_directory(store, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    pull("models:/net@best", store, tmp_path / "there" / "pulled")
    assert verify(tmp_path / "there" / "pulled") == []
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["pulled"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "rewrite", "remove sums", "remove all"])
def test_a_damaged_copy_is_refused_and_nothing_left(version, store, tmp_path, damage):
    folder = stored(store, version)
    weights = folder / "weights.safetensors"
    raw = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif damage == "cut":
        weights.write_bytes(raw[:-1])
    elif damage == "remove":
        weights.unlink()
    elif damage == "remove sums":
        (folder / "SHA256SUMS").unlink()
    elif damage == "remove all":
        shutil.rmtree(folder)
    else:  # the sums are rewritten to match: only the registered digest tells
        weights.write_bytes(b"other")
        write_sums(folder)
    with pytest.raises(ModelError, match=r"models:/net/1: .*publish it again"):
        pull("models:/net@best", store, tmp_path / "to" / "pulled")
    assert list((tmp_path / "to").iterdir()) == []


def test_an_upload_that_was_never_completed_is_not_pulled(store, run_id, tmp_path):
    client = client_of(store)
    half = client.create_logged_model(client.get_run(run_id).info.experiment_id, "net", tags={DIGEST: "0" * 64})
    with pytest.raises(TrackingError, match=r"its upload was never completed; publish it again"):
        pull(f"models:/{half.model_id}", store, tmp_path / "to" / "pulled")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", ".hidden", "..", "a/b", "", "a\\b", "-rf"])
def test_a_hostile_list_of_files_writes_nothing(version, store, tmp_path, name):
    """The registry's own digest matches: whoever wrote this could write there too."""
    folder = stored(store, version)
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    client_of(store).set_model_version_tag("net", "1", DIGEST, sha256(folder / "SHA256SUMS"))
    (folder.parent / "evil").write_text("evil")
    with pytest.raises(ModelError, match="holds a file called"):
        pull("models:/net@best", store, tmp_path / "to" / "pulled")
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("target", ["outside", "gone"])
def test_a_link_in_the_store_is_not_followed_out_of_it(version, store, tmp_path, target):
    weights = stored(store, version) / "weights.safetensors"
    weights.rename(tmp_path / "outside")
    weights.symlink_to(tmp_path / target)
    with pytest.raises((ModelError, TrackingError)):
        pull("models:/net@best", store, tmp_path / "to" / "pulled")
    assert not (tmp_path / "to" / "pulled").exists()


@pytest.mark.usefixtures("version")
def test_a_killed_pull_is_taken_up(store, tmp_path, fetched):
    to = tmp_path / "to" / "pulled"
    code = f"from pathlib import Path; from vitscale.pull import pull; pull('models:/net@best', {store!r}, Path({str(to)!r}))"
    environment = {**clean_environment(), "VITSCALE_FAULT": "pull.file::3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not to.exists()
    pull("models:/net@best", store, to)
    assert len(fetched) == 1 + 9 - 1 - 3  # the sums; of the other eight files three were there
    assert verify(to) == []
    assert [path.name for path in to.parent.iterdir()] == ["pulled"]


@pytest.mark.usefixtures("version")
def test_what_broke_on_the_way_is_fetched_once_more(store, tmp_path, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    broken, download = [], LocalArtifactRepository._download_file

    def cut_first(self, remote_file_path, local_path):
        download(self, remote_file_path, local_path)
        if remote_file_path == "weights.safetensors" and not broken:
            broken.append(os.truncate(local_path, 100))

    monkeypatch.setattr(LocalArtifactRepository, "_download_file", cut_first)
    pull("models:/net@best", store, tmp_path / "pulled")
    assert broken and verify(tmp_path / "pulled") == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from vitscale.errors import UserError
from vitscale.pull import pull
from vitscale.tracking import connect
connect(sys.argv[1]).search_experiments()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    pull("models:/net@best", sys.argv[1], Path(sys.argv[2]))
except UserError as error:
    sys.exit(f"{error}")
"""


@pytest.mark.usefixtures("version")
def test_a_disk_that_is_full_is_said_and_nothing_left(store, tmp_path):
    command = [sys.executable, "-c", LIMITED, store, str(tmp_path / "to" / "pulled")]
    done = subprocess.run(command, env=clean_environment(), stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert f"{tmp_path / 'to'}: no room for weights.safetensors" in done.stderr and os.strerror(errno.EFBIG) in done.stderr
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.usefixtures("version")
def test_what_does_not_fit_is_not_begun(store, tmp_path, fetched):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", small], check=False, capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        with pytest.raises(ModelError, match=rf"{small}: .* MiB do not fit into .* MiB; make room"):
            pull("models:/net@best", store, small / "pulled")
        assert fetched == ["SHA256SUMS"] and list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("version")
def test_two_pulls_at_once_end_with_one_model(store, tmp_path):
    to = tmp_path / "pulled"
    code = f"from pathlib import Path; from vitscale.pull import pull; pull('models:/net@best', {store!r}, Path({str(to)!r}))"
    running = [subprocess.Popen([sys.executable, "-c", code], env=clean_environment()) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert verify(to) == []
    assert [path.name for path in tmp_path.glob("*pulled*")] == ["pulled"]


def test_pulling_again_costs_nothing(version, store, tmp_path):
    pull("models:/net@best", store, tmp_path / "pulled")
    shutil.rmtree(stored(store, version))
    assert pull("models:/net@best", store, tmp_path / "pulled") == version


@pytest.mark.usefixtures("version")
def test_what_else_lies_at_the_target_is_left_alone(store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ModelError, match="choose another directory or remove it"):
        pull("models:/net@best", store, tmp_path / "mine")
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["precious"]


@pytest.mark.usefixtures("version")
def test_an_empty_directory_is_filled(store, tmp_path):
    (tmp_path / "empty").mkdir()
    pull("models:/net@best", store, tmp_path / "empty")
    assert verify(tmp_path / "empty") == []


def test_a_model_is_cached_once_whatever_it_is_called(checkpoint, store, run_id, tmp_path, monkeypatch, fetched):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources = [checkpoint(), checkpoint("better", seed=1)]
    first = publish(sources[0], "net", "best", store, run_id)
    fetched.clear()
    folder = locate("models:/net@best", store)
    assert content(folder) == content(sources[0]) and folder.is_relative_to(tmp_path / "cache") and len(fetched) == 9
    assert {locate(source, store) for source in ("models:/net/1", f"runs:/{run_id}", f"models:/{first.model_id}")} == {folder}
    assert len(fetched) == 9
    publish(sources[1], "net", "best", store, run_id)
    second = locate("models:/net@best", store)
    assert (content(first_again := locate("models:/net/1", store)), content(second)) == tuple(map(content, sources))
    assert first_again == folder != second


@pytest.mark.usefixtures("version")
def test_what_is_not_there_is_answered_with_what_is(store):
    for source in ("models:/net@worst", "models:/nett@best", "models:/net/7", "models:/net/x", "models:/net", "runs:/none"):
        with pytest.raises(TrackingError) as caught:
            resolve(source, store)
        assert str(caught.value).startswith(f"{source}: not found in the MLflow registry at {store}")
        assert "it has net@best; set MLFLOW_TRACKING_URI" in str(caught.value)


def test_a_model_of_other_programs_is_not_taken(store, tmp_path):
    client = client_of(store)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", (tmp_path / "somewhere").as_uri())
    with pytest.raises(TrackingError, match=r"version 1 of theirs was not published by vitscale"):
        resolve("models:/theirs/1", store)


def test_a_store_that_is_not_there_is_not_made_by_asking(tmp_path):
    with pytest.raises(TrackingError, match="no MLflow store"):
        resolve("models:/net@best", f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_registry_says_so(store):
    with pytest.raises(TrackingError, match=r"it has none"):
        resolve("models:/net@best", store)


def test_a_server_that_does_not_answer_is_not_called_a_missing_model(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        resolve("models:/net@best", "http://127.0.0.1:9")
    assert "MLflow at http://127.0.0.1:9" in str(caught.value)
    assert "not found" not in str(caught.value)


def test_a_kept_copy_that_was_damaged_is_fetched_again(checkpoint, store, run_id, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = checkpoint()
    publish(source, "net", "best", store, run_id)
    folder = locate("models:/net@best", store)
    (folder / "weights.safetensors").write_bytes(b"damaged")
    assert content(locate("models:/net@best", store)) == content(source)


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("."), lambda path: path.symlink_to("gone")])
def test_a_place_that_is_no_directory_is_refused(checkpoint, store, run_id, tmp_path, make):
    publish(checkpoint(), "net", "best", store, run_id)
    make(tmp_path / "there")
    with pytest.raises(ModelError, match="there: is no directory; choose another name, or remove it"):
        pull("models:/net@best", store, tmp_path / "there")
