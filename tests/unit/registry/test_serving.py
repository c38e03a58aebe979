"""A published model used through MLflow alone."""

import base64
import io
import warnings

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from serving import http_server

from vitscale import load_pretrained
from vitscale.errors import ModelError
from vitscale.publish import publish
from vitscale.serving import open_image
from vitscale.sums import verify

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of its own type hints
    import mlflow.pyfunc


@pytest.fixture
def picture(tmp_path):
    """An image file."""
    path = tmp_path / "pictures" / "picture.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)).save(path)
    return path


def test_mlflow_loads_it_and_it_says_what_the_model_says(checkpoint, store, run_id, picture):
    source = checkpoint()
    publish(source, "net", "best", store, run_id)
    loaded = mlflow.pyfunc.load_model("models:/net@best")
    raw = picture.read_bytes()
    encoded = base64.b64encode(raw).decode()
    with http_server(picture.parent) as url:
        inputs = [raw, encoded, f"data:image/png;base64,{encoded}", str(picture), picture.as_uri(), f"{url}/picture.png"]
        answer = loaded.predict(pd.DataFrame({"image": inputs}), params={"top": 2})
    (expected,) = load_pretrained(source).predict([Image.open(picture)], top=2)
    assert answer["classes"].tolist() == [[guess.name for guess in expected]] * len(inputs)
    found = np.array(answer["probabilities"].tolist())
    np.testing.assert_allclose(found, [[guess.probability for guess in expected]] * len(inputs), rtol=1e-5)
    assert 0 < found[0, 1] < found[0, 0] < 1


def test_signature_and_example_fit_what_it_does(checkpoint, store, run_id):
    publish(checkpoint(), "net", "best", store, run_id)
    loaded = mlflow.pyfunc.load_model("models:/net@best")
    signature = loaded.metadata.signature
    assert (signature.inputs.input_names(), signature.outputs.input_names()) == (["image"], ["classes", "probabilities"])
    assert [(param.name, param.default) for param in signature.params] == [("top", 5)]
    answer = loaded.predict(loaded.input_example)
    assert list(answer) == ["classes", "probabilities"]
    assert sorted(answer["classes"][0]) == ["cat", "dog", "owl"]
    assert sum(answer["probabilities"][0]) == pytest.approx(1)


def test_what_mlflow_downloads_is_still_a_model_to_us(checkpoint, store, run_id, tmp_path):
    publish(checkpoint(), "net", "best", store, run_id)
    folder = mlflow.artifacts.download_artifacts("models:/net@best", dst_path=str(tmp_path / "theirs"))
    assert (tmp_path / "theirs" / "registered_model_meta").exists()
    assert verify(tmp_path / "theirs") == []
    assert load_pretrained(folder).classes == ["cat", "dog", "owl"]


def test_a_damaged_download_is_not_served(checkpoint, store, run_id, tmp_path):
    publish(checkpoint(), "net", "best", store, run_id)
    folder = mlflow.artifacts.download_artifacts("models:/net@best", dst_path=str(tmp_path / "theirs"))
    with (tmp_path / "theirs" / "weights.safetensors").open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(ModelError, match=r"weights.safetensors differs"):
        mlflow.pyfunc.load_model(folder)


@pytest.mark.parametrize("value, said", [("no/such.png", "no such file, and not base64"), ("aGFsbG8=", "not a readable image")])
def test_what_is_no_image_is_said(value, said):
    with pytest.raises(ModelError, match=said):
        open_image(value)
