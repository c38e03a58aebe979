"""Where a model comes from: a directory, a file of weights, or a `models:/` or `runs:/` URI. Imports no torch."""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from vitscale import pull, registry
from vitscale.config import InitConfig
from vitscale.errors import ModelError
from vitscale.model.config import ModelConfig
from vitscale.modelinfo import FILE as MODEL_INFO
from vitscale.modelinfo import read_model_info, weight_files
from vitscale.sums import verify, write_sums

ORIGIN = "origin.json"


class Origin(NamedTuple):
    """What `init.from` turned out to be, noted so that a restart starts from the same even if an alias has moved."""

    source: str
    resolved: str
    run_id: str | None


def locate(source: str, uri: str) -> Path:
    """The model's directory, downloaded to the user's cache where `source` is a URI; or a file of weights, as it is."""
    if not source.startswith(registry.SCHEMES):
        return Path(source) if is_foreign(Path(source)) else checked_directory(source)
    version = registry.resolve(source, uri)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitscale" / "models"
    if (cache / version.model_id).exists() and verify(cache / version.model_id):  # damaged since
        shutil.rmtree(cache / version.model_id)
    pull.fetch(version, uri, cache / version.model_id)
    return cache / version.model_id


def fetch_init(init: InitConfig, model: ModelConfig, folder: Path, uri: str) -> Origin:
    """Bring the model that `init.from` names into the run directory, once, and check that it fits the recipe's model."""
    note = folder / ORIGIN
    origin = Origin(**json.loads(note.read_text())) if note.is_file() and not verify(folder) else None  # complete
    if origin is None or origin.source != init.source:
        origin = _fetch(init.source, folder, uri)
    if differences := read_model_info(folder).model.architecture_differences(model, with_head=init.head == "keep"):
        raise ModelError(
            f"init.from: {init.source} has another architecture than the recipe's model: {'; '.join(differences)} "
            f"(here = {init.source}, there = the recipe); use the pretrained model's values or pretrain one that fits"
        )
    return origin


def _fetch(source: str, folder: Path, uri: str) -> Origin:
    shutil.rmtree(folder, ignore_errors=True)
    if source.startswith(registry.SCHEMES):
        version = pull.pull(source, uri, folder)
        origin = Origin(source, version.uri, version.run_id)
    elif is_foreign(Path(source)):
        from vitscale.pretrained import open_model
        from vitscale.weights.convert import write_model

        write_model(folder, *open_model(Path(source)))
        origin = Origin(source, str(Path(source).absolute()), None)
    else:
        checkpoint = checked_directory(source)
        folder.mkdir(parents=True)
        for path in (checkpoint / MODEL_INFO, *weight_files(checkpoint)):
            shutil.copyfile(path, folder / path.name)
        origin = Origin(source, str(checkpoint.absolute()), run_id(checkpoint))
    (folder / ORIGIN).write_text(json.dumps(origin._asdict(), indent=1) + "\n")
    write_sums(folder)
    return origin


def is_foreign(path: Path) -> bool:
    """A file of weights, or a folder as timm and transformers write it: something to import."""
    return path.is_file() or ((path / "config.json").is_file() and not (path / MODEL_INFO).exists())


def run_id(checkpoint: Path) -> str | None:
    """The MLflow run of a checkpoint that still lies in its run directory."""
    note = checkpoint.absolute().parent.parent / "mlflow_run_id"
    return note.read_text() if note.is_file() else None


def checked_directory(source: str) -> Path:
    """A model directory whose every byte is as written."""
    path = Path(source)
    if not path.is_dir():
        raise ModelError(f"{source}: neither a checkpoint directory nor a file of weights; or give {registry.FORMS}")
    if complete := sorted((path / "checkpoints").glob("step_" + "[0-9]" * 8)):
        raise ModelError(f"{path}: a run directory; give one of its checkpoints, e.g. {complete[-1]}")
    read_model_info(path)
    if damaged := verify(path):
        raise ModelError(f"{path}: {', '.join(damaged)}; use another checkpoint")
    return path
