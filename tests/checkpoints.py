"""Small checkpoints as a training leaves them, and what the registry keeps of them."""

import json
from pathlib import Path
from urllib.parse import urlparse

import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from vitscale import recipe
from vitscale.model.vit import ViT
from vitscale.modelinfo import ModelInfo
from vitscale.registry import Version
from vitscale.retention import complete, scores_of
from vitscale.sums import write_sums

FILES = {"model.json", "weights.safetensors", "recipe.yaml", "state.json"}
WRITTEN = {"README.md", "MLmodel", "requirements.txt", "input_example.json", "SHA256SUMS"}


def write_checkpoint(folder: Path, cfg, step: int, seed: int, scores: dict[str, float]) -> Path:
    """A checkpoint as a training leaves it, of random weights."""
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "rank_00000.safetensors").write_bytes(b"optimiser")
    (folder / "model.json").write_text(ModelInfo.of(cfg.model, cfg.data, ["cat", "dog", "owl"]).dump())
    (folder / "recipe.yaml").write_text(recipe.dump(cfg))
    before = scores_of(max(complete(folder.parent), default=folder))
    state = {"step": step, "samples": 8 * step, "data": "d" * 64, "scores": {**before, f"step_{step:08d}": scores}}
    (folder / "state.json").write_text(json.dumps(state))
    torch.manual_seed(seed)
    weights = {name: torch.randn_like(tensor) for name, tensor in ViT(cfg.model).state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    write_sums(folder)
    return folder


def content(folder):
    """What a model directory holds of its checkpoint."""
    return {name: (folder / name).read_bytes() for name in FILES}


def stored(store, version: Version) -> Path:
    """Where the registry keeps a version's files."""
    return Path(urlparse(client_of(store).get_logged_model(version.model_id).artifact_location).path)


def client_of(store) -> MlflowClient:
    return MlflowClient(store, store)
