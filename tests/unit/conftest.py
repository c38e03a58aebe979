"""What many unit tests need: the command line, a small recipe, a small data set, an empty MLflow database."""

import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

RECIPE = """\
name: tiny
model: {patch_size: 4, width: 8, depth: 2, num_heads: 2, mlp_dim: 16, image_size: 8, num_classes: 3}
data:
  train: {manifest: nowhere/train.json}
train: {global_batch: 8, total: {epochs: 2}}
optim: {lr: 1e-3}
"""


@pytest.fixture
def vitscale_here(tmp_path, monkeypatch, capsys):
    """Run a command in an empty directory, in this process, which has imported torch and MLflow: seconds saved for each."""
    from torch import distributed

    from vitscale import cli

    def run(*words):
        if distributed.is_initialized():  # a command that failed leaves its group: its process was to end
            distributed.destroy_process_group()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["vitscale", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return subprocess.CompletedProcess(words, done.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def write_recipe(tmp_path):
    """Write text as a recipe file and return its path."""

    def write(text=RECIPE, name="recipe.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def config(write_recipe, tmp_path):
    """The small recipe with overrides, its runs under tmp_path."""
    from vitscale import recipe

    def build(*overrides):
        return recipe.load(write_recipe(), [f"runs={tmp_path / 'runs'}", *overrides])

    return build


@pytest.fixture
def shards(tmp_path):
    """Manifests of 20 training and 4 held-out images of 3 classes."""
    from data_pipeline.build import build
    from data_pipeline.collection import Collection, Item

    def png(number):
        file = io.BytesIO()
        Image.fromarray(np.full((12, 12, 3), number * 10, np.uint8)).save(file, "PNG")
        return file.getvalue()

    images = [Item(f"image{n}", "png", n % 3, png(n)) for n in range(24)]
    return build(Collection(images, ["cat", "dog", "owl"]), tmp_path / "shards", 4 / 24, [12, 8], seed=0)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """Making MLflow's tables takes seconds, so it is done once; tests take copies."""
    from vitscale.tracking import connect

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_database, tmp_path, monkeypatch):
    """The URI of an MLflow database of this test's own, also in MLFLOW_TRACKING_URI."""
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copyfile(empty_database, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return f"sqlite:///{path}"
