"""`vitscale plan` and `vitscale doctor`: before a run begins."""

import argparse
import json
from typing import TYPE_CHECKING

from vitscale.arguments import Commands, add

if TYPE_CHECKING:
    from vitscale.finding import Finding

CLUSTER_HELP = "cluster file, or the name of one that ships with vitscale (recipes/clusters/h200-infiniband.yaml)"


def add_cluster_commands(commands: Commands, recipe_help: str, overrides_help: str) -> None:
    plan = add(
        commands, run_plan, "vitscale plan recipes/pretrain/vit-l16-in21k.yaml --cluster recipes/clusters/h200-infiniband.yaml"
    )
    plan.add_argument("recipe", help=recipe_help)
    plan.add_argument("overrides", nargs="*", metavar="a.b=c", help=overrides_help)
    plan.add_argument("--cluster", required=True, help=CLUSTER_HELP)
    plan.add_argument("--json", action="store_true", help="as JSON")

    doctor = add(commands, run_doctor, "vitscale doctor recipes/demo/pretrain.yaml")
    doctor.add_argument("recipe", nargs="?", help=recipe_help)
    doctor.add_argument("overrides", nargs="*", metavar="a.b=c", help=overrides_help)
    doctor.add_argument("--cluster", help=CLUSTER_HELP)


def run_plan(args: argparse.Namespace) -> int:
    """Memory, time and cost of a recipe on a cluster, for every ZeRO stage, worked out without either."""
    from launcher import cluster as clusters
    from vitscale import plan, recipe

    cfg, cluster = recipe.load(args.recipe, args.overrides), clusters.load(args.cluster)
    found = plan.plan(cfg, cluster)
    print(json.dumps(found, indent=1) if args.json else "\n".join(plan.lines(found)))
    plan.check_memory(cfg, cluster)  # here, where the table beside it shows the way out
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """What could keep a run from working on this machine, with what to do about it; exit status 1 where something fails."""
    from vitscale.finding import check_origin

    if told(check_origin()) == "fail":  # what follows imports all of our packages
        return 1
    from launcher import cluster
    from vitscale import doctor, recipe

    cfg = recipe.load(args.recipe, args.overrides) if args.recipe else None
    findings = doctor.examine(cfg, cluster.load(args.cluster) if args.cluster else None)
    return int("fail" in [told(finding) for finding in findings])


def told(finding: "Finding") -> str:
    """Print it as soon as it is there; returns its status."""
    fix = f"\n      -> {finding.fix}" if finding.fix else ""
    print(f"{finding.status}  {finding.name:<14}{finding.found}{fix}", flush=True)
    return finding.status
