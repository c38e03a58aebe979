"""Rows as Markdown and JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_parts.clock import Row


def text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
    return str(value)


def markdown(rows: Sequence[Row]) -> str:
    """A table with every column that any row has, in the order in which they come up."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([text(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(setting: dict[str, str], sections: dict[str, list[Row]]) -> str:
    head = "\n".join(f"- {key}: {value}" for key, value in setting.items())
    return "\n\n".join([head, *(f"### {name}\n{markdown(rows)}" for name, rows in sections.items() if rows)]) + "\n"


def write(out: Path, setting: dict[str, str], sections: dict[str, list[Row]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.md").write_text(document(setting, sections))
    (out / "gpu.json").write_text(json.dumps({"setting": setting, "sections": sections}, indent=1) + "\n")
