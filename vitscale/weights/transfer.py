"""Pretrained weights into a new model: what fits is kept, the position embedding is resized, the head is new."""

from typing import NamedTuple

import torch

from vitscale.config import ModelConfig
from vitscale.errors import ModelError
from vitscale.model import posembed
from vitscale.model.vit import ViT

HEAD, PRE_LOGITS, POS_EMBED = "head.", "pre_logits.", "pos_embed"


class Fate(NamedTuple):
    """What became of one tensor."""

    name: str
    fate: str  # kept, resized, new or dropped
    detail: str = ""


@torch.no_grad()
def transfer(model: ViT, weights: dict[str, torch.Tensor], source: ModelConfig, reinit_pos_embed: bool = False) -> list[Fate]:
    """Fill `model` from the weights of a model with config `source`; its head stays as initialised (ViT paper, section 3.2).

    Raises ModelError when anything but head, pre-logits and position embedding differs.
    """
    if differences := source.architecture_differences(model.config):
        raise ModelError(f"the pretrained model does not fit: {'; '.join(differences)} (here = pretrained, there = recipe)")
    fates = []
    for name, target in model.named_parameters():
        if name.startswith((HEAD, PRE_LOGITS)):
            fates.append(Fate(name, "new"))
        elif name not in weights:
            raise ModelError(f"the pretrained weights have no tensor {name}; they are incomplete")
        elif weights[name].shape != (shape := _source_shape(name, target, source)):
            shapes = f"{list(weights[name].shape)} in the file, {list(shape)} in the model"
            raise ModelError(f"pretrained tensor {name}: {shapes}; the file does not match its model.json")
        elif name == POS_EMBED:
            fates.append(_transfer_pos_embed(target, weights[name], source, model.config, reinit_pos_embed))
        else:
            target.copy_(weights[name])
            fates.append(Fate(name, "kept"))
    known = dict(model.named_parameters())
    for name in sorted(weights.keys() - known.keys()):
        if not name.startswith((HEAD, PRE_LOGITS)):
            raise ModelError(f"pretrained tensor {name} has no place in the model")
        fates.append(Fate(name, "dropped"))
    return fates


def _source_shape(name: str, target: torch.Tensor, source: ModelConfig) -> tuple[int, ...]:
    """The shape of a pretrained tensor that is kept or resized."""
    return (1, source.num_tokens, source.width) if name == POS_EMBED else tuple(target.shape)


def _transfer_pos_embed(target: torch.Tensor, table: torch.Tensor, source: ModelConfig, new: ModelConfig, reinit: bool) -> Fate:
    if reinit:
        return Fate(POS_EMBED, "new", "as the recipe asks")
    if source.grid_size == new.grid_size:
        target.copy_(table)
        return Fate(POS_EMBED, "kept")
    target.copy_(posembed.resize(table.float(), source.grid_size, new.grid_size, new.num_prefix_tokens))
    return Fate(POS_EMBED, "resized", f"{source.grid_size}x{source.grid_size} -> {new.grid_size}x{new.grid_size}")


def summarise(fates: list[Fate]) -> str:
    """`10 kept, 1 resized (pos_embed 4x4 -> 6x6), 2 new (head.weight, head.bias)`"""
    parts = []
    for fate in ("kept", "resized", "new", "dropped"):
        found = [f for f in fates if f.fate == fate]
        if found:
            names = ", ".join(" ".join(filter(None, (f.name, f.detail))) for f in found)
            parts.append(f"{len(found)} {fate}" + ("" if fate == "kept" else f" ({names})"))
    return ", ".join(parts)
