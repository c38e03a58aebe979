"""`vitscale data order` and `simulate`: what is in a step, and what the order costs at any scale."""

import argparse
import json
from typing import TYPE_CHECKING

from vitscale.arguments import Commands, add, count, seed, tell

if TYPE_CHECKING:
    from data_pipeline.manifest import Manifest
    from data_pipeline.order import Order


def add_order_commands(commands: Commands) -> None:
    order = add(commands, run_data_order, "vitscale data order data/mine/train.json --global-batch 4096 --steps 81234 --json")
    order.add_argument("manifests", nargs="*", metavar="MANIFEST", help="of each source, path or URL (default: the recipe's)")
    batch = order.add_mutually_exclusive_group(required=True)
    batch.add_argument("--global-batch", type=count, metavar="G", help="images per step")
    batch.add_argument("--recipe", help="take what is not given here from this recipe")
    order.add_argument("--seed", type=seed, metavar="S", help="default: 0")
    counted = "steps A, ..., B - 1, or A alone; they count from 0, so what metrics and ledger call step 5 is 4 here"
    order.add_argument("--steps", type=steps, required=True, metavar="A:B", help=counted)
    order.add_argument("--ranks", type=count, default=1, metavar="R", help="processes (default: 1)")
    order.add_argument("--json", action="store_true", help="one line per step, with a list of keys per rank")

    simulate = add(commands, run_data_simulate, "vitscale data simulate --samples 4e9 --shards 400000 --ranks 4096")
    simulate.add_argument("--samples", type=count, default=4_000_000_000, help="default: 4e9")
    simulate.add_argument("--shards", type=count, default=400_000, help="default: 400000")
    simulate.add_argument("--ranks", type=count, default=4096, help="default: 4096")
    simulate.add_argument("--global-batch", type=count, default=32_768, metavar="G", help="default: 32768")
    simulate.add_argument("--json", action="store_true", help="as JSON")
    for parser in (order, simulate):
        parser.add_argument("--lanes", type=count, metavar="L", help="default: G")
        parser.add_argument("--shuffle-block", type=count, metavar="B", help="default: that of recipes")


def steps(text: str) -> range:
    """`3:7` or `3`."""
    first, colon, end = text.partition(":")
    found = range(int(first), int(end) if colon else int(first) + 1)
    if found.start < 0 or not found or found.stop > 2**40:
        raise argparse.ArgumentTypeError(f"{text}: must be A:B with 0 <= A < B")
    return found


def run_data_order(args: argparse.Namespace) -> int:
    """Which samples form which step, on which rank (bad ones that a run replaced are in its data_ledger.jsonl)."""
    from data_pipeline.remote import shown
    from data_pipeline.stream import Shards, list_steps

    manifests, order = _order(args)
    shards, size = Shards(manifests), order.lanes_of(0, args.ranks)[1] * order.per_lane
    for step, slots in list_steps(shards, order, (0, order.lanes), args.steps):
        if args.json:
            keys = [key for _, _, key in slots]
            print(json.dumps({"step": step, "ranks": [keys[i : i + size] for i in range(0, len(keys), size)]}))
            continue
        for slot, (epoch, sample, key) in enumerate(slots):
            print(f"step {step}  rank {slot // size}  epoch {epoch}  {shown(shards.place(sample).url)}  {key}")
    return 0


def _order(args: argparse.Namespace) -> "tuple[list[Manifest], Order]":
    from data_pipeline.config import DataConfig
    from data_pipeline.errors import DataError
    from data_pipeline.manifest import read_manifest
    from data_pipeline.order import Order
    from vitscale import recipe

    if args.recipe:
        cfg = recipe.load(args.recipe)
        locations, weights = [source.manifest for source in cfg.data.train], cfg.data.source_weights
        batch, lanes, block, first = cfg.train.global_batch, cfg.lanes, cfg.data.shuffle_block, cfg.seed
    else:
        default_block = DataConfig.model_fields["shuffle_block"].default
        locations, weights, batch, lanes, block, first = [], None, args.global_batch, args.global_batch, default_block, 0
    locations = args.manifests or locations
    lanes, block, first = args.lanes or lanes, args.shuffle_block or block, first if args.seed is None else args.seed
    if not locations or (weights and len(weights) != len(locations)):
        raise DataError(f"data order: {len(locations)} manifests; give one or more, or none for those of --recipe")
    manifests = [read_manifest(location) for location in locations]
    return manifests, Order([manifest.samples for manifest in manifests], batch, lanes, block, first, weights)


def run_data_simulate(args: argparse.Namespace) -> int:
    """The order at any scale without data: start, resume, balance and memory of a rank."""
    from data_pipeline.errors import DataError
    from data_pipeline.simulate import Scale, simulate

    lanes, block = args.lanes or args.global_batch, args.shuffle_block or Scale.shuffle_block
    if args.shards > args.samples:
        raise DataError(f"--shards {args.shards}: more than the {args.samples} samples; a shard holds at least one")
    tell(simulate(Scale(args.samples, args.shards, args.ranks, args.global_batch, lanes, block)), args.json)
    return 0
