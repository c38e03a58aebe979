"""The same weights in every kind of file, and what is said of files that are none."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from vitscale.errors import ModelError
from vitscale.pretrained import load_pretrained
from vitscale.weights import files
from vitscale.weights.convert import read_model, write_model

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
    found = files.read(tmp_path / f"file{suffix}").tensors
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
    found = files.read(write("file.npz", bfloat16(tensors))).tensors
    assert all(tensor.dtype == torch.float32 and np.array_equal(tensor, tensors[name]) for name, tensor in found.items())


@pytest.mark.parametrize("name", ["file.npz", "file.safetensors", "file.pth"])
def test_half_precision_is_widened_exactly(draw, write, name):
    tensors = {name: tensor.astype(np.float16) for name, tensor in draw("timm").items()}
    found = read_model(write(name, tensors), HEADS).weights
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert np.array_equal(found["cls_token"], tensors["cls_token"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_is_no_model(draw, write, value):
    tensors = draw("npz")
    tensors["cls"] = tensors["cls"].astype(np.float64)
    tensors["cls"][0, 0, 0] = value
    with pytest.raises(ModelError, match=r"file\.npz: tensor cls holds 1 values that are not finite in fp32"):
        read_model(write("file.npz", tensors))


@pytest.mark.parametrize(
    "strange, said",
    [
        (torch.zeros(3, dtype=torch.complex64), "tensor strange is stored as torch.complex64"),
        (torch.zeros(3).to_sparse(), "tensor strange is stored as sparse"),
        (torch.zeros(3, device="meta"), "tensor strange is stored as meta"),
        (torch.zeros(1).expand(2**50), "larger than the memory|not readable as .pth"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_array_is_refused_by_name(draw, tmp_path, strange, said):
    whole = {name: torch.from_numpy(tensor) for name, tensor in draw("timm").items()}
    torch.save(whole | {"strange": strange}, tmp_path / "f.pth")
    with pytest.raises(ModelError, match=said):
        read_model(tmp_path / "f.pth", {"model": {"num_heads": 3}})


TWINS = ["blocks.0.gamma_1", "blocks.00.norm1.weight", "blocks.\u0660.norm1.weight", "module.norm.weight", "a\nb"]


@pytest.mark.parametrize("twin", TWINS)
def test_no_tensor_is_taken_for_another_or_lost(draw, write, twin):
    tensors = {name: torch.from_numpy(tensor) for name, tensor in draw("timm").items()}
    tensors |= {"blocks.0.ls1.gamma": torch.ones(24), "blocks.0.ls2.gamma": torch.ones(24), twin: torch.ones(24)}
    with pytest.raises(ModelError, match=r"is there twice|has no place|with and without `module\.`|is no name of a tensor"):
        read_model(write("file.pth", {name: tensor.numpy() for name, tensor in tensors.items()}))


def test_what_is_left_out_is_told(draw, write):
    tensors = {f"params/{name}": tensor for name, tensor in draw("npz").items()}
    got = read_model(write("file.npz", tensors | {"opt/step": np.zeros(1, np.float32)}))
    assert got.left_out == ["opt/step"] and "left out, because it is no part of the model: opt/step" in got.note


def test_two_models_in_one_file_are_not_chosen_between(draw, tmp_path):
    whole = {name: torch.from_numpy(tensor) for name, tensor in draw("timm").items()}
    torch.save({"model": whole, "state_dict": whole}, tmp_path / "file.pth")
    with pytest.raises(ModelError, match="holds state_dict and model; keep the one that is meant"):
        files.read(tmp_path / "file.pth")


def test_numbers_of_another_order_of_bytes(draw, write):
    tensors = draw("npz")
    swapped = {name: tensor.astype(tensor.dtype.newbyteorder(">")) for name, tensor in tensors.items()}
    found = files.read(write("file.npz", swapped)).tensors
    assert all(np.array_equal(found[name], tensor) for name, tensor in tensors.items())


def test_claims_of_the_metadata_cost_nothing(draw, tmp_path):
    weights = read_model(write_npz(tmp_path, draw)).weights
    for model in ({"depth": 300_000}, {"image_size": 10**12}):
        claim = {
            "model": {"num_heads": 3, **model},
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "eval_crop": 1.0,
        }
        files.write(tmp_path / "file.safetensors", weights, {files.METADATA: json.dumps(claim)})
        with pytest.raises(ModelError, match="less than or equal to"):
            read_model(tmp_path / "file.safetensors")
    files.write(tmp_path / "file.safetensors", weights, {files.METADATA: "[" * 100_000})
    with pytest.raises(ModelError, match="not JSON"):
        read_model(tmp_path / "file.safetensors")


def write_npz(folder, draw):
    np.savez(folder / "whole.npz", **draw("npz"))
    return folder / "whole.npz"


@pytest.mark.parametrize("change", [{"eval_crop": 7.0}, {"std": [0.0, 0.5, 0.5]}, {"eval_crop": -3.0}])
def test_preprocessing_that_cannot_be_is_refused(draw, tmp_path, change):
    with pytest.raises(ModelError, match=next(iter(change))):
        read_model(write_npz(tmp_path, draw), change)


def test_a_folder_that_cannot_be_written_whole_is_not_there(draw, tmp_path):
    imported = read_model(write_npz(tmp_path, draw))
    sparse = {name: tensor.to_sparse() for name, tensor in imported.weights.items()}
    with pytest.raises(ValueError, match="sparse"):
        write_model(tmp_path / "out", imported.info, sparse)
    assert not list(tmp_path.glob("*out*"))
    write_model(tmp_path / "out", imported.info, imported.weights)
    assert load_pretrained(tmp_path / "out").info == imported.info


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
