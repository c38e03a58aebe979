"""docs/quickstart.md and docs/own-data.md: their commands, one after another, print what the pages quote."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, blocks, commands, is_quoted
from launching import LAUNCH_TIMEOUT_S, clean_environment

HOME = "/home/me/work"  # where the pages were written


def write_files(blocks_, folder: Path) -> None:
    """Those whose first line names them: `# mine.yaml`."""
    for block in blocks_:
        if named := re.match(r"# (\S+\.(?:yaml|py))\n", block.text):
            (folder / named[1]).write_text(block.text)


def environment(folder: Path) -> dict[str, str]:
    """One where `vitscale` and `python` are these here."""
    programs = folder / ".programs"
    programs.mkdir()
    for name, words in (("vitscale", f"{sys.executable} -m vitscale.cli"), ("python", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / name).chmod(0o755)
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    return clean_environment() | path


def without_measured(text: str) -> str:
    """Numbers with digits behind the point are of one machine."""
    return re.sub(r"\d+\.\d{2,}(e-\d+)?|\b1\.0\b", "#", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "own-data"])
def test_a_page_can_be_followed(name: str, tmp_path: Path) -> None:
    found = blocks(ROOT / "docs" / f"{name}.md")
    write_files(found, tmp_path)
    typed = [command for block in found if block.language == "console" for command in commands(block)]
    assert len(typed) >= 6
    variables = environment(tmp_path)
    for command in typed:
        done = subprocess.run(
            command.line,
            shell=True,
            cwd=tmp_path,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LAUNCH_TIMEOUT_S,
            check=False,
        )
        said = done.stdout.replace(str(tmp_path), HOME)
        print(f"$ {command.line}\n{said}")
        assert done.returncode == 0, command.line
        assert is_quoted(without_measured(command.output), without_measured(said)), command.line
