"""The registry of a real MLflow server with users and passwords, used from machines that know its address only."""

import base64
import io
import json
import os
import shutil
import sys
import urllib.request
from pathlib import Path

import pytest
from checkpoints import client_of, content
from launching import clean_environment, vitscale
from mlflow_server import LOGIN, Server, running
from PIL import Image

from vitscale import load_pretrained
from vitscale.errors import TrackingError
from vitscale.publish import publish
from vitscale.registry import discard, resolve
from vitscale.sums import verify


@pytest.fixture(scope="module")
def server(empty_database, tmp_path_factory):
    """Its address; its files lie below the folder `files`."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    with Server(folder) as server:
        server.wait()
        yield server.uri, folder / "files"


@pytest.fixture
def logged_in(monkeypatch, server):
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    return server[0]


def elsewhere(folder: Path, uri: str) -> dict[str, str]:
    """The environment of a machine with a home of its own."""
    folder.mkdir()
    return {"HOME": str(folder), "XDG_CACHE_HOME": "", "MLFLOW_TRACKING_URI": uri, **LOGIN}


@pytest.mark.slow
def test_published_here_pulled_there(checkpoint, logged_in, server, tmp_path):
    source = checkpoint()
    version = publish(source, "net", "best", logged_in, None)
    assert {path.name for path in server[1].rglob("*") if path.is_file()} >= content(source).keys()
    there = elsewhere(tmp_path / "there", logged_in)
    done = vitscale("pull", "models:/net@best", cwd=tmp_path / "there", **there)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder == tmp_path / "there/.cache/vitscale/models" / version.model_id
    assert verify(folder) == [] and content(folder) == content(source)
    with pytest.raises(TrackingError, match=r"models:/net@worst: not found .* it has net@best"):
        resolve("models:/net@worst", logged_in)
    discard(client_of(logged_in), version.model_id)
    assert [path for path in server[1].rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("password", ["wrong", ""])
def test_wrong_credentials_are_said_at_once(checkpoint, logged_in, monkeypatch, password):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    for action in (
        lambda: resolve("models:/net@best", logged_in),
        lambda: publish(checkpoint(), "net", "best", logged_in, None),
    ):
        with pytest.raises(
            TrackingError,
            match=f"MLflow at {logged_in}: the server wants a user name .*; set MLFLOW_TRACKING_USERNAME and",
        ):
            action()


@pytest.mark.slow
def test_mlflow_serves_it(checkpoint, logged_in, tmp_path):
    source = checkpoint(seed=2)
    publish(source, "served", "best", logged_in, None)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow looks for uvicorn there
    there = {**clean_environment(), "PATH": path, **elsewhere(tmp_path / "there", logged_in)}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/served@best", "--env-manager", "local"]
    picture = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(picture, "PNG")
    frame = {"columns": ["image"], "data": [[base64.b64encode(picture.getvalue()).decode()]]}
    with running(command, "ping", tmp_path / "log", tmp_path / "there", there) as url:
        body = json.dumps({"dataframe_split": frame, "params": {"top": 2}}).encode()
        request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            (answer,) = json.load(response)["predictions"]
    (expected,) = load_pretrained(source).predict([Image.open(picture)], top=2)
    assert answer["classes"] == [guess.name for guess in expected]
    assert answer["probabilities"] == pytest.approx([guess.probability for guess in expected], rel=1e-5)
