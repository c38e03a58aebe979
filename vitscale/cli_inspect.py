"""`vitscale data ...`: the commands that look into shards."""

import argparse
import sys

from vitscale.arguments import Commands, add


def add_inspect_commands(commands: Commands) -> None:
    verify = add(
        commands,
        "verify",
        run_data_verify,
        "read every byte and decode every image",
        "vitscale data verify runs/data/digits/train.json",
    )
    verify.add_argument("manifest", help="manifest file")


def run_data_verify(args: argparse.Namespace) -> int:
    from data_pipeline.manifest import read_manifest
    from data_pipeline.verify import problems

    manifest = read_manifest(args.manifest)
    found = 0
    for problem in problems(manifest):
        print(problem, file=sys.stderr)
        found += 1
    print(f"{manifest.location}: {manifest.num_samples:,} images in {len(manifest.urls)} shards, {found} problems")
    return 1 if found else 0
