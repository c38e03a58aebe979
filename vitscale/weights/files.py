"""Files of weights: .npz, .safetensors and .pth, read without ever running what a file says."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vitscale.errors import ModelError
from vitscale.weights.rules import Tensors

PICKLED = (".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model", "params", "opt/target")  # where programs put the weights among what else they save
METADATA = "vitscale"  # key under which our own .safetensors carry their model.json


class Read(NamedTuple):
    """A file's tensors, in fp32, and the names of what it holds beside them."""

    tensors: Tensors
    left_out: list[str]


def read(path: Path) -> Read:
    """Every tensor by name. ModelError where the file cannot be read as what its suffix says, or as plain numbers."""
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ModelError(f"{path}: a file of weights ends in {', '.join(READERS)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a reader has to say of a bad file is said below
            tensors, left_out = reader(path)
            plain = {name.removeprefix("module."): _plain(name, tensor) for name, tensor in tensors.items()}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except MemoryError:
        raise ModelError(f"{path}: larger than the memory of this machine") from None
    except Exception as error:  # of broken bytes each reader makes exceptions of its own
        reason = " ".join(str(error).split(". ")[0].split()) or type(error).__name__
        raise ModelError(f"{path}: not readable as {path.suffix} ({reason}); it is cut short or of another kind") from None
    if len(plain) < len(tensors):
        raise ModelError(f"{path}: holds tensors of one name with and without `module.`; keep the one or the other")
    return Read(plain, left_out)


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """In fp32; ModelError for what is no plain array of real, finite numbers."""
    if not name.isprintable():
        raise ModelError(f"{name!r} is no name of a tensor")
    kind = next((kind for kind in ("sparse", "meta", "quantized") if getattr(tensor, f"is_{kind}")), None)
    if kind or tensor.is_complex() or tensor.layout != torch.strided:
        raise ModelError(f"tensor {name} is stored as {kind or tensor.dtype}; save it as plain real numbers")
    number = tensor.float()
    if not torch.isfinite(number).all():
        raise ModelError(f"tensor {name} holds {int((~torch.isfinite(number)).sum())} values that are not finite in fp32")
    return number


def _read_npz(path: Path) -> Read:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # numpy leaves a broken file open
        arrays = {name: file[name] for name in file.files}
    prefix = next((f"{wrapper}/" for wrapper in WRAPPERS if any(name.startswith(f"{wrapper}/") for name in arrays)), "")
    tensors = {name.removeprefix(prefix): _tensor(array) for name, array in arrays.items() if name.startswith(prefix)}
    return Read(tensors, [name for name in arrays if not name.startswith(prefix)])


def _tensor(array: np.ndarray) -> torch.Tensor:
    """numpy knows no bfloat16, JAX writes it as two unnamed bytes; torch knows no foreign order of bytes."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _read_pickled(path: Path) -> Read:
    """weights_only: tensors, dictionaries and numbers, no code."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ModelError(
            "holds other things than tensors, which may be code and are not read; save the model's state_dict() alone"
        ) from None
    loaded = loaded if isinstance(loaded, dict) else {"": loaded}
    wrappers = [key for key in WRAPPERS if isinstance(loaded.get(key), dict)]
    if len(wrappers) > 1:
        raise ModelError(f"holds {' and '.join(wrappers)}; keep the one that is meant")
    tensors = loaded[wrappers[0]] if wrappers else loaded
    if strange := [name for name, value in tensors.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]:
        raise ModelError(f"{strange[0]!r} is no tensor; save the model's state_dict() alone")
    return Read(tensors, [str(key) for key in loaded if key != wrappers[0]] if wrappers else [])


def _read_safetensors(path: Path) -> Read:
    return Read(load_file(path), [])


READERS: dict[str, Callable[[Path], Read]] = {".npz": _read_npz, ".safetensors": _read_safetensors}
READERS |= dict.fromkeys(PICKLED, _read_pickled)


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
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{where}: found {str(content)[:40]!r}, it should be a JSON object")
    return content


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when all is written."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
