"""YAML -> RunConfig: `extends`, dotted overrides, strict scalars, and back.

Scalars follow YAML 1.2's core schema (1e-3 is a number, `no` a string, 010 is ten), with `_` between digits and without
hexadecimal and octal; a key given twice is an error. Every value remembers the file and line that set it, for the messages.
"""

import difflib
import re
from collections.abc import Sequence
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vitscale.config import RunConfig
from vitscale.duration import UNITS
from vitscale.errors import RecipeError
from vitscale.model.config import ModelConfig

NULLS, TRUES, FALSES = ("", "~", "null", "Null", "NULL"), ("true", "True", "TRUE"), ("false", "False", "FALSE")
DIGITS = "[0-9]+(_[0-9]+)*"
INTEGER = re.compile(rf"[-+]?{DIGITS}")
FLOAT = re.compile(rf"[-+]?(\.[0-9]+|{DIGITS}(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
SPECIAL = {".inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}
Origins = dict[str, str]  # dotted key -> "file:line"
Config = TypeVar("Config", bound=BaseModel)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe in a file, with overrides of the form `a.b=value` on top."""
    return load_as(RunConfig, path, overrides)


def load_as(kind: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The same of another kind of file."""
    file = find(path)
    origins: Origins = {}
    values = _read(file, origins, ())
    if "about" not in kind.model_fields:
        values.pop("about", None)
    values = reduce(_merge, (_parse_override(override, origins) for override in overrides), values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = (_explain(dict(problem), kind, file, origins, values) for problem in error.errors())
        raise RecipeError("; ".join(problems)) from None


def parse_overrides(overrides: Sequence[str]) -> dict:
    """`a.b=value` of several words as one mapping."""
    return reduce(_merge, (_parse_override(override, {}) for override in overrides), {})


def find(path: str | Path) -> Path:
    """The file, as given or among the recipes that ship with the package."""
    parts = Path(path).parts
    shipped = recipes_dir().joinpath(*parts[1:] if parts[:1] == ("recipes",) else parts)
    for candidate in (Path(path), shipped):
        if candidate.is_file():
            return candidate
    raise RecipeError(f"{path}: no such recipe or cluster file, neither here nor in {recipes_dir()}")


def recipes_dir() -> Path:
    """`recipes/` of the source tree, or its copy inside an installed package."""
    here = Path(__file__).parent
    installed = here / "_recipes"
    return installed if installed.is_dir() else here.parent / "recipes"


def dump(cfg: RunConfig) -> str:
    """The resolved recipe as YAML; `load` reads back the same config."""
    return yaml.dump(cfg.model_dump(mode="json", by_alias=True), Dumper=_Dumper, sort_keys=False, width=120)


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; what is not set is left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = value
    return flat


class _Dumper(yaml.SafeDumper):
    """Quotes every string that our own reader would take for something else."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if _scalar(text) == text else '"')


_Dumper.add_representer(str, _represent_str)


def _read(file: Path, origins: Origins, chain: tuple[Path, ...]) -> dict:
    """A file's values on top of those it extends. `extends` is one path or a list, relative to the file."""
    if file.resolve() in chain:
        raise RecipeError(f"{file}: extends itself by way of {' -> '.join(map(str, chain))}")
    own: Origins = {}
    text = _read_text(file)
    values: dict = _parse(text, str(file), own)
    if header := "\n".join(line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), text.splitlines())):
        values.setdefault("about", header)
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise RecipeError(f"{own['extends']}: extends is a path or a list of paths, found {parents!r}")
    merged: dict = {}
    for parent in parents:
        parent_file = file.parent / parent
        if not parent_file.is_file():
            raise RecipeError(f"{own.get('extends', file)}: extends {parent}, but {parent_file} does not exist")
        merged = _merge(merged, _read(parent_file, origins, (*chain, file.resolve())))
    origins.update(own)
    return _merge(merged, values)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: not readable as text ({error})") from None


def _merge(base: dict, top: dict) -> dict:
    """`top` over `base`, mapping by mapping. A duration replaces a duration: {steps: 5} does not join {epochs: 3}."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not (_is_duration(old) and _is_duration(value)):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _is_duration(value: dict) -> bool:
    return bool(value) and set(value) <= set(UNITS)


def _parse_override(override: str, origins: Origins) -> dict:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{override!r}: an override is KEY=VALUE with a dotted key, e.g. train.global_batch=512")
    source = f"override {override}"
    root = _compose(text, source)
    value: Any = _node(root, source, key, origins) if root else None
    origins[key] = source
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _parse(text: str, source: str, origins: Origins) -> dict:
    root = _compose(text, source)
    try:
        values: Any = _node(root, source, "", origins) if root else {}
    except RecursionError:
        raise RecipeError(f"{source}: an alias (*) in it refers to what it stands in; write the value out") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{source}: a recipe is a mapping of sections, found {type(values).__name__}")
    return values


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def _node(node: yaml.Node, source: str, prefix: str, origins: Origins) -> Any:
    """A YAML node as plain Python, noting where each key stands."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_node(item, source, f"{prefix}.{number}", origins) for number, item in enumerate(node.value)]
    values: dict = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        dotted = f"{prefix}.{key}" if prefix else key
        where = source if source.startswith("override") else f"{source}:{key_node.start_mark.line + 1}"
        if key in values:
            raise RecipeError(f"{where}: {dotted} is given twice; keep one")
        origins[dotted] = where
        values[key] = _node(value_node, source, dotted, origins)
    return values


def _scalar(text: str) -> Any:
    if text in NULLS:
        return None
    if text in TRUES or text in FALSES:
        return text in TRUES
    if INTEGER.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    return SPECIAL.get(text.lower(), text)


def _explain(problem: dict, kind: type[BaseModel], file: Path, origins: Origins, values: dict) -> str:
    """Where, found, allowed, for one problem that pydantic found."""
    location = [str(part) for part in problem["loc"]]
    if location[:3] == ["data", "train", "0"] and "data.train.0" not in {".".join(key.split(".")[:3]) for key in origins}:
        del location[2]  # a single source stands there without a list
    dotted = ".".join(location)
    sections = (".".join(location[:length]) for length in range(len(location), 0, -1))
    where = next((origins[key] for key in sections if key in origins), str(file))
    if problem["type"] == "extra_forbidden":
        known = _fields_at(kind, location[:-1], values)
        close = difflib.get_close_matches(location[-1], known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{where}: unknown key {dotted}; {hint}allowed: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where}: {dotted} is missing; it has no default, so it must be set"
    message = problem["msg"].removeprefix("Value error, ")
    secret = "secret" in message
    found = "" if secret or isinstance(problem["input"], dict | BaseModel) else f" (found {problem['input']!r})"
    return f"{where}: {dotted + ': ' if dotted else ''}{message}{found}"


def _fields_at(kind: type[BaseModel], location: list[str], values: dict) -> list[str]:
    """The keys that the section at a location knows."""
    section: Any = kind
    for name in location:
        if name.isdigit():  # an item of a list of sections, whose kind is known already
            continue
        field = next((f for key, f in section.model_fields.items() if name in (key, f.alias)), None)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if section is None:
            return []
        if section is ModelConfig:
            section = ModelConfig.kind(values[name])
    return [field.alias or key for key, field in section.model_fields.items()]
