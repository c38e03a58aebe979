"""docs/reference.md, every key of a recipe and of a cluster file: `python tests/config_reference.py` writes it."""

import ast
import inspect
import types
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SerializeAsAny
from pydantic.fields import FieldInfo

from data_pipeline.config import Section
from launcher.cluster import Cluster
from vitscale.config import RunConfig
from vitscale.duration import Duration
from vitscale.model.config import BiTConfig, ModelConfig, ViTConfig

PAGE = Path(__file__).parents[1] / "docs/reference.md"
PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", Duration: "duration"}
BOUNDS = {Ge: ">=", Gt: ">", Le: "<=", Lt: "<"}
MODEL = """\
The model; [model.md](model.md) explains the options. `model.name` says of which kind it is and fills in what is required
below; `custom` takes the numbers from the recipe, and is a BiT where it has `blocks`."""
OR_NULL = " or null"
INTRODUCTION = """\
# Reference

Every key of a recipe, then every key of a cluster file. Written by `python tests/config_reference.py` from
[vitscale/config.py](../vitscale/config.py), [vitscale/model/config.py](../vitscale/model/config.py),
[data_pipeline/config.py](../data_pipeline/config.py) and [launcher/cluster.py](../launcher/cluster.py); a test compares.

- A recipe is YAML 1.2: `1e-3` is a number, `no` is text, digits may have `_` between them. An unknown key, or a value of
  another type, is an error.
- `extends: PATH`, or a list of paths, takes the values of other recipes; later ones win, and what stands in the recipe
  itself wins over them.
- On the command line a key is written with dots: `vitscale train my.yaml optim.lr=0.01 train.total.epochs=30`.
- A *duration* is one of `{steps: 10_000}`, `{samples: 1_000_000}`, `{epochs: 300}`. `null` takes a value away.
- `vitscale show my.yaml` prints every value of a recipe, defaults included.

## Recipe
"""
CLUSTER = """
## Cluster file

Of `vitscale plan`, `submit`, `sweep` and `doctor`; [cluster.md](cluster.md) says how they are used.
"""


def page() -> str:
    recipe, cluster = (table(kind) + "".join(sections(kind)) for kind in (RunConfig, Cluster))
    return INTRODUCTION + recipe + CLUSTER + cluster


def sections(kind: type[Section], prefix: str = "") -> Iterator[str]:
    """A part of the page for each section within."""
    for key, field in keys(kind, prefix):
        for inner in sorted(classes(field.annotation), key=lambda found: found.__name__):
            path = f"{key}.NAME" if get_origin(field.annotation) is dict else key
            yield f"\n### `{path}`\n\n{MODEL if inner is ModelConfig else inner.__doc__}\n"
            yield table(inner, path)
            yield from models(path) if inner is ModelConfig else ()
            yield from sections(inner, path)


def models(path: str) -> Iterator[str]:
    """The two kinds of models: what each has beside the common keys."""
    for kind in (ViTConfig, BiTConfig):
        yield f"\n{kind.__doc__}\n"
        yield rows((key, field) for key, field in keys(kind, path) if key.rpartition(".")[2] not in ModelConfig.model_fields)


def table(kind: type[Section], prefix: str = "") -> str:
    return rows(keys(kind, prefix))


def keys(kind: type[Section], prefix: str) -> list[tuple[str, FieldInfo]]:
    fields = {
        name: FieldInfo.merge_field_infos(kind.model_fields[name], description=text) for name, text in helps(kind).items()
    }
    return [(".".join(filter(None, (prefix, field.alias or name))), field) for name, field in fields.items()]


def helps(kind: type[Section]) -> dict[str, str]:
    """The line below each field, "" where there is none. pydantic could give it, at each import: a tenth of every start."""
    found = dict.fromkeys(kind.model_fields, "")
    for section in (each for each in reversed(kind.__mro__) if issubclass(each, Section)):
        (source,) = ast.parse(inspect.getsource(section)).body
        for field, below in pairwise(source.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = text
    return found


def rows(fields: Any) -> str:
    lines = (f"| `{key}` | {type_of(field)} | {default_of(field)} | {help_of(field)} |\n" for key, field in fields)
    return "\n| key | type | default | |\n|---|---|---|---|\n" + "".join(lines)


def type_of(field: FieldInfo) -> str:
    said, bounds = spelled(field.annotation), limits(field.metadata)
    return f"{said.removesuffix(OR_NULL)}{bounds}{OR_NULL * said.endswith(OR_NULL)}"


def spelled(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return spelled(inner[0]) + limits(inner[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(spelled(each) if each is not types.NoneType else "null" for each in inner)
    if origin is dict:
        return f"mapping of names to {plural(spelled(inner[1]))}"
    if origin is tuple and classes(kind):
        return "section, or list of them"
    if origin is tuple:
        return f"list of {'' if inner[-1] is ... else f'{len(inner)} '}{plural(spelled(inner[0]))}"
    return PLAIN.get(kind, "section")


def plural(words: str) -> str:
    """`numbers > 0` of `number > 0`."""
    return words.replace("number", "numbers").replace("section", "sections")


def limits(metadata: Any) -> str:
    """` >= 0, < 1`, or nothing."""
    flat = [each for outer in metadata for each in (outer.metadata if isinstance(outer, FieldInfo) else [outer])]
    said = [
        f"{BOUNDS[type(each)]} {number(getattr(each, type(each).__name__.lower()))}" for each in flat if type(each) in BOUNDS
    ]
    return f" {', '.join(said)}" if said else ""


def number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if power >= 16 and value == 2**power else f"{value:g}"


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if isinstance(value, Section) and not isinstance(value, Duration) else f"`{yaml_of(value)}`"


def yaml_of(value: Any) -> str:
    """As a recipe has it."""
    if isinstance(value, Duration):
        return "{" + ", ".join(f"{unit}: {count}" for unit, count in value.model_dump(exclude_none=True).items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(yaml_of, value)) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def help_of(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", r"\|")


def classes(kind: Any) -> set[type[Section]]:
    """The sections that a type is made of."""
    if isinstance(kind, type) and issubclass(kind, Section):
        return {kind} - {Duration}
    return {found for inner in get_args(kind) if inner is not SerializeAsAny for found in classes(inner)}


if __name__ == "__main__":
    PAGE.write_text(page())
