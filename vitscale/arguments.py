"""Words that the commands share."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def count(text: str) -> int:
    """An argument that is a number of things; 4e9 is one too."""
    if not 1 <= (number := float(text)) <= 1e12 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 to 1e12")
    return int(number)


def seed(text: str) -> int:
    """An argument that random numbers follow from."""
    if not 0 <= (number := int(text)) < 2**64:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0 and below 2^64")
    return number


def add(commands: Commands, command: Callable[[argparse.Namespace], int], example: str) -> argparse.ArgumentParser:
    """The command NAME of a function `run_NAME` or `run_data_NAME`, whose docstring is its help."""
    text = " ".join((command.__doc__ or "").split()).removesuffix(".")
    name = command.__name__.rpartition("_")[2]
    parser = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
    parser.set_defaults(command=command)
    return parser


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=count, help="processes (default: one per CPU)")


def tell(found: Mapping[str, Any], as_json: bool) -> None:
    """Print what was found, by name: one JSON object, or a line for each."""
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<34}{_told(value)}")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_told(inner)}" for name, inner in value.items())
    if isinstance(value, int | float):
        return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.4g}"
    return str(value)
