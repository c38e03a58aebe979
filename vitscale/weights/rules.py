"""Rules that translate names and axes between our tensors and a layout of others, in both directions from one table."""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from braceexpand import braceexpand
from einops import EinopsError, parse_shape, rearrange

from vitscale.errors import ModelError

Tensors = dict[str, torch.Tensor]


class Rule(NamedTuple):
    """One kind of tensor. `{}` in names stands for numbers of blocks, stages or units.

    Several names of theirs are the parts that ours holds one after another along its first axis: q, k and v.
    """

    ours: str
    theirs: tuple[str, ...]
    axes: str = "..."  # ours, or each part of it
    their_axes: str = "..."  # the same letters in their order (einops)
    first: int = 0  # the number that theirs begin to count from


def unpack(tensors: Tensors, rules: list[Rule], where: str) -> Tensors:
    """Their tensors under our names and axes; ModelError for one that no rule knows, or a part without the others."""
    parts: dict[str, dict[int, torch.Tensor]] = {}
    expected: dict[str, Rule] = {}
    for name, tensor in tensors.items():
        rule, part, ours = next(_matches(name, rules), (None, 0, ""))
        if rule is None:
            raise ModelError(
                f"{where}: tensor {name} {list(tensor.shape)} has no place in a model of this project; the file is of a model "
                "that computes something else, or holds more than weights"
            )
        if part in parts.get(ours, {}):
            raise ModelError(f"{where}: {name} is there twice, under two names of {ours}; the file is of two models in one")
        if rule.their_axes.startswith("1 1 1 ") and tensor.ndim == 1:  # a GroupNorm as newer flax keeps it
            tensor = tensor[None, None, None]
        try:
            lengths = parse_shape(tensor, rule.their_axes)
            parts.setdefault(ours, {})[part] = rearrange(tensor, f"{rule.their_axes} -> {rule.axes}")
        except (EinopsError, RuntimeError):  # parse_shape has no error of its own
            raise ModelError(f"{where}: tensor {name} is {list(tensor.shape)}, it should have axes {rule.their_axes}") from None
        if lengths.get("p") != lengths.get("q"):
            raise ModelError(f"{where}: tensor {name} is {list(tensor.shape)}; only weights of square patches can be taken")
        expected[ours] = rule
    return {ours: _joined(parts[ours], rule, ours, where) for ours, rule in expected.items()}


def _joined(parts: dict[int, torch.Tensor], rule: Rule, ours: str, where: str) -> torch.Tensor:
    """Ours of its parts, of which none may be missing."""
    if missing := [name for part, name in enumerate(rule.theirs) if part not in parts]:
        name = missing[0].format(*(number + rule.first for number in _numbers(ours, rule.ours) or ()))
        raise ModelError(f"{where}: of {ours} only a part is there, {name} is missing; the file is incomplete")
    found = [part for _, part in sorted(parts.items())]
    if len(shapes := {str(list(part.shape)) for part in found}) > 1:
        raise ModelError(f"{where}: the parts of {ours} are {' and '.join(sorted(shapes))}, they should be equal")
    return torch.cat([torch.atleast_1d(part) for part in found]) if len(found) > 1 else found[0].contiguous()


def pack(tensors: Tensors, rules: list[Rule], layout: str, **lengths: int) -> Tensors:
    """Our tensors under their names and axes; `lengths` of the letters that ours holds together. ModelError without a rule."""
    packed = {}
    for name, tensor in tensors.items():
        rule, numbers = next(((rule, found) for rule in rules if (found := _numbers(name, rule.ours)) is not None), (None, []))
        if rule is None:
            raise ModelError(f"{name} {list(tensor.shape)} has no place in the {layout} layout; export as safetensors")
        needed = {letter: length for letter, length in lengths.items() if letter in re.findall(r"\w+", rule.axes)}
        for theirs, part in zip(rule.theirs, tensor.chunk(len(rule.theirs)), strict=True):
            theirs = theirs.format(*(number + rule.first for number in numbers))
            packed[theirs] = rearrange(part, f"{rule.axes} -> {rule.their_axes}", **needed).contiguous()
    return packed


def _matches(name: str, rules: list[Rule]) -> Iterator[tuple[Rule, int, str]]:
    """(rule, which part, our name) for a name of theirs."""
    for rule in rules:
        for part, theirs in enumerate(rule.theirs):
            numbers = _numbers(name, theirs)
            if numbers is not None:
                yield rule, part, rule.ours.format(*(number - rule.first for number in numbers))


def _numbers(name: str, pattern: str) -> list[int] | None:
    """The numbers where `pattern` has `{}` or `{:02}`; None where the name is another."""
    found = _expression(pattern).fullmatch(name)
    numbers = [int(number) for number in found.groups()] if found else []
    return numbers if found and pattern.format(*numbers) == name else None  # not block 00


def read_rules(table: str, first: int = 0) -> list[Rule]:
    """The rules of a table in the form that layouts.toml describes."""
    rules = []
    for line in filter(None, table.splitlines()):
        ours, theirs, *axes = re.split(r"\s{2,}", line.strip())
        mine, their_axes = axes[0].split(" -> ") if axes else ("...", "...")
        for name, others in zip(braceexpand(ours), braceexpand(theirs), strict=True):
            parts = braceexpand(others.replace("+", ","))
            rules.append(Rule(_numbered(name), tuple(map(_numbered, parts)), mine, their_axes, first))
    return rules


def _numbered(name: str) -> str:
    return name.replace("**", "{:02}").replace("*", "{}")


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(re.escape(piece) for piece in re.split(r"\{[^}]*\}", pattern)))
