"""`vitscale ...`: the commands about models."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitscale.arguments import BATCH, IMAGE_SIZE, MLFLOW, MODEL, MODEL_HELP, PROCS, URI_HELP, Commands, add, count

if TYPE_CHECKING:
    from vitscale.pretrained import Pretrained
    from vitscale.world import World

RUNS_HELP = "run directories, runs:/RUN_ID or experiments:/NAME: their curves, and accuracy against pre-training compute"


def add_judging_commands(commands: Commands) -> None:
    example = "vitscale eval models:/digits-vit@champion --data runs/data/digits/val.json"
    evaluate = add(commands, run_eval, example, MODEL, IMAGE_SIZE, MLFLOW, BATCH, PROCS)
    evaluate.add_argument("--data", required=True, help="manifest of the shards")
    evaluate.add_argument("--real", help="real.json: also accuracy on ImageNet's reassessed labels (ReaL)")
    evaluate.add_argument("--out", type=Path, help="folder for accuracy by class, confusions and some predictions")

    example = "vitscale fewshot models:/digits-vit@champion --train data/pets/train.json --test data/pets/val.json"
    fewshot = add(commands, run_fewshot, example, MODEL, IMAGE_SIZE, MLFLOW, BATCH, PROCS)
    fewshot.add_argument("--train", required=True, help="manifest of the labelled images that may be learned from")
    fewshot.add_argument("--test", required=True, help="manifest of those that are to be told")
    fewshot.add_argument("--max-train", type=count, default=65_000, help="of these, only its first so many (default: 65,000)")

    example = "vitscale predict models:/digits-vit@champion seven.png"
    predict = add(commands, run_predict, example, MODEL, IMAGE_SIZE, MLFLOW)
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    predict.add_argument("--top", type=count, default=3, help="classes per image (default: 3)")
    predict.add_argument("--json", action="store_true", help="one JSON object per image")

    example = "vitscale figures models:/digits-vit@champion --image seven.png --out figures"
    figures = add(commands, run_figures, example, IMAGE_SIZE, MLFLOW)
    figures.add_argument("model", nargs="?", help=MODEL_HELP)
    figures.add_argument("--image", nargs="+", type=Path, default=[], help="image files to see attention on")
    figures.add_argument("--data", help="manifest of shards with more of them")
    figures.add_argument("--count", type=count, default=16, help="how many of these (default: 16; the paper took 128)")
    figures.add_argument("--runs", nargs="+", default=[], metavar="RUN", help=RUNS_HELP)
    figures.add_argument("--out", type=Path, required=True, help="folder for PNG and SVG files")
    figures.add_argument("--log", action="store_true", help="also into the MLflow run that the model is of")


def add_exchange_commands(commands: Commands) -> None:
    pull = add(commands, run_pull, "vitscale pull models:/digits-vit@champion --to champion", MLFLOW)
    pull.add_argument("model", help=URI_HELP)
    pull.add_argument("--to", type=Path, help="directory to make (default: the user's cache)")

    example = "vitscale publish runs/mine/checkpoints/step_00001000 --name mine --alias champion"
    publish = add(commands, run_publish, example, MLFLOW)
    publish.add_argument("checkpoint", type=Path, help="checkpoint directory")
    publish.add_argument("--name", required=True, help="registered model")
    publish.add_argument("--alias", required=True, help="alias that then points at the new version")
    publish.add_argument("--licence", help="of the weights, for the model card (default: what its recipe says)")

    take = add(commands, run_import, "vitscale import L_16.npz --out models/l16")
    take.add_argument("file", type=Path, help=".npz, .safetensors or .pth, or a folder of timm's or transformers'")
    take.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of model.json known better, e.g. model.num_heads=2")
    take.add_argument("--model", help="what it must be, e.g. vit-l16 (default: what the tensors say)")
    take.add_argument("--out", type=Path, required=True, help="directory to make")

    export = add(commands, run_export, "vitscale export models:/digits-vit@champion --format hf --out digits-hf", MODEL, MLFLOW)
    export.add_argument("--format", choices=("npz", "timm", "hf", "safetensors"), required=True, help="names and axes of whom")
    export.add_argument("--out", type=Path, required=True, help="file, for timm and hf a folder or a file of weights alone")


def run_eval(args: argparse.Namespace) -> int:
    """Accuracy of a model on shards."""

    def evaluate(loaded: "Pretrained", world: "World") -> None:
        from vitscale.evaluate import evaluate_on

        tally = evaluate_on(args.data, loaded, args.batch, world, args.real)
        if world.stopping or not world.is_main:
            return
        print(json.dumps(tally.metrics), flush=True)
        if args.out:
            from vitscale.figures import due  # matplotlib takes its time

            tally.write(args.out, loaded.classes)
            due.draw_confusions(args.out)

    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)  # an error now rather than after the work
    return on_ranks(evaluate, args)


def run_fewshot(args: argparse.Namespace) -> int:
    """Accuracy of closed-form classifiers on a model's features, with 1, 5, 10 and 25 images per class; of neighbours."""

    def measure(loaded: "Pretrained", world: "World") -> None:
        from vitscale import fewshot
        from vitscale.evaluate import features_of

        known, unknown = features_of(loaded, [(args.train, args.max_train), (args.test, None)], args.batch, world)
        if world.is_main and not world.stopping:
            print(fewshot.shortage(known), end="", file=sys.stderr)
            print(json.dumps(fewshot.accuracies(known, unknown)))

    return on_ranks(measure, args)


