"""The same weights in every kind of file, and what is said of files that are none."""

import os
import pickle

import numpy as np
import pytest
import torch

from vitscale.errors import ModelError
from vitscale.weights import files
from vitscale.weights.convert import read_model

HEADS = {"model": {"num_heads": 3}}


def save_torch(content):
    return lambda path, tensors: torch.save(content({name: torch.from_numpy(t) for name, t in tensors.items()}), path)


def renamed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def bfloat16(tensors):
    """As JAX writes it: two bytes without a name, here the upper ones of values that need no more."""
    return {name: (tensor.view(np.uint32) >> 16).astype(np.uint16).view("V2") for name, tensor in tensors.items()}


PYTORCH = {
    "plain": save_torch(dict),
    "model": save_torch(lambda weights: {"model": weights, "epoch": 3}),
    "state_dict of DataParallel": save_torch(lambda weights: {"epoch": 3, "state_dict": renamed("module.")(weights)}),
    "before PyTorch 1.6": lambda path, tensors: torch.save(
        {name: torch.from_numpy(t) for name, t in tensors.items()}, path, _use_new_zipfile_serialization=False
    ),
}
NUMPY = {
    "params": renamed("params/"),
    "opt/target": lambda tensors: {**renamed("opt/target/")(tensors), "opt/state/step": np.array(7)},
}


@pytest.mark.parametrize("kind", PYTORCH)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_checkpoints_of_pytorch(draw, tmp_path, kind, suffix):
    tensors = draw("timm")
    PYTORCH[kind](tmp_path / f"file{suffix}", tensors)
    found = files.read(tmp_path / f"file{suffix}")
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("kind", NUMPY)
def test_npz_with_the_weights_among_more(draw, write, kind):
    tensors = draw("npz")
    found, plain = (read_model(write(f"{n}.npz", t)) for n, t in (("a", NUMPY[kind](tensors)), ("b", tensors)))
    assert found.info == plain.info
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in plain.weights.items())


def test_bfloat16_of_jax(draw, write):
    tensors = {name: (t.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, t in draw("npz").items()}
    found = files.read(write("file.npz", bfloat16(tensors)))
    assert all(tensor.dtype == torch.float32 and np.array_equal(tensor, tensors[name]) for name, tensor in found.items())


@pytest.mark.parametrize("name", ["file.npz", "file.safetensors", "file.pth"])
def test_half_precision_is_widened_exactly(draw, write, name):
    tensors = {name: tensor.astype(np.float16) for name, tensor in draw("timm").items()}
    found = read_model(write(name, tensors), HEADS).weights
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert np.array_equal(found["cls_token"], tensors["cls_token"])


def test_nan_comes_in_as_it_is(draw, write):
    """Import changes no value; whoever uses the model sees it."""
    tensors = draw("npz")
    tensors["cls"][0, 0, 0] = np.nan
    assert read_model(write("file.npz", tensors)).weights["cls_token"].isnan().sum() == 1


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))])
def test_code_in_a_file_does_not_run(tmp_path, save):
    save({"head.weight": Code(tmp_path / "ran")}, tmp_path / "file.pth")
    with pytest.raises(ModelError, match=r"file\.pth: holds other things than tensors, which may be code and are not read"):
        files.read(tmp_path / "file.pth")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Code(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # it would have


@pytest.mark.parametrize(
    "content, said",
    [
        ({"epoch": 3, "net": {}}, "'epoch' is no tensor"),
        ({1: torch.zeros(2)}, "1 is no tensor"),
        ([torch.zeros(2)], "'' is no tensor"),
        (torch.nn.Linear(2, 2), "holds other things than tensors"),
    ],
)
def test_a_pth_that_is_no_state_dict(tmp_path, content, said):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ModelError, match=rf"file\.pth: {said}.*; save the model's state_dict\(\) alone"):
        files.read(tmp_path / "file.pth")


def as_text(path):
    path.write_text("not found\n")


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def objects(path):
    np.savez(path, weights=np.array([{}], dtype=object))


def words(path):
    np.savez(path, names=np.array(["cls"]))


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def of_pytorch(path):
    torch.save({"a": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    "name, damage",
    [(f"file{suffix}", damage) for suffix in (".npz", ".safetensors", ".pth") for damage in (as_text, empty, cut)]
    + [("file.npz", damage) for damage in (objects, words, one_array, of_pytorch)]
    + [("file.safetensors", of_pytorch)],
)
def test_a_file_that_is_not_what_its_name_says(draw, write, name, damage):
    path = write(name, draw("timm"))
    damage(path)
    said = r"not readable as \.\w+ \(.*\); it is cut short or of another kind|holds other things than tensors"
    with pytest.raises(ModelError, match=rf"{name}: ({said})") as error:
        read_model(path)
    assert "\n" not in str(error.value)


def test_another_suffix(tmp_path):
    with pytest.raises(ModelError, match=r"file\.h5: a file of weights ends in \.npz, \.safetensors, \.pth, \.pt, \.bin"):
        files.read(tmp_path / "file.h5")
