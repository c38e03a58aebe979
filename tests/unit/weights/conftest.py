"""Random files of weights, and the command line in this process."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from references import bit, huggingface, official, timm
from references.spec import BiTSpec, ViTSpec
from safetensors.numpy import save_file

from vitscale import cli

Tensors = dict[str, np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def draw() -> Callable[..., Tensors]:
    """Random tensors of a layout; `changes` are fields of the spec."""

    def make(layout: str, **changes: object) -> Tensors:
        rng = np.random.default_rng(0)
        if layout == "bit":
            return bit.random_bit(BiTSpec(**{"units": (1, 1, 1, 1), **changes}), rng)
        random = {"npz": official.random_official, "timm": timm.random_timm, "hf": huggingface.random_huggingface}[layout]
        return random(ViTSpec(**changes), rng)

    return make


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Write tensors as a file, with a config.json of the given content where there is one."""

    def to(name: str, tensors: Tensors, config: dict | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            np.savez(path, **tensors)
        elif path.suffix == ".safetensors":
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
        else:
            torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)
        if config is not None:
            (path.parent / "config.json").write_text(json.dumps(config))
        return path

    return to


@pytest.fixture
def vitscale(tmp_path, monkeypatch, capsys):
    """Run a command in the test's own directory."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["vitscale", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return subprocess.CompletedProcess(words, done.value.code, *capsys.readouterr())

    return run
