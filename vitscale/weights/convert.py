"""Models in and out of the layouts of others."""

import json
import math
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ValidationError

from vitscale.errors import ModelError
from vitscale.model.build import parameter_shapes
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
ARITHMETIC = ("gelu", "norm_eps", "resnet_eps")  # what a config says and no tensor shows
FOLDER_FILES = (WEIGHTS, "model.safetensors", "pytorch_model.bin")


class Imported(NamedTuple):
    """A model read from a layout of others."""

    info: ModelInfo
    weights: Tensors
    format: str
    assumed: Fields  # what neither the files nor the caller said
    left_out: list[str]  # what the file holds beside the weights

    @property
    def note(self) -> str:
        """What the user should know of it; empty where there is nothing."""
        notes = []
        if self.assumed:
            assumed = ", ".join(f"{name}={value}" for name, value in self.assumed.items())
            notes.append(f"assumed, because the file does not say: {assumed}; `vitscale import` takes what is known better")
        if self.left_out:
            more = f" and {len(self.left_out) - 3} more" if len(self.left_out) > 3 else ""
            notes.append(f"left out, because it is no part of the model: {', '.join(self.left_out[:3])}{more}")
        return "\n".join(notes)


def read_model(path: Path, changes: Fields | None = None) -> Imported:
    """A file of weights, or a folder with one and its config.json. `changes`: fields of model.json that are known better."""
    file = _weights_file(path)
    found, left_out = files.read(file)
    tensors = {re.sub(r"(standardized_conv2d)_\d+", r"\1", name): tensor for name, tensor in found.items()}
    layout = next((layout for layout in LAYOUTS if layout.mark in tensors), None)
    if layout is None:
        raise ModelError(f"{file}: not a layout known here; it begins with {', '.join(sorted(tensors)[:3]) or 'nothing'}")
    told = merged(files.read_metadata(file) or (read_beside(file.parent) if file.name in FOLDER_FILES else {}), changes or {})
    weights = _with_class_position(unpack(tensors, layout.rules, str(file)) if layout.rules else tensors)
    known = told.pop("model")
    if layout.mark.endswith("/query/kernel"):  # i h d
        known = {"num_heads": tensors[layout.mark].shape[1], **known}
    fields = infer(weights, {**layout.options, **known}, str(file))
    unseen = (*layout.options, "num_heads", *(("pool",) if layout.format == "timm" and "cls_token" in weights else ()))
    guessed = {f"model.{name}": fields[name] for name in unseen if name in fields.keys() - known}
    assumed = {key: value for key, value in _preprocessing(fields).items() if key not in told}
    info = _checked({"classes": [], **assumed, **told, "model": fields}, str(file))
    weights |= _new_head(weights, info.model)
    check_tensors(weights, info.model, str(file))
    return Imported(info, weights, layout.format, assumed | guessed, left_out)


def _weights_file(path: Path) -> Path:
    for file in (path, *(path / name for name in FOLDER_FILES)):
        if file.is_file():
            return file
    raise ModelError(f"{path}: no such file, and no folder with {' or '.join(FOLDER_FILES)}")


def _checked(fields: Fields, where: str) -> ModelInfo:
    try:
        info = ModelInfo.model_validate(fields, strict=False)
    except ValidationError as error:
        raise ModelError(f"{where}: {explain(error)}") from None
    if info.classes and len(info.classes) != info.model.num_classes:
        raise ModelError(
            f"{where}: {len(info.classes)} class names for {info.model.num_classes} outputs of the head; "
            "mend the names, or take none: classes=[]"
        )
    return info


def merged(base: Fields, top: Fields) -> Fields:
    """`top` over `base`, the sections of the model joined."""
    sections = [fields.get("model", {}) for fields in (base, top)]
    if strange := [section for section in sections if not isinstance(section, dict)]:
        raise ModelError(f"model: found {strange[0]!r}, it takes fields: model.num_heads=2")
    return {**base, **top, "model": {**sections[0], **sections[1]}}