def on_ranks(work: Callable[["Pretrained", "World"], None], args: argparse.Namespace) -> int:
    """Start `--procs` processes of this command, or be one of them and do the work; 130 = asked to stop."""
    from launcher import command, local
    from vitscale.config import HardwareConfig
    from vitscale.orphan import die_with_parent

    procs = args.procs or local.default_processes(HardwareConfig())
    if "RANK" in os.environ:
        die_with_parent()
    elif procs > 1:
        environment = command.local_environment(procs, "auto", len(os.sched_getaffinity(0)))
        return local.run(command.local_command("vitscale.cli", sys.argv[1:], procs, 0), environment)
    from vitscale.pretrained import load_pretrained
    from vitscale.world import World

    with World(HardwareConfig(), seed=0) as world:
        work(load_pretrained(args.model, args.tracking_uri, args.image_size), world)
        return 130 if world.stopping else 0


def run_predict(args: argparse.Namespace) -> None:
    """Likeliest classes of images."""
    from vitscale.pretrained import load_pretrained, open_image

    loaded = load_pretrained(args.model, args.tracking_uri, args.image_size)
    images = [open_image(path) for path in args.images]
    for path, guesses in zip(args.images, loaded.predict(images, args.top), strict=True):
        if args.json:
            print(json.dumps({"image": str(path), "top": [guess._asdict() for guess in guesses]}))
        else:
            print(path, *guesses, sep="  ")


def run_figures(args: argparse.Namespace) -> None:
    """Draw a model's filters, position embedding, attention distance and rollout; and curves of runs."""
    from vitscale.errors import UserError
    from vitscale.figures import due, model, runs
    from vitscale.pretrained import load_pretrained, open_image

    if not args.model and not args.runs:
        raise UserError("figures: give a model, or runs with --runs")
    if args.model:
        images = [open_image(path) for path in args.image] + (due.some_images(args.data, args.count) if args.data else [])
        for line in model.draw_model(load_pretrained(args.model, args.tracking_uri, args.image_size), images, args.out):
            print(line, flush=True)
        if args.log:
            print(f"logged to run {log(args.model, args.tracking_uri, args.out)}")
    for line in runs.draw_runs(args.runs, args.tracking_uri, args.out) if args.runs else ():
        print(line, flush=True)


def log(model: str, uri: str, folder: Path) -> str:
    """Store the pictures in the model's MLflow run, whose id is returned."""
    from vitscale import errors, registry, source, tracking

    known = model.startswith(registry.SCHEMES)
    run_id = registry.resolve(model, uri).run_id if known else source.run_id(Path(model))
    if run_id is None:
        raise errors.UserError(f"--log: {model} is of no MLflow run; its pictures are in {folder}")
    with tracking.mlflow_errors(uri):
        tracking.connect(uri).log_artifacts(run_id, str(folder), f"figures/{folder.absolute().name}")
    return run_id


def run_pull(args: argparse.Namespace) -> None:
    """Download a published model, verified."""
    from vitscale import errors, pull, registry, source

    if not args.model.startswith(registry.SCHEMES):
        raise errors.ModelError(f"{args.model}: pull takes {registry.FORMS}")
    if args.to:
        pull.pull(args.model, args.tracking_uri, args.to)
    print(args.to or source.locate(args.model, args.tracking_uri))


def run_publish(args: argparse.Namespace) -> None:
    """Register a checkpoint as a version of a model."""
    from vitscale import publish, source

    checkpoint = source.checked_directory(str(args.checkpoint))
    version = publish.publish(checkpoint, args.name, args.alias, args.tracking_uri, source.run_id(checkpoint), args.licence)
    print(f"{version.uri} = models:/{args.name}@{args.alias}")


def run_import(args: argparse.Namespace) -> None:
    """Weights of others into a model directory: the layout is found out, sizes and options follow from the tensors."""
    from vitscale import errors, recipe
    from vitscale.weights.convert import merged, read_model, write_model

    if args.out.exists():
        raise errors.ModelError(f"--out {args.out}: exists; choose another name or remove it")
    changes = recipe.parse_overrides(args.overrides)
    if args.model:
        changes = merged(changes, {"model": {"name": args.model}})
    imported = read_model(args.file, changes)
    write_model(args.out, imported.info, imported.weights)
    model, parameters = imported.info.model, sum(tensor.numel() for tensor in imported.weights.values())
    print(
        f"{args.file}: {imported.format} layout, {model.name}, {model.image_size} pixels, {model.num_classes:,} classes, "
        f"{parameters:,} parameters -> {args.out}"
    )
    if imported.note:
        print(imported.note)


def run_export(args: argparse.Namespace) -> None:
    """Write a model's weights as others name them: official .npz, timm, Hugging Face, or plain safetensors."""
    from vitscale import source
    from vitscale.pretrained import open_model
    from vitscale.weights.convert import changed_arithmetic, export

    info, weights = open_model(source.locate(args.model, args.tracking_uri))
    print(*export(info, weights, args.format, args.out), sep="\n")
    for name, theirs in changed_arithmetic(info.model, args.format, args.out).items():
        ours = getattr(info.model, name)
        print(f"note: {args.out} does not tell that {name} is {ours}; with {theirs} logits differ a little", file=sys.stderr)
