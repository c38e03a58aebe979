"""What kind of model tensors under our names make: sizes and options that show in names and shapes."""

import math
import re
from typing import Any

from vitscale.errors import ModelError
from vitscale.model.config import stem_stride
from vitscale.model.flops import patch_channels
from vitscale.model.zoo import ROOT_WIDTH, SIZES, ZOO
from vitscale.weights.rules import Tensors

Fields = dict[str, Any]
# The number of heads does not show in a fused matrix, but each width of the papers has one.
NUM_HEADS = {size["width"]: size["num_heads"] for size in SIZES.values()}
NEEDED = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
POSITIONS = {"pos_embed.table": "learned1d", "pos_embed.columns": "learned2d", "relative_keys.table": "relative"}
NUM_AXES: dict[str, int] = dict.fromkeys(POSITIONS, 3)
NUM_AXES |= dict.fromkeys(("head.weight", *NEEDED), 2) | {"pre_logits.fc.bias": 1, "root.weight": 4}


def infer(tensors: Tensors, known: Fields, where: str) -> Fields:
    """Fields of the config of a model with these tensors; `known` ones win. ModelError where the tensors do not tell."""
    is_bit = "root.weight" in tensors
    if missing := [name for name in NEEDED if name not in tensors and not is_bit]:
        raise ModelError(f"{where}: {missing[0]} is missing, so this is no whole model; the file is incomplete")
    for name, axes in NUM_AXES.items():
        if name in tensors and (tensors[name].ndim != axes or not tensors[name].numel()):
            raise ModelError(f"{where}: tensor {name} is {list(tensors[name].shape)}, it should have {axes} axes, none empty")
    fields = _bit(tensors) if is_bit else _vit(tensors, known, where)
    if "head.weight" in tensors:
        fields["num_classes"] = len(tensors["head.weight"])
    elif "num_classes" not in known:
        raise ModelError(f"{where}: head.weight is missing; `vitscale import` it with model.num_classes=... for a new head")
    fields |= known
    return {**fields, "name": _name(fields, where)}


def _bit(tensors: Tensors) -> Fields:
    return {"blocks": _units(tensors, "stages"), "width_factor": len(tensors["root.weight"]) // ROOT_WIDTH}


def _vit(tensors: Tensors, known: Fields, where: str) -> Fields:
    width, inputs = tensors["patch_embed.proj.weight"].shape
    blocks = _units(tensors, "stem.stages") if "stem.root.weight" in tensors else None
    fields: Fields = {
        "patch_size": math.isqrt(inputs // patch_channels(blocks)),
        "width": width,
        "depth": _count(tensors, "blocks"),
        "mlp_dim": len(tensors["blocks.0.mlp.fc1.weight"]),
        "stem_blocks": blocks,
        "pool": "map" if "attention_pool.probe" in tensors else "token" if "cls_token" in tensors else "gap",
        "representation_size": len(tensors["pre_logits.fc.bias"]) if "pre_logits.fc.bias" in tensors else None,
        "layer_scale": 1e-4 if "blocks.0.scale1.factor" in tensors else None,  # that it is there; its first value is gone
    }
    fields |= _positions(tensors, fields, known, where)
    fields["image_size"] = fields.pop("side") * fields["patch_size"] * stem_stride(blocks) if "side" in fields else 224
    if "num_heads" not in fields | known:
        if width not in NUM_HEADS:
            raise ModelError(f"{where}: the number of heads does not show; `vitscale import` it with model.num_heads=...")
        fields["num_heads"] = NUM_HEADS[width]
    return fields


def _positions(tensors: Tensors, fields: Fields, known: Fields, where: str) -> Fields:
    """Fields of the position embedding, and `side`, the patches along a side where it shows them."""
    name = next((name for name in POSITIONS if name in tensors), "")
    if not name:
        if "pos_embed" in known:
            return {}
        raise ModelError(f"{where}: no position embedding; `vitscale import` it with model.pos_embed=none, or =sincos2d")
    tables, length, width = tensors[name].shape
    found: Fields = {"pos_embed": POSITIONS[name], "pos_embed_at": "stem" if tables == 1 else "every"}
    cells = length**2 if name == "pos_embed.columns" else length - (fields["pool"] == "token")
    if name == "relative_keys.table":
        found |= {"pos_embed_at": "shared" if tables == 1 else "stem", "num_heads": fields["width"] // width}
        cells = (length + 1) // 2
    side = math.isqrt(cells)
    if side * side != cells:
        raise ModelError(f"{where}: {cells} positions of patches are no square grid; only those of square images can be taken")
    return {**found, "side": side}


def _name(fields: Fields, where: str) -> str:
    """The model of the papers with these numbers, or `custom`; ModelError where another was named."""
    sizes = {name: {"stem_blocks": None, **size} for name, size in ZOO.items()}  # r-ti16 has the numbers of vit-ti8, and more
    wanted = fields.get("name", "custom")
    if wanted == "custom":
        return next((name for name, size in sizes.items() if all(fields.get(key) == size[key] for key in size)), "custom")
    for key, value in sizes.get(str(wanted), {}).items():
        if fields.get(key) != value:
            raise ModelError(f"{where}: is no {wanted}: its tensors have {key} {fields.get(key)}, {wanted} has {value}")
    return wanted


def _units(tensors: Tensors, stages: str) -> tuple[int, ...]:
    """Units in each stage of a ResNet."""
    return tuple(_count(tensors, f"{stages}.{stage}") for stage in range(_count(tensors, stages)))


def _count(tensors: Tensors, prefix: str) -> int:
    """How many different numbers follow."""
    return len({match[1] for name in tensors if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))})
