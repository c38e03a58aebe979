"""`vitscale data ...`: the commands about shards; here those that make them."""

import argparse
from pathlib import Path

from vitscale.arguments import Commands, add, count
from vitscale.cli_inspect import add_inspect_commands
from vitscale.cli_order import add_order_commands


def add_data_commands(commands: Commands) -> None:
    build = add(
        commands,
        "build",
        run_data_build,
        "images into shards, with a manifest per split",
        "vitscale data build images/ --out data/mine --val-fraction 0.1",
    )
    build.add_argument("source", help="folder of class folders, or `digits` (the 1,797 scans inside scikit-learn)")
    build.add_argument("--out", type=Path, required=True, help="folder for train.json, val.json and the shards")
    build.add_argument("--val-fraction", type=float, default=0.2, help="held-out part (default: 0.2)")
    build.add_argument(
        "--shard-samples",
        type=count,
        nargs="+",
        default=[1000],
        metavar="N",
        help="images per shard; several numbers are successive shards, the last repeats (default: 1000)",
    )
    build.add_argument("--seed", type=int, default=0, help="of shuffle and split (default: 0)")

    index = add(
        commands,
        "index",
        run_data_index,
        "index tars that exist and list them in a manifest",
        "vitscale data index shards/*.tar --out shards/train.json",
    )
    index.add_argument("shards", nargs="+", type=Path, metavar="SHARD", help="webdataset tars, in the order that is to count")
    index.add_argument("--out", type=Path, required=True, help="manifest to write")
    index.add_argument("--classes", type=Path, help="text file with one class name per line")
    add_inspect_commands(commands)
    add_order_commands(commands)


def run_data_build(args: argparse.Namespace) -> int:
    from data_pipeline import build

    collection = build.digits() if args.source == "digits" else build.folder(Path(args.source))
    splits = build.build(collection, args.out, args.val_fraction, args.shard_samples, args.seed)
    for manifest in splits.values():
        print(
            f"{manifest.location}: {manifest.num_samples:,} images in {len(manifest.urls)} shards, {len(manifest.classes)} classes"
        )
    return 0


def run_data_index(args: argparse.Namespace) -> int:
    from data_pipeline.build import list_shards

    classes = args.classes.read_text(errors="replace").splitlines() if args.classes else []
    manifest = list_shards(args.shards, args.out, classes)
    print(f"{manifest.location}: {manifest.num_samples:,} images in {len(manifest.urls)} shards")
    return 0
