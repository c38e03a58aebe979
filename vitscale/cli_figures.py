"""`vitscale figures`: the pictures of the ViT paper, of a model and of runs."""

import argparse
from pathlib import Path

from vitscale.arguments import Commands, add, count

RUNS_HELP = "run directories, runs:/RUN_ID or experiments:/NAME: their curves, and accuracy against pre-training compute"


def add_figures_command(commands: Commands, model_help: str) -> None:
    figures = add(commands, run_figures, "vitscale figures models:/digits-vit@champion --image seven.png --out figures")
    figures.add_argument("model", nargs="?", help=model_help)
    figures.add_argument("--image", nargs="+", type=Path, default=[], help="image files to see attention on")
    figures.add_argument("--data", help="manifest of shards with more of them")
    figures.add_argument("--count", type=count, default=16, help="how many of these (default: 16; the paper took 128)")
    figures.add_argument("--image-size", type=count, help="another size of images, in pixels (default: the model's)")
    figures.add_argument("--runs", nargs="+", default=[], metavar="RUN", help=RUNS_HELP)
    figures.add_argument("--out", type=Path, required=True, help="folder for PNG and SVG files")
    figures.add_argument("--log", action="store_true", help="also into the MLflow run that the model is of")
    figures.add_argument("--tracking-uri", help="MLflow (default: MLFLOW_TRACKING_URI, else runs/mlflow.db here)")


def run_figures(args: argparse.Namespace) -> int:
    """Draw a model's filters, position embedding, attention distance and rollout; and curves of runs."""
    from vitscale.errors import UserError
    from vitscale.figures.due import some_images
    from vitscale.figures.model import draw_model
    from vitscale.figures.runs import draw_runs
    from vitscale.pretrained import load_pretrained, open_image
    from vitscale.tracking import tracking_uri

    if not args.model and not args.runs:
        raise UserError("figures: give a model, or runs with --runs")
    uri = args.tracking_uri or tracking_uri(None, "runs")
    if args.model:
        images = [open_image(path) for path in args.image] + (some_images(args.data, args.count) if args.data else [])
        for line in draw_model(load_pretrained(args.model, uri, args.image_size), images, args.out):
            print(line, flush=True)
        if args.log:
            print(f"logged to run {log(args.model, uri, args.out)}")
    for line in draw_runs(args.runs, uri, args.out) if args.runs else ():
        print(line, flush=True)
    return 0


def log(model: str, uri: str, folder: Path) -> str:
    """Store the pictures in the model's MLflow run, whose id is returned."""
    from vitscale import registry, source
    from vitscale.errors import UserError
    from vitscale.tracking import connect

    known = model.startswith(registry.SCHEMES)
    run_id = registry.resolve(model, uri).run_id if known else source.run_id(Path(model))
    if run_id is None:
        raise UserError(f"--log: {model} is of no MLflow run; its pictures are in {folder}")
    with registry.mlflow_errors(uri):
        connect(uri).log_artifacts(run_id, str(folder), f"figures/{folder.absolute().name}")
    return run_id
