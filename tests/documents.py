"""The documentation as tests read it: pages, their fenced blocks, and the commands in these with what they print."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes/README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("make", "source", "mlflow", "cp", "git", "touch")  # commands that no test runs


class Block(NamedTuple):
    """What stands between two fences."""

    language: str
    text: str


class Command(NamedTuple):
    """A line to type, and what the page shows below it."""

    line: str
    output: str

    @property
    def words(self) -> list[str]:
        """Without what stands before the command, as `NAME=VALUE`, and without a comment."""
        return shlex.split(re.sub(r"^(\w+=\S+ )+|\s+#\s.*", "", self.line))


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text())]


def commands(block: Block) -> list[Command]:
    """After each `$ ` of a console; of a block without a language the lines that are ours."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        return [Command(*found) for found in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)]
    return [Command(line, "") for line in re.findall(r"^(?:\w+=\S+ )*vitscale .*", text, re.MULTILINE) if not block.language]


def is_quoted(quote: str, text: str) -> bool:
    """Whether the lines stand there in this order, one after another but for gaps at `...`; indentation does not count."""
    found = [line.strip() for line in text.splitlines()]
    for piece in re.split(r"^\.\.\.\n", quote, flags=re.MULTILINE):
        lines = [line.strip() for line in piece.splitlines()]
        at = next((at for at in range(len(found) + 1) if found[at : at + len(lines)] == lines), None)
        if at is None:
            return False
        found = found[at + len(lines) :]
    return True
