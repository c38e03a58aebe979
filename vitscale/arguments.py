"""Words that the commands share."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def count(text: str) -> int:
    """An argument that is a number of things."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: must be at least 1")
    return number


def add(
    commands: Commands,
    name: str,
    command: Callable[[argparse.Namespace], int] | None,
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    """A command with its help and an example."""
    parser = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
    parser.set_defaults(command=command)
    return parser
