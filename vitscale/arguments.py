"""What the commands share: arguments, and ways of saying what was found."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command: TypeAlias = Callable[[argparse.Namespace], int | None]  # None = 0 as the exit status
Arguments = argparse.ArgumentParser  # to be taken over by commands


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


def store(uri: str) -> str:
    """An MLflow store; "" = that of the environment, or of the folder `runs` here."""
    from vitscale.tracking import tracking_uri

    return uri or tracking_uri(None, "runs")


def shared(*names: str, **options: Any) -> Arguments:
    """An argument for `add`."""
    parser = Arguments(add_help=False)
    parser.add_argument(*names, **options)
    return parser


RECIPE_HELP = "recipe file, or the name of one that ships with vitscale (recipes/demo/pretrain.yaml)"
URI_HELP = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/RUN_ID"
MODEL_HELP = f"checkpoint directory, file of weights, {URI_HELP}"
CLUSTER_HELP = "cluster file, or the name of one that ships with vitscale (recipes/clusters/h200-infiniband.yaml)"

RECIPE = shared("recipe", help=RECIPE_HELP)
OVERRIDES = shared("overrides", nargs="*", metavar="a.b=c", help="values to change, e.g. train.global_batch=512")
CLUSTER = shared("--cluster", required=True, help=CLUSTER_HELP)
MODEL = shared("model", help=MODEL_HELP)
IMAGE_SIZE = shared("--image-size", type=count, help="another size of images, in pixels (default: the model's)")
MLFLOW = shared("--tracking-uri", type=store, default="", help="MLflow (default: MLFLOW_TRACKING_URI, else runs/mlflow.db)")
BATCH = shared("--batch", type=count, default=64, help="images at a time in each process (default: 64)")
PROCS = shared("--procs", type=count, help="processes (default: one per GPU, else 1)")
WORKERS = shared("--workers", type=count, help="processes (default: one per CPU)")
JSON = shared("--json", action="store_true", help="as JSON")


def add(commands: Commands, command: Command, example: str, *arguments: Arguments) -> argparse.ArgumentParser:
    """The command NAME of a function `run_NAME` or `run_data_NAME`, whose docstring is its help."""
    text = " ".join((command.__doc__ or "").split()).removesuffix(".")
    name = command.__name__.rpartition("_")[2]
    parser = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}", parents=arguments)
    parser.set_defaults(command=lambda args: command(args) or 0)
    return parser


def tell(found: Mapping[str, Any], as_json: bool, text: str = "") -> None:
    """Print what was found: as one JSON object, as the text that its values belong in, or a line for each."""
    if as_json:
        print(json.dumps(found))
    elif text:
        print(text.format(**found))
    else:
        for name, value in found.items():
            print(f"{name:<34}{_told(value)}")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_told(inner)}" for name, inner in value.items())
    if isinstance(value, int | float):
        return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.4g}"
    return str(value)
