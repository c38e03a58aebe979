"""The layouts of others. `layouts.toml` has them as tables, and says how to read it."""

import tomllib
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vitscale.weights.rules import Rule, read_rules


class Layout(NamedTuple):
    """A way to name and lay out weights."""

    format: Literal["npz", "timm", "hf", "safetensors"]
    kind: str
    mark: str
    options: dict[str, Any]
    rules: list[Rule]


def _text(table: dict[str, Any], others: dict[str, Any]) -> str:
    """A table's own rules, after those of the one that it is like."""
    text = others[table["like"]]["rules"] if "like" in table else ""
    for theirs, instead in table.get("replace", {}).items():
        text = text.replace(theirs, instead)
    return text + table.get("rules", "")


def _read(path: Path) -> list[Layout]:
    toml = tomllib.loads(path.read_text())
    tables = toml["table"]
    rules = {name: read_rules(_text(table, tables), table.get("first", 0)) for name, table in tables.items()}
    return [Layout(rules=[rule for name in entry.pop("tables") for rule in rules[name]], **entry) for entry in toml["layouts"]]


LAYOUTS = _read(Path(__file__).with_suffix(".toml"))
