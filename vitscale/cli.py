"""`vitscale ...`: the commands. Everything heavy is imported by the command that needs it, so that --help is quick."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vitscale.arguments import CLUSTER, CLUSTER_HELP, JSON, OVERRIDES, PROCS, RECIPE, RECIPE_HELP, Commands, add, count, shared
from vitscale.cli_data import add_data_commands
from vitscale.cli_models import add_exchange_commands, add_judging_commands

if TYPE_CHECKING:
    from launcher.cluster import Cluster
    from vitscale.config import RunConfig
    from vitscale.rundir import RunDir


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
    parser = argparse.ArgumentParser(prog="vitscale", description="Pretrain and fine-tune Vision Transformers on webdatasets.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_run_commands(commands)
    add_judging_commands(commands)
    add_exchange_commands(commands)
    data = commands.add_parser(
        "data",
        help="build, index and look into shards; their order; how fast they are read",
        epilog="example: vitscale data build images/ --out data/mine",
    )
    add_data_commands(data.add_subparsers(metavar="COMMAND", required=True))
    return parser


def add_run_commands(commands: Commands) -> None:
    example = "vitscale train recipes/demo/pretrain.yaml --procs 2 train.total.epochs=10"
    train = add(commands, run_train, example, RECIPE, OVERRIDES, PROCS)
    train.add_argument("--port", type=int, default=0, help="port on which they meet (default: a free one)")

    example = "vitscale submit recipes/pretrain/vit-l16-in21k.yaml --cluster recipes/clusters/cpu.yaml"
    submit = add(commands, run_submit, example, RECIPE, OVERRIDES, CLUSTER)
    submit.add_argument("--dry-run", action="store_true", help="print script and launch command, submit nothing")

    example = "vitscale sweep recipes/demo/finetune.yaml 'optim.lr=[0.01,0.03,0.1]' 'seed=[0,1,2]'"
    sweep = add(commands, run_sweep, example, RECIPE, OVERRIDES, PROCS)
    sweep.add_argument("--cluster", help=f"submit to it; {CLUSTER_HELP}")
    sweep.add_argument("--metric", default="eval/top1", help="what is compared (default: eval/top1)")
    sweep.add_argument(
        "--show", action="store_true", help="only the table of what there is; MLflow is told the best when all have ended"
    )

    show = add(commands, run_show, "vitscale show recipes/pretrain/vit-l16-in21k.yaml --procs 64", RECIPE, OVERRIDES, JSON)
    show.add_argument("--procs", type=count, default=1, help="processes to lay it out for (default: 1)")
    show.add_argument("--model", action="store_true", help="every layer with its shape and parameters")
    show.add_argument("--run-dir", action="store_true", help="only where the run is or will be")

    sync = add(commands, run_sync, "vitscale sync runs/digits-pretrain")
    sync.add_argument("run_dir", type=Path, help="run directory")

    demo = add(commands, run_demo, "vitscale demo")
    demo.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to train on (default: cpu)")
    demo.add_argument("--seed", type=int, default=0, help="another seed runs beside the others (default: 0)")
    demo.add_argument("--runs", default="runs", help="folder for everything it writes (default: runs)")

    example = "vitscale plan recipes/pretrain/vit-l16-in21k.yaml --cluster recipes/clusters/h200-infiniband.yaml"
    add(commands, run_plan, example, RECIPE, OVERRIDES, CLUSTER, JSON)

    recipe = shared("recipe", nargs="?", help=RECIPE_HELP)
    doctor = add(commands, run_doctor, "vitscale doctor recipes/demo/pretrain.yaml", recipe, OVERRIDES)
    doctor.add_argument("--cluster", help=CLUSTER_HELP)


def run_train(args: argparse.Namespace) -> int:
    """Run a recipe on this machine, from where it stands to its end."""
    return train(args.recipe, args.overrides, args.procs, args.port)


def train(path: str, overrides: list[str], procs: int | None = None, port: int = 0) -> int:
    """Check all that can be checked, then start the processes, by default one per GPU; a finished run starts none."""
    from launcher import command, local
    from vitscale import preflight, recipe, stopsignal
    from vitscale.rundir import RunDir

    launched, cfg = time.time(), recipe.load(path, overrides)
    procs = procs or local.default_processes(cfg.hardware)
    local.check_port(port)
    run_dir = RunDir(cfg)
    run_dir.check_free()
    preflight.check(cfg, procs, {})
    if is_finished(cfg, run_dir):
        return 0
    run_dir.write_status("starting")
    print(f"{cfg.name}: starting {procs} {'process' if procs == 1 else 'processes'}", flush=True)
    words = [str(recipe.find(path)), *overrides]
    environment = command.local_environment(procs, cfg.hardware.device, len(os.sched_getaffinity(0)))
    environment["VITSCALE_LAUNCHED"] = str(launched)
    exit_status = local.run(command.local_command("vitscale.train", words, procs, port), environment)
    if stopsignal.received and run_dir.status["state"] == "starting":  # before any process could take note
        run_dir.write_status("stopped", reason="signal")
    # After a signal accelerate reports failure, however well the processes stopped; the run's own word counts.
    return 0 if run_dir.status["state"] in ("finished", "stopped") else exit_status or 1


def is_finished(cfg: "RunConfig", run_dir: "RunDir") -> bool:
    """Whether nothing is left to do, which is then said; of a run made longer, or to be published, something is."""
    from vitscale import recipe

    status = run_dir.status
    published = f"models:/{cfg.publish.name}@{cfg.publish.alias}" if cfg.publish else status.get("model")
    finished = status.get("state") == "finished" and recipe.load(run_dir.recipe).train.total == cfg.train.total
    if not finished or status["model"] != published:
        return False
    print(f"{cfg.name}: already finished at step {status['step']:,}; nothing to do")
    return True


def run_submit(args: argparse.Namespace) -> None:
    """Queue a run on a Slurm cluster, where it goes on until it is finished."""
    import shlex

    from launcher import cluster, submit

    where = cluster.load(args.cluster)
    cfg, run_dir, script = to_submit(args.recipe, args.overrides, where)
    if args.dry_run:
        print(f"{script}\n# On each node:\n# {shlex.join(submit.launch_line(where, run_dir.path))}")
    elif not is_finished(cfg, run_dir):
        if run_dir.status.get("state") == "finished":  # and made longer since
            run_dir.write_status("starting")
        job = submit.queue(submit.write(cfg, script, run_dir.path))
        print(f"{cfg.name}: job {job}; its output: {run_dir.path}/job-*.log")


def to_submit(recipe: str, overrides: list[str], where: "Cluster") -> tuple["RunConfig", "RunDir", str]:
    """Recipe, run directory and script of a job, if it can work."""
    from launcher import submit
    from vitscale import preflight
    from vitscale.rundir import RunDir

    cfg = submit.resolve(recipe, overrides, where)
    run_dir = RunDir(cfg)
    preflight.check_launch(cfg, where.world_size, {})
    run_dir.check_free()
    run_dir.check(cfg)
    if where.gpu:
        from vitscale import plan  # it takes torch, and seconds

        plan.check_memory(cfg, where)
    return cfg, run_dir, submit.script(cfg, where, run_dir.path)


def run_sweep(args: argparse.Namespace) -> int:
    """A run for each combination of values, here one after another or as an array on a cluster; and which is best."""
    from launcher import cluster, submit
    from vitscale.sweep import Sweep

    sweep = Sweep(args.recipe, args.overrides)
    if not args.show:
        parent = f"tracking.parent={sweep.begin()}"
        words = [[*trial.overrides, parent] for trial in sweep.trials]
        if args.cluster:
            where = cluster.load(args.cluster)
            jobs = [to_submit(args.recipe, each, where) for each in words]
            scripts = [submit.write(cfg, script, run_dir.path) for cfg, run_dir, script in jobs]
            print(f"{sweep.name}: array {submit.submit_array(where, sweep.name, sweep.folder, scripts)} of {len(jobs)} runs")
            return 0
        for trial, each in zip(sweep.trials, words, strict=True):
            train(args.recipe, each, args.procs)  # one that fails does not keep the others from running
            if sweep.states[trial.name] == "stopped":
                break
    print(*sweep.lines(args.metric), sep="\n")
    if sweep.has_ended():
        sweep.end(args.metric)
    return int({*sweep.states.values()} != {"finished"})


def run_show(args: argparse.Namespace) -> None:
    """Resolved recipe and the arithmetic that follows from it."""
    from vitscale import recipe
    from vitscale.rundir import RunDir

    cfg = recipe.load(args.recipe, args.overrides)
    if args.run_dir:
        print(RunDir(cfg).path)
        return
    from vitscale import show

    numbers = show.derived(cfg, args.procs)
    layers = show.layers(cfg.model) if args.model else []
    if args.json:
        values = {"recipe": cfg.model_dump(mode="json", by_alias=True), "derived": numbers}
        print(json.dumps({**values, "layers": [layer._asdict() for layer in layers]} if args.model else values, indent=1))
        return
    print(recipe.dump(cfg))
    for name, value in numbers.items():
        print(f"# {name:<34}{'unknown until the data exist' if value is None else value}")
    for line in show.layer_lines(layers) if layers else ():
        print(f"# {line}")


def run_sync(args: argparse.Namespace) -> None:
    """Send MLflow what it lacks of a run."""
    from vitscale.courier import sync

    print(f"{args.run_dir}: MLflow run {sync(args.run_dir)} is complete")


def run_demo(args: argparse.Namespace) -> int:
    """Pretrain, fine-tune and publish on handwritten digits, in minutes."""
    from vitscale.demo import demo

    return demo(args.device, args.seed, args.runs)


def run_plan(args: argparse.Namespace) -> None:
    """Memory, time and cost of a recipe on a cluster, for every ZeRO stage, worked out without either."""
    from launcher import cluster as clusters
    from vitscale import plan, recipe

    cfg, cluster = recipe.load(args.recipe, args.overrides), clusters.load(args.cluster)
    found = plan.plan(cfg, cluster)
    print(json.dumps(found, indent=1) if args.json else "\n".join(plan.lines(found)))
    plan.check_memory(cfg, cluster)  # here, where the table beside it shows the way out


def run_doctor(args: argparse.Namespace) -> int:
    """What could keep a run from working on this machine, with what to do about it; exit status 1 where something fails."""
    from vitscale.finding import check_origin

    failed = check_origin().tell()
    if failed:  # what follows imports all of our packages
        return 1
    from launcher import cluster
    from vitscale import doctor, recipe

    cfg = recipe.load(args.recipe, args.overrides) if args.recipe else None
    for finding in doctor.examine(cfg, cluster.load(args.cluster) if args.cluster else None):
        failed |= finding.tell()
    return int(failed)


if __name__ == "__main__":
    main()
