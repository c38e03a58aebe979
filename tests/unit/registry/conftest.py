"""Small real checkpoints in a run directory, and an MLflow run to publish them from."""

from typing import NamedTuple

import pytest
from checkpoints import client_of, write_checkpoint

from vitscale.rundir import RunDir


@pytest.fixture
def checkpoint(tmp_path, config):
    """Make a checkpoint directory; other seeds have other weights."""

    def make(name="checkpoint", seed=0, step=10, **scores):
        cfg, named = config(), {key.replace("_", "/"): value for key, value in scores.items()}
        return write_checkpoint(tmp_path / name, cfg, step, seed, named)

    return make


@pytest.fixture
def run_id(store, tmp_path):
    """An MLflow run whose experiment keeps its files under tmp_path/artifacts."""
    client = client_of(store)
    experiment = client.create_experiment("here", artifact_location=(tmp_path / "artifacts").as_uri())
    return client.create_run(experiment).info.run_id


class Run(NamedTuple):
    """A run directory with its recipe."""

    directory: RunDir
    cfg: object

    def save(self, step, **scores):
        named = {key.replace("_", "/"): value for key, value in scores.items()}
        return write_checkpoint(self.directory.checkpoints / f"step_{step:08d}", self.cfg, step, step, named)


@pytest.fixture
def run(config, shards):
    """Make a run directory that publishes as these overrides say."""

    def make(*overrides):
        cfg = config(f"data.val.manifest={shards['val'].location}", "publish={name: net, alias: last}", *overrides)
        return Run(RunDir(cfg), cfg)

    return make
