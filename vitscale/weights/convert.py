"""Models in and out of the layouts of others."""

import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ValidationError

from vitscale.errors import ModelError
from vitscale.model.config import BiTConfig, ModelConfig, ViTConfig
from vitscale.model.posembed import PosEmbed
from vitscale.modelinfo import FILE, WEIGHTS, ModelInfo, explain
from vitscale.sums import write_sums
from vitscale.weights import files
from vitscale.weights.beside import huggingface_files, read_beside, timm_files
from vitscale.weights.infer import infer
from vitscale.weights.layouts import LAYOUTS, Layout
from vitscale.weights.rules import Tensors, pack, unpack
from vitscale.weights.transfer import check_tensors

Format = Literal["npz", "timm", "hf", "safetensors"]
Fields = dict[str, Any]
FOLDER_FILES = (WEIGHTS, "model.safetensors", "pytorch_model.bin")


class Imported(NamedTuple):
    """A model read from a layout of others."""

    info: ModelInfo
    weights: Tensors
    format: str
    assumed: Fields  # what neither the files nor the caller said of its preprocessing


def read_model(path: Path, changes: Fields | None = None) -> Imported:
    """A file of weights, or a folder with one and its config.json. `changes`: fields of model.json that are known better."""
    file = path if path.is_file() else next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    if file is None:
        raise ModelError(f"{path}: no such file, and no folder with {FILE} or with {' or '.join(FOLDER_FILES[1:])}")
    tensors = files.read(file)
    layout = next((layout for layout in LAYOUTS if layout.mark in tensors), None)
    if layout is None:
        raise ModelError(f"{file}: not a layout known here; it begins with {', '.join(sorted(tensors)[:3]) or 'nothing'}")
    told = merged(files.read_metadata(file) or read_beside(file.parent), changes or {})
    known = {**layout.options, **told.pop("model", {})}
    weights = _completed(unpack(tensors, layout.rules, str(file)) if layout.rules else tensors, known)
    fields = infer(weights, known, str(file))
    assumed = {key: value for key, value in _preprocessing(fields).items() if key not in told}
    try:
        info = ModelInfo.model_validate({"classes": [], **assumed, **told, "model": fields}, strict=False)
    except ValidationError as error:
        raise ModelError(f"{file}: {explain(error)}") from None
    check_tensors(weights, info.model, str(file))
    if info.classes and len(info.classes) != info.model.num_classes:
        raise ModelError(f"{file}: {len(info.classes)} class names for {info.model.num_classes} outputs of the head")
    return Imported(info, weights, layout.format, assumed)


def merged(base: Fields, top: Fields) -> Fields:
    """`top` over `base`, the sections of the model joined."""
    return {**base, **top, "model": {**base.get("model", {}), **top.get("model", {})}}


def _preprocessing(fields: Fields) -> Fields:
    """The official models see pixels from -1 to 1; size and crop as timm evaluates them."""
    crop = 0.9 if fields.get("image_size", 224) < 300 else 1.0
    return {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "eval_crop": crop}


def _completed(weights: Tensors, known: Fields) -> Tensors:
    """A place for the class token where only patches have one (big_vision, DeiT III), and a head where one is asked for."""
    table = weights.get("pos_embed.table")
    if table is not None and "cls_token" in weights and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        weights = {**weights, "pos_embed.table": F.pad(table, (0, 0, 1, 0))}
    if "head.weight" not in weights and "num_classes" in known and "norm.weight" in weights:
        features = len(weights.get("pre_logits.fc.bias", weights["norm.weight"]))
        head = {"head.weight": torch.zeros(known["num_classes"], features), "head.bias": torch.zeros(known["num_classes"])}
        weights = weights | head
    return weights


def write_model(folder: Path, info: ModelInfo, weights: Tensors) -> None:
    """A model directory, as checkpoints and published models are; its sums come last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(info.dump())
    files.write(folder / WEIGHTS, weights, {})
    write_sums(folder)


def export(info: ModelInfo, weights: Tensors, form: Format, out: Path) -> list[Path]:
    """Write a model for others; returns what was written. timm and hf go to a folder, or the weights alone to a file."""
    is_folder = form in ("timm", "hf") and out.suffix not in files.SUFFIXES
    if (not is_folder and (out.suffix == ".npz") != (form == "npz")) or (
        form == "safetensors" and out.suffix != ".safetensors"
    ):
        raise ModelError(f"--out {out}: {form} is written to {'a .npz' if form == 'npz' else 'a .safetensors'} file")
    if out.exists():
        raise ModelError(f"--out {out}: exists; choose another name or remove it")
    if form == "safetensors":
        tensors, metadata = weights, {files.METADATA: json.dumps(info.model_dump(mode="json"))}
    else:
        tensors, metadata = in_layout(info.model, weights, form), {"format": "pt"}
    beside = (huggingface_files if form == "hf" else timm_files)(info) if is_folder else {}
    target = out / "model.safetensors" if is_folder else out
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, content in beside.items():
        (out / name).write_text(json.dumps(content, indent=1) + "\n")
    files.write(target, tensors, metadata)
    return [*(out / name for name in beside), target]


def in_layout(config: ModelConfig, weights: Tensors, form: Format) -> Tensors:
    """The weights under the names of a layout; ModelError where it has no place for something."""
    layout, lengths = layout_for(config, form), {}
    if isinstance(config, ViTConfig):
        if config.pos_embed != "none" and config.pos_embed_at != "stem":
            raise ModelError(
                f"model.pos_embed_at: {config.pos_embed_at} has no place in the {form} layout; export as safetensors"
            )
        weights = with_table(config, weights)
        lengths = {"h": config.num_heads, "p": config.patch_size, "q": config.patch_size}
    return pack(weights, layout.rules, form, **lengths)


def layout_for(config: ModelConfig, form: Format) -> Layout:
    """The one of a format's layouts that this kind of model is written in."""
    kind = "bit" if isinstance(config, BiTConfig) else "vit"
    if isinstance(config, ViTConfig) and form == "npz" and config.pool == "map":
        kind = "map"
    elif isinstance(config, ViTConfig) and form == "timm" and config.stem_blocks is not None:
        kind = "hybrid" if config.stem_blocks else "root"
    elif form == "hf" and (kind == "bit" or getattr(config, "pool", "") != "token"):
        raise ModelError(
            f"{config.name}: Hugging Face's ViT has a class token; for another model export as timm or safetensors"
        )
    return next(layout for layout in LAYOUTS if layout.format == form and layout.kind == kind)


@torch.no_grad()
def with_table(config: ViTConfig, weights: Tensors) -> Tensors:
    """Fixed, two-axis or no positions as the table that they amount to, for layouts that know nothing else."""
    if config.pos_embed in ("learned1d", "relative"):
        return weights
    table = torch.zeros(1, config.num_tokens, config.width)
    if config.pos_embed != "none":
        positions = PosEmbed(config)
        for name, parameter in positions.named_parameters():
            parameter.copy_(weights[f"pos_embed.{name}"])
        table = positions.make(0, config.grid)[None]
    return {name: tensor for name, tensor in weights.items() if not name.startswith("pos_embed.")} | {"pos_embed.table": table}
