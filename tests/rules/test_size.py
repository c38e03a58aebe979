"""The project stays small, its files and functions short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = sorted(path for package in ("vitscale", "data_pipeline", "launcher") for path in (ROOT / package).rglob("*.py"))
MAX_LINES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 12_300, 400, 50


def test_the_whole():
    lines = [line for path in SOURCE for line in path.read_text().splitlines() if line.strip()]
    assert 1_000 < len(lines) < MAX_LINES  # blank lines are the formatter's


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION_LINES} == {}
