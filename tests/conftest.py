"""A small real data set, and a recipe on it."""

import signal
from pathlib import Path

import pytest
from launching import Tiny, make_tiny

from data_pipeline.build import build
from data_pipeline.collection import Collection
from data_pipeline.sources import digits

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and tests send it


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 500 digits, uneven, 100 of them held out."""
    out = tmp_path_factory.mktemp("digits")
    all_digits = digits()
    few = Collection(all_digits.images[:500], all_digits.classes)
    build(few, out, val_fraction=0.2, shard_samples=[150, 30, 100, 1, 60], seed=0)
    return out


@pytest.fixture
def tiny(tmp_path: Path, digits_dir: Path) -> Tiny:
    return make_tiny(tmp_path, digits_dir)
