"""Files of weights: .npz, .safetensors and .pth, read without ever running what a file says."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vitscale.errors import ModelError
from vitscale.weights.rules import Tensors

PICKLED = (".pth", ".pt", ".bin")
SUFFIXES = (".npz", ".safetensors", *PICKLED)
WRAPPERS = ("state_dict", "model", "params", "opt/target")  # where programs put the weights among what else they save
METADATA = "vitscale"  # key under which our own .safetensors carry their model.json


def read(path: Path) -> Tensors:
    """Every tensor by name, in fp32. ModelError where the file cannot be read as what its suffix says."""
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path}: a file of weights ends in {', '.join(SUFFIXES)}")
    try:
        tensors = (
            _read_npz(path) if path.suffix == ".npz" else load_file(path) if path.suffix not in PICKLED else _read_pickled(path)
        )
    except (FileNotFoundError, MemoryError, ModelError):
        raise
    except Exception as error:  # of broken bytes each reader makes exceptions of its own
        reason = " ".join(str(error).split(". ")[0].split())
        raise ModelError(f"{path}: not readable as {path.suffix} ({reason}); it is cut short or of another kind") from None
    return {name.removeprefix("module."): tensor.float() for name, tensor in tensors.items()}


def _read_npz(path: Path) -> Tensors:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # numpy leaves a broken file open
        arrays = {name: file[name] for name in file.files}
    prefix = next((f"{wrapper}/" for wrapper in WRAPPERS if any(name.startswith(f"{wrapper}/") for name in arrays)), "")
    return {name.removeprefix(prefix): _tensor(array) for name, array in arrays.items() if name.startswith(prefix)}


def _tensor(array: np.ndarray) -> torch.Tensor:
    """numpy knows no bfloat16; JAX writes it as two unnamed bytes."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _read_pickled(path: Path) -> Tensors:
    """weights_only: tensors, dictionaries and numbers, no code."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ModelError(
            f"{path}: holds other things than tensors, which may be code and are not read; save the model's state_dict() alone"
        ) from None
    loaded = {"": loaded} if not isinstance(loaded, dict) else loaded
    loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict)), loaded)
    if strange := [name for name, value in loaded.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]:
        raise ModelError(f"{path}: {strange[0]!r} is no tensor; save the model's state_dict() alone")
    return loaded


def read_metadata(path: Path) -> dict[str, Any]:
    """The model.json inside a .safetensors of ours; {} in one of others."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return parse_json((file.metadata() or {}).get(METADATA, "{}"), f"{path}, metadata {METADATA}")


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object; ModelError where it is none."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{where}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{where}: found {str(content)[:40]!r}, it should be a JSON object")
    return content


def write(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """As the suffix says, under a temporary name until it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".npz":
            with partial.open("wb") as file:
                np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]
        elif path.suffix == ".safetensors":
            save_file(tensors, partial, metadata)
        else:
            torch.save(tensors, partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
