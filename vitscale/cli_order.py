"""`vitscale data ...`: the commands that ask the order of samples: what is in a step, what it costs, how well it shuffles."""

import argparse
import json
import math
from typing import TYPE_CHECKING

from vitscale.arguments import Commands, add, count, seed

if TYPE_CHECKING:
    from data_pipeline.manifest import Manifest
    from data_pipeline.order import Order
    from data_pipeline.simulate import Scale


def add_order_commands(commands: Commands) -> None:
    order = add(commands, run_data_order, "vitscale data order data/mine/train.json --global-batch 4096 --steps 81234 --json")
    order.add_argument("manifests", nargs="*", metavar="MANIFEST", help="of each source, path or URL (default: the recipe's)")
    batch = order.add_mutually_exclusive_group(required=True)
    batch.add_argument("--global-batch", type=count, metavar="G", help="images per step")
    batch.add_argument("--recipe", help="take what is not given here from this recipe")
    order.add_argument("--lanes", type=count, metavar="L", help="default: G")
    order.add_argument("--shuffle-block", type=count, metavar="B", help="default: that of recipes")
    order.add_argument("--seed", type=seed, metavar="S", help="default: 0")
    order.add_argument("--weights", type=weight, nargs="+", metavar="W", help="one per manifest (default: number of images)")
    order.add_argument(
        "--steps",
        type=steps,
        required=True,
        metavar="A:B",
        help="steps A, ..., B - 1, or A alone; they count from 0, so what metrics and ledger call step 5 is 4 here",
    )
    order.add_argument("--ranks", type=count, default=1, metavar="R", help="processes (default: 1)")
    order.add_argument("--rank", type=int, metavar="r", help="this one only")
    order.add_argument("--json", action="store_true", help="one line per step, with a list of keys per rank")

    simulate = add(commands, run_data_simulate, "vitscale data simulate --samples 4e9 --shards 400000 --ranks 4096")
    _add_scale(simulate, samples=4_000_000_000, shards=400_000, global_batch=32_768)
    simulate.add_argument("--ranks", type=count, default=4096, help="default: 4096")
    simulate.add_argument("--lanes", type=count, metavar="L", help="default: G")
    simulate.add_argument("--shuffle-block", type=count, metavar="B", help="default: that of recipes")

    shuffle = add(commands, run_data_shuffle, "vitscale data shuffle --lanes 256 4096 --shuffle-block 16 64")
    _add_scale(shuffle, samples=1_281_167, shards=1000, global_batch=4096)
    shuffle.add_argument("--classes", type=count, default=1000, help="default: 1000")
    shuffle.add_argument("--lanes", type=count, nargs="+", metavar="L", help="one or several (default: G)")
    shuffle.add_argument("--shuffle-block", type=count, nargs="+", metavar="B", help="one or several (default: a recipe's)")


def _add_scale(parser: argparse.ArgumentParser, samples: int, shards: int, global_batch: int) -> None:
    parser.add_argument("--samples", type=large, default=samples, help=f"default: {samples}")
    parser.add_argument("--shards", type=large, default=shards, help=f"default: {shards}")
    parser.add_argument("--global-batch", type=count, default=global_batch, metavar="G", help=f"default: {global_batch}")
    parser.add_argument("--image-bytes", type=count, default=110_000, help="of an encoded image (default: 110000)")
    parser.add_argument("--seed", type=seed, default=0, help="default: 0")
    parser.add_argument("--json", action="store_true", help="as JSON")


def steps(text: str) -> range:
    """`3:7` or `3`."""
    first, colon, end = text.partition(":")
    found = range(int(first), int(end) if colon else int(first) + 1)
    if found.start < 0 or not found or found.stop > 2**40:
        raise argparse.ArgumentTypeError(f"{text}: must be A:B with 0 <= A < B")
    return found


