"""`vitscale ...`: the commands. Everything heavy is imported by the command that needs it, so that --help is quick."""

import argparse
import json
import os
import sys
from pathlib import Path

from vitscale.arguments import Commands, add, count
from vitscale.cli_cluster import add_cluster_commands
from vitscale.cli_data import add_data_commands
from vitscale.cli_figures import add_figures_command

RECIPE_HELP = "recipe file, or the name of one that ships with vitscale (recipes/demo/pretrain.yaml)"
OVERRIDES_HELP = "values to change, e.g. train.global_batch=512"
URI_HELP = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/RUN_ID"
MODEL_HELP = f"checkpoint directory, file of weights, {URI_HELP}"


def main() -> None:
    """Exit status 0 = done, 1 = an error said in one paragraph, 2 = wrong usage."""
    args = parse(build_parser(), sys.argv[1:])
    try:
        status = args.command(args)
        sys.stdout.flush()  # here, where a closed pipe is no error
        sys.exit(status)
    except BrokenPipeError:  # `vitscale show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        from vitscale.errors import USER_ERRORS

        if not isinstance(error, (*USER_ERRORS, OSError)):  # OSError: a file that cannot be read or written
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """argparse leaves positional words that come after an option; ours are overrides."""
    args, rest = parser.parse_known_args(words)
    if rest and ("overrides" not in args or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitscale", description="Pretrain and fine-tune Vision Transformers on sharded WebDataset streams."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_run_commands(commands)
    add_cluster_commands(commands, RECIPE_HELP, OVERRIDES_HELP)
    add_model_commands(commands)
    data = commands.add_parser(
        "data",
        help="build, index and look into shards; their order; how fast they are read",
        epilog="example: vitscale data build images/ --out data/mine",
    )
    add_data_commands(data.add_subparsers(metavar="COMMAND", required=True))
    return parser


def add_run_commands(commands: Commands) -> None:
    train = add(commands, run_train, "vitscale train recipes/demo/pretrain.yaml --procs 2 train.total.epochs=10")
    train.add_argument("recipe", help=RECIPE_HELP)
    train.add_argument("overrides", nargs="*", metavar="a.b=c", help=OVERRIDES_HELP)
    train.add_argument("--procs", type=count, help="processes (default: one per GPU, else 1)")
    train.add_argument("--port", type=int, default=0, help="port on which they meet (default: a free one)")

    submit = add(
        commands, run_submit, "vitscale submit recipes/pretrain/vit-l16-in21k.yaml --cluster recipes/clusters/cpu.yaml"
    )
    submit.add_argument("recipe", help=RECIPE_HELP)
    submit.add_argument("overrides", nargs="*", metavar="a.b=c", help=OVERRIDES_HELP)
    submit.add_argument("--cluster", required=True, help="what Slurm is asked for: a file like those in recipes/clusters/")
    submit.add_argument("--dry-run", action="store_true", help="print script and launch command, submit nothing")

    show = add(commands, run_show, "vitscale show recipes/pretrain/vit-l16-in21k.yaml --procs 64")
    show.add_argument("recipe", help=RECIPE_HELP)
    show.add_argument("overrides", nargs="*", metavar="a.b=c", help=OVERRIDES_HELP)
    show.add_argument("--procs", type=count, default=1, help="processes to lay it out for (default: 1)")
    show.add_argument("--model", action="store_true", help="every layer with its shape and parameters")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.add_argument("--run-dir", action="store_true", help="only where the run is or will be")

    sync = add(commands, run_sync, "vitscale sync runs/digits-pretrain")
    sync.add_argument("run_dir", type=Path, help="run directory")

    demo = add(commands, run_demo, "vitscale demo")
    demo.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to train on (default: cpu)")
    demo.add_argument("--seed", type=int, default=0, help="another seed runs beside the others (default: 0)")
    demo.add_argument("--runs", default="runs", help="folder for everything it writes (default: runs)")


def add_model_commands(commands: Commands) -> None:
    evaluate = add(commands, run_eval, "vitscale eval models:/digits-vit@champion --data runs/data/digits/val.json")
    evaluate.add_argument("model", help=MODEL_HELP)
    evaluate.add_argument("--data", required=True, help="manifest of the shards")
    evaluate.add_argument("--batch", type=count, default=64, help="images at a time (default: 64)")
    evaluate.add_argument("--image-size", type=count, help="another size of images, in pixels (default: the model's)")
    evaluate.add_argument("--out", type=Path, help="folder for accuracy by class, confusions and some predictions")

    predict = add(commands, run_predict, "vitscale predict models:/digits-vit@champion seven.png")
    predict.add_argument("model", help=MODEL_HELP)
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    predict.add_argument("--top", type=count, default=3, help="classes per image (default: 3)")
    predict.add_argument("--image-size", type=count, help="another size of images, in pixels (default: the model's)")
    predict.add_argument("--json", action="store_true", help="one JSON object per image")

    add_figures_command(commands, MODEL_HELP)
    pull = add(commands, run_pull, "vitscale pull models:/digits-vit@champion --to champion")
    pull.add_argument("model", help=URI_HELP)
    pull.add_argument("--to", type=Path, help="directory to make (default: the user's cache)")

    publish = add(commands, run_publish, "vitscale publish runs/mine/checkpoints/step_00001000 --name mine --alias champion")
    publish.add_argument("checkpoint", type=Path, help="checkpoint directory")
    publish.add_argument("--name", required=True, help="registered model")
    publish.add_argument("--alias", required=True, help="alias that then points at the new version")
    publish.add_argument("--licence", help="of the weights, for the model card (default: what its recipe says)")

    take = add(commands, run_import, "vitscale import L_16.npz --out models/l16")
    take.add_argument("file", type=Path, help=".npz, .safetensors or .pth, or a folder of timm's or transformers'")
    take.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of model.json known better, e.g. model.num_heads=2")
    take.add_argument("--model", help="what it must be, e.g. vit-l16 (default: what the tensors say)")
    take.add_argument("--out", type=Path, required=True, help="directory to make")
    export = add(commands, run_export, "vitscale export models:/digits-vit@champion --format hf --out digits-hf")
    export.add_argument("model", help=MODEL_HELP)
    export.add_argument("--format", choices=("npz", "timm", "hf", "safetensors"), required=True, help="names and axes of whom")
    export.add_argument("--out", type=Path, required=True, help="file, for timm and hf a folder or a file of weights alone")
    for parser in (evaluate, predict, pull, publish, export):
        parser.add_argument("--tracking-uri", help="MLflow (default: MLFLOW_TRACKING_URI, else runs/mlflow.db here)")


def run_train(args: argparse.Namespace) -> int:
    """Run a recipe on this machine, from where it stands to its end."""
    from launcher.local import default_processes
    from vitscale import recipe

    cfg = recipe.load(args.recipe, args.overrides)
    procs = default_processes(cfg.hardware) if args.procs is None else args.procs
    return train(args.recipe, args.overrides, procs, args.port)


def train(path: str, overrides: list[str], procs: int, port: int = 0) -> int:
    """Check all that can be checked, then start the processes; a finished run starts none."""
    from launcher.command import local_command, local_environment
    from launcher.local import check_port, run
    from vitscale import preflight, recipe, stopsignal
    from vitscale.errors import LaunchError
    from vitscale.rundir import RunDir

    if procs < 1:
        raise LaunchError(f"--procs {procs}: at least one process is needed")
    cfg = recipe.load(path, overrides)
    check_port(port)
    run_dir = RunDir(cfg)
    run_dir.check_free()
    preflight.check(cfg, procs, {})
    published = f"models:/{cfg.publish.name}@{cfg.publish.alias}" if cfg.publish else run_dir.status.get("model")
    finished = run_dir.status.get("state") == "finished" and recipe.load(run_dir.recipe).train.total == cfg.train.total
    if finished and run_dir.status["model"] == published:
        print(f"{cfg.name}: already finished at step {run_dir.status['step']:,}; nothing to do")
        return 0
    run_dir.write_status("starting")
    print(f"{cfg.name}: starting {procs} {'process' if procs == 1 else 'processes'}", flush=True)
    environment = local_environment(procs, cfg.hardware.device, len(os.sched_getaffinity(0)))
    exit_status = run(local_command(str(recipe.find(path)), overrides, procs, port), environment)
    if stopsignal.received and run_dir.status["state"] == "starting":  # before any process could take note
        run_dir.write_status("stopped")
    # After a signal accelerate reports failure, however well the processes stopped; the run's own word counts.
    return 0 if run_dir.status["state"] in ("finished", "stopped") else exit_status or 1


def run_submit(args: argparse.Namespace) -> int:
    """Queue a run on a Slurm cluster, where it goes on until it is finished."""
    import shlex

    from launcher import cluster, submit
    from vitscale import plan, preflight
    from vitscale.rundir import RunDir

    where = cluster.load(args.cluster)
    cfg = submit.resolve(args.recipe, args.overrides, where)
    run_dir = RunDir(cfg)
    preflight.check_launch(cfg, where.world_size, {})
    run_dir.check(cfg)
    if where.gpu:  # it takes torch, and seconds
        plan.check_memory(cfg, where)
    script = submit.script(cfg, where, run_dir.path)
    if args.dry_run:
        print(f"{script}\n# On each node:\n# {shlex.join(submit.launch_line(where, run_dir.path))}")
        return 0
    print(f"{cfg.name}: job {submit.submit(cfg, script, run_dir.path)}; its output: {run_dir.path}/job-*.log")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Resolved recipe and the arithmetic that follows from it."""
    from vitscale import recipe, show
    from vitscale.rundir import RunDir

    cfg = recipe.load(args.recipe, args.overrides)
    if args.run_dir:
        print(RunDir(cfg).path)
        return 0
    numbers = show.derived(cfg, args.procs)
    layers = show.layers(cfg.model) if args.model else []
    if args.json:
        values = {"recipe": cfg.model_dump(mode="json", by_alias=True), "derived": numbers}
        print(json.dumps({**values, "layers": [layer._asdict() for layer in layers]} if args.model else values, indent=1))
        return 0
    print(recipe.dump(cfg))
    for name, value in numbers.items():
        print(f"# {name:<34}{'unknown until the data exist' if value is None else value}")
    for line in show.layer_lines(layers) if layers else ():
        print(f"# {line}")
    return 0


def run_sync(args: argparse.Namespace) -> int:
    """Send MLflow what it lacks of a run."""
    from vitscale.courier import sync

    print(f"{args.run_dir}: MLflow run {sync(args.run_dir)} is complete")
    return 0


def run_demo(args: argparse.Namespace) -> int:
    """Pretrain, fine-tune and publish on handwritten digits, in minutes."""
    from vitscale.demo import demo

    return demo(args.device, args.seed, args.runs)


def run_eval(args: argparse.Namespace) -> int:
    """Accuracy of a model on shards."""
    from vitscale.evaluate import evaluate_alone
    from vitscale.pretrained import load_pretrained

    loaded = load_pretrained(args.model, args.tracking_uri, args.image_size)
    tally = evaluate_alone(loaded, args.data, args.batch)
    if args.out:
        from vitscale.figures.due import draw_confusions

        tally.write(args.out, loaded.classes)
        draw_confusions(args.out)
    print(json.dumps(tally.metrics))
    return 0


def run_predict(args: argparse.Namespace) -> int:
    """Likeliest classes of images."""
    from vitscale.pretrained import load_pretrained, open_image

    loaded = load_pretrained(args.model, args.tracking_uri, args.image_size)
    images = [open_image(path) for path in args.images]
    for path, guesses in zip(args.images, loaded.predict(images, args.top), strict=True):
        if args.json:
            print(json.dumps({"image": str(path), "top": [guess._asdict() for guess in guesses]}))
        else:
            print(f"{path}  " + "  ".join(f"{guess.name} {guess.probability:.3f}" for guess in guesses))
    return 0


def run_pull(args: argparse.Namespace) -> int:
    """Download a published model, verified."""
    from vitscale import registry, source
    from vitscale.errors import ModelError
    from vitscale.pull import pull
    from vitscale.tracking import tracking_uri

    uri = args.tracking_uri or tracking_uri(None, "runs")
    if not args.model.startswith(registry.SCHEMES):
        raise ModelError(f"{args.model}: pull takes {registry.FORMS}")
    if args.to:
        pull(args.model, uri, args.to)
    print(args.to or source.locate(args.model, uri))
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write a model's weights as others name them: official .npz, timm, Hugging Face, or plain safetensors."""
    from vitscale import source
    from vitscale.pretrained import open_model
    from vitscale.tracking import tracking_uri
    from vitscale.weights.convert import changed_arithmetic, export

    info, weights = open_model(source.locate(args.model, args.tracking_uri or tracking_uri(None, "runs")))
    print(*export(info, weights, args.format, args.out), sep="\n")
    for name, theirs in changed_arithmetic(info.model, args.format, args.out).items():
        ours = getattr(info.model, name)
        print(
            f"note: {args.out} does not tell that {name} is {ours}; with {theirs} its logits differ a little", file=sys.stderr
        )
    return 0


def run_import(args: argparse.Namespace) -> int:
    """Weights of others into a model directory: the layout is found out, sizes and options follow from the tensors."""
    from vitscale import recipe
    from vitscale.errors import ModelError
    from vitscale.weights.convert import merged, read_model, write_model

    if args.out.exists():
        raise ModelError(f"--out {args.out}: exists; choose another name or remove it")
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
    return 0


def run_publish(args: argparse.Namespace) -> int:
    """Register a checkpoint as a version of a model."""
    from vitscale import source
    from vitscale.publish import publish
    from vitscale.tracking import tracking_uri

    uri = args.tracking_uri or tracking_uri(None, "runs")
    checkpoint = source.checked_directory(str(args.checkpoint))
    version = publish(checkpoint, args.name, args.alias, uri, source.run_id(checkpoint), args.licence)
    print(f"{version.uri} = models:/{args.name}@{args.alias}")
    return 0


if __name__ == "__main__":
    main()