def _preprocessing(fields: Fields) -> Fields:
    """The official models see pixels from -1 to 1; size and crop as timm evaluates them."""
    crop = 0.9 if fields.get("image_size", 224) < 300 else 1.0
    return {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "eval_crop": crop}


def _with_class_position(weights: Tensors) -> Tensors:
    """A place for the class token where only patches have one (big_vision, DeiT III)."""
    table = weights.get("pos_embed.table")
    if table is None or "cls_token" not in weights or table.ndim != 3 or math.isqrt(table.shape[1]) ** 2 != table.shape[1]:
        return weights
    return {**weights, "pos_embed.table": F.pad(table, (0, 0, 1, 0))}


def _new_head(weights: Tensors, config: ModelConfig) -> Tensors:
    """Zeros where the file has no head."""
    names = {"head.weight", "head.bias"}
    if not names.isdisjoint(weights):
        return {}
    return {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items() if name in names}


def write_model(folder: Path, info: ModelInfo, weights: Tensors) -> None:
    """A model directory, as checkpoints and published models are; its sums come last."""
    with files.whole(folder) as partial:
        (partial / FILE).write_text(info.dump())
        files.write(partial / WEIGHTS, weights, {})
        write_sums(partial)


def export(info: ModelInfo, weights: Tensors, form: Format, out: Path) -> list[Path]:
    """Write a model for others; returns what was written. timm and hf go to a folder, or the weights alone to a file."""
    is_folder = form in ("timm", "hf") and out.suffix not in files.READERS
    wrong = out.suffix != ".safetensors" if form == "safetensors" else (out.suffix == ".npz") != (form == "npz")
    if wrong:
        raise ModelError(f"--out {out}: {form} is written to {'a .npz' if form == 'npz' else 'a .safetensors'} file")
    if out.exists():
        raise ModelError(f"--out {out}: exists; choose another name or remove it")
    if form == "safetensors":
        tensors, metadata = weights, {files.METADATA: json.dumps(info.model_dump(mode="json"))}
    else:
        tensors, metadata = in_layout(info.model, weights, form), {"format": "pt"}
    if not is_folder:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write(out, tensors, metadata)
        return [out]
    beside = (huggingface_files if form == "hf" else timm_files)(info)
    with files.whole(out) as partial:
        for name, content in beside.items():
            (partial / name).write_text(json.dumps(content, indent=1) + "\n")
        files.write(partial / "model.safetensors", tensors, metadata)
    return [out / name for name in (*beside, "model.safetensors")]


def in_layout(config: ModelConfig, weights: Tensors, form: Format) -> Tensors:
    """The weights under the names of a layout; ModelError where it has no place for something."""
    layout, lengths = layout_for(config, form), {}
    if isinstance(config, ViTConfig):
        if config.pos_embed != "none" and config.pos_embed_at != "stem":
            raise ModelError(f"model.pos_embed_at: {config.pos_embed_at} has no place in {form} files; export as safetensors")
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
        raise ModelError(f"{config.name}: Hugging Face's ViT has a class token; export other models as timm or safetensors")
    return next(layout for layout in LAYOUTS if layout.format == form and layout.kind == kind)


def changed_arithmetic(config: ModelConfig, form: Format, out: Path) -> Fields:
    """What who reads the file computes in another way, and how; for neither tensors nor what lies beside them tell."""
    if form == "safetensors":
        return {}
    theirs: Fields = {name: type(config).model_fields[name].default for name in ARITHMETIC if hasattr(config, name)}
    theirs |= layout_for(config, form).options
    if out.suffix not in files.READERS:
        told = {"gelu", "norm_eps"} if form == "hf" else {"gelu"}
        theirs = {name: value for name, value in theirs.items() if name not in told}
    if isinstance(config, ViTConfig) and config.stem_blocks is None:
        theirs.pop("resnet_eps")
    return {name: value for name, value in theirs.items() if getattr(config, name) != value}


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
