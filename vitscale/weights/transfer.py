"""Pretrained weights into a new model: what fits is kept, position embeddings are resized, the head is new."""

from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from vitscale.errors import ModelError
from vitscale.model import posembed
from vitscale.model.build import Model, parameter_shapes
from vitscale.model.config import ModelConfig, ViTConfig

HEAD = ("head.", "pre_logits.")
POSITIONS = ("pos_embed.", "relative_keys.")


class Fate(NamedTuple):
    """What became of one tensor."""

    name: str
    fate: str  # kept, resized, new or dropped
    detail: str = ""


def fill(model: nn.Module, weights: dict[str, torch.Tensor], config: ModelConfig, path: Path) -> None:
    """Set every parameter from the file; names and shapes must be exactly the model's."""
    check_tensors(weights, config, str(path))
    model.load_state_dict(weights)


@torch.no_grad()
def transfer(
    model: Model,
    weights: dict[str, torch.Tensor],
    source: ModelConfig,
    pos_embed: Literal["linear", "bicubic", "reinit"] = "linear",
    head: Literal["new", "keep"] = "new",
) -> list[Fate]:
    """Fill `model` from the weights of a model with config `source`; a new head stays as initialised (ViT paper, section 3.2).

    Raises ModelError when anything but a new head, its pre-logits and the resolution differs, or when the weights are not those
    of `source`.
    """
    if differences := source.architecture_differences(model.config, with_head=head == "keep"):
        raise ModelError(f"the pretrained model does not fit: {'; '.join(differences)} (here = pretrained, there = recipe)")
    check_tensors(weights, source, "the pretrained weights")
    new = HEAD if head == "new" else ()
    fates = [
        Fate(name, "new", _shape(target))
        if name.startswith(new)
        else _move(name, target, weights, source, model.config, pos_embed)
        for name, target in model.named_parameters()
    ]
    dropped = [name for name in sorted(weights) if name.startswith(new)]
    return fates + [Fate(name, "dropped", _shape(weights[name])) for name in dropped]


def check_tensors(weights: dict[str, torch.Tensor], config: ModelConfig, where: str) -> None:
    """ModelError unless these are exactly the tensors of a model with this config."""
    expected = parameter_shapes(config)
    problems = [f"{name} {_shape(shape)} is missing" for name, shape in expected.items() if name not in weights]
    problems += [f"{name} {_shape(weights[name])} has no place in the model" for name in sorted(weights.keys() - expected)]
    for name, shape in expected.items():
        if name in weights and weights[name].shape != shape:
            problems.append(f"{name} is {_shape(weights[name])}, the model has {_shape(shape)}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ModelError(
            f"{where}: not the tensors of this {config.name} model: {'; '.join(problems[:5])}{more}; "
            "the file is of another model, or model.json is"
        )


def _move(
    name: str, target: torch.Tensor, weights: dict[str, torch.Tensor], source: ModelConfig, new: ModelConfig, method: str
) -> Fate:
    """One tensor of the new model that the pretrained one has, too: from where it comes."""
    if name.startswith(POSITIONS):
        assert isinstance(source, ViTConfig) and isinstance(new, ViTConfig)
        if method == "reinit":
            return Fate(name, "new", "as the recipe asks")
        if source.grid != new.grid:
            target.copy_(resized(name, weights[name], source, new, "bicubic" if method == "bicubic" else "linear"))
            return Fate(name, "resized", " -> ".join("{}x{}".format(*config.grid) for config in (source, new)))
    target.copy_(weights[name])
    return Fate(name, "kept", _shape(target))


def resized(name: str, table: torch.Tensor, source: ViTConfig, new: ViTConfig, method: posembed.Method) -> torch.Tensor:
    """A parameter of the position embedding for the grid of another config."""
    if name == "relative_keys.table":
        return posembed.resize_relative(table, source.grid, new.grid, method)
    if name == "pos_embed.table":
        return posembed.resize(table, source.grid, new.grid, new.num_prefix_tokens, method)
    return posembed.resize_axis(table, new.grid[name == "pos_embed.columns"], method)


def _shape(tensor: torch.Tensor | torch.Size) -> str:
    return str(list(tensor.shape if isinstance(tensor, torch.Tensor) else tensor))


def summarise(fates: list[Fate]) -> str:
    """`29 kept, 1 resized, 2 new`"""
    counts = Counter(fate.fate for fate in fates)
    return ", ".join(f"{counts[fate]} {fate}" for fate in ("kept", "resized", "new", "dropped") if counts[fate])


def table(fates: list[Fate]) -> str:
    width = max(len(fate.name) for fate in fates)
    return "\n".join(f"{fate.name:<{width}}  {fate.fate:<8} {fate.detail}".rstrip() for fate in fates)