def weight(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return number


def large(text: str) -> int:
    """A count that may be written as 4e9."""
    if not 1 <= (number := float(text)) <= 1e12 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 to 1e12")
    return int(number)


def check_layout(global_batch: int, lanes: int, ranks: int = 1) -> None:
    """Every lane has the same part of the batch, every rank the same number of lanes."""
    from data_pipeline.errors import DataError

    if global_batch % lanes:
        raise DataError(f"--lanes {lanes} does not divide a global batch of {global_batch}; choose one of its divisors")
    if lanes % ranks:
        raise DataError(f"--ranks {ranks}: {lanes} lanes cannot feed {ranks} ranks evenly; choose a divisor of the lanes")


def default_block() -> int:
    from data_pipeline.config import DataConfig

    return int(DataConfig.model_fields["shuffle_block"].default)


def run_data_order(args: argparse.Namespace) -> int:
    """Which samples form which step, on which rank (bad ones that a run replaced are in its data_ledger.jsonl)."""
    from data_pipeline.errors import DataError
    from data_pipeline.remote import shown
    from data_pipeline.stream import Shards, list_steps

    manifests, order = _order(args)
    if args.rank is not None and not 0 <= args.rank < args.ranks:
        raise DataError(f"--rank {args.rank}: of {args.ranks} ranks there are 0 to {args.ranks - 1}; give one, or more --ranks")
    ranks = range(args.ranks) if args.rank is None else range(args.rank, args.rank + 1)
    size = order.lanes // args.ranks * order.per_lane
    lanes = order.lanes_of(ranks[0], args.ranks)[0], order.lanes_of(ranks[-1], args.ranks)[1]
    shards = Shards(manifests)
    for step, slots in list_steps(shards, order, lanes, args.steps):
        if args.json:
            keys = [key for _, _, key in slots]
            print(json.dumps({"step": step, "ranks": [keys[i : i + size] for i in range(0, len(keys), size)]}))
            continue
        for slot, (epoch, sample, key) in enumerate(slots):
            print(f"step {step}  rank {ranks[slot // size]}  epoch {epoch}  {shown(shards.place(sample).url)}  {key}")
    return 0


def _order(args: argparse.Namespace) -> "tuple[list[Manifest], Order]":
    """The sources, and the order over them."""
    from data_pipeline.errors import DataError
    from data_pipeline.manifest import read_manifest
    from data_pipeline.order import Order
    from vitscale import recipe

    if args.recipe:
        cfg = recipe.load(args.recipe)
        locations, weights = [source.manifest for source in cfg.data.train], cfg.data.source_weights
        batch, lanes, block, first = cfg.train.global_batch, cfg.lanes, cfg.data.shuffle_block, cfg.seed
    else:
        locations, weights, batch, lanes, block, first = [], None, args.global_batch, args.global_batch, default_block(), 0
    locations, weights = args.manifests or locations, args.weights or weights
    lanes, block, first = args.lanes or lanes, args.shuffle_block or block, first if args.seed is None else args.seed
    if not locations or (weights and len(weights) != len(locations)):
        raise DataError(
            f"data order: {len(locations)} manifests and {len(weights or [])} weights; give one or more manifests, and "
            "weights for each or none"
        )
    check_layout(batch, lanes, args.ranks)
    manifests = [read_manifest(location) for location in locations]
    sizes = [manifest.samples for manifest in manifests]
    return manifests, Order(sizes, batch, lanes, block, first, weights)


def run_data_simulate(args: argparse.Namespace) -> int:
    """The order at any scale without data: start, resume, balance and memory of a rank."""
    from data_pipeline.simulate import simulate

    found = simulate(_scale(args, args.lanes or args.global_batch, args.shuffle_block or default_block(), args.ranks))
    if args.json:
        print(json.dumps(found))
        return 0
    for ranks, mib in found.pop("window_mib").items():
        found[f"window_mib at {ranks} ranks"] = mib
    for name, value in found.items():
        print(f"{name:<34}{value:>16,.3f}" if isinstance(value, float) else f"{name:<34}{value:>12,}")
    return 0


def run_data_shuffle(args: argparse.Namespace) -> int:
    """How well lanes and blocks shuffle shards sorted by class, beside a full shuffle."""
    from data_pipeline.shuffle import measure
    from data_pipeline.simulate import windows

    if not args.json:
        print("lanes  block  entropy/full  met again    full  GiB at 1, 8, 64 ranks")
    for lanes in args.lanes or [args.global_batch]:
        for block in args.shuffle_block or [default_block()]:
            scale = _scale(args, lanes, block)
            found, memory = measure(scale.order(scale.sizes()), args.classes, args.seed), windows(scale)
            if args.json:
                print(json.dumps({"lanes": lanes, "shuffle_block": block, **found._asdict(), "window_mib": memory}), flush=True)
                continue
            ratio, gib = found.entropy / found.full_entropy, ", ".join(f"{mib / 1024:.2f}" for mib in memory.values())
            print(f"{lanes:5}{block:7}{ratio:14.4f}{found.met_again:11.3%}{found.full_met_again:8.3%}  {gib}", flush=True)
    return 0


def _scale(args: argparse.Namespace, lanes: int, block: int, ranks: int = 1) -> "Scale":
    from data_pipeline.errors import DataError
    from data_pipeline.simulate import Scale

    check_layout(args.global_batch, lanes, ranks)
    if args.shards > args.samples:
        raise DataError(f"--shards {args.shards}: more than the {args.samples} samples; a shard holds at least one")
    return Scale(args.samples, args.shards, ranks, args.global_batch, lanes, block, args.image_bytes, args.seed)
