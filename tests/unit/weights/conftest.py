"""Random files of weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from references import bit, huggingface, official, timm
from references.spec import BiTSpec, ViTSpec
from safetensors.numpy import save_file
from threads import one_thread as one_thread  # a fixture

Tensors = dict[str, np.ndarray]


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
