"""`vitscale data ...`: the commands that look into shards."""

import argparse
import json

from vitscale.arguments import Commands, add, add_workers, count, seed, tell

MANIFEST_HELP = "manifest, as path or URL"


def add_inspect_commands(commands: Commands) -> None:
    verify = add(commands, run_data_verify, "vitscale data verify data/mine/train.json data/mine/val.json")
    verify.add_argument("manifests", nargs="+", metavar="MANIFEST", help=MANIFEST_HELP)
    verify.add_argument("--num-classes", type=count, help="labels must lie below it (default: the manifest's list of classes)")
    verify.add_argument("--quick", action="store_true", help="headers of images only, none is decoded")
    add_workers(verify)
    verify.add_argument("--json", action="store_true", help="one JSON object per problem, and one at the end of each manifest")

    peek = add(
        commands, run_data_peek, "vitscale data peek data/mine/train.json --out sheet.png --augment RECIPE --sample 0 1 2"
    )
    peek.add_argument("manifests", nargs="+", metavar="MANIFEST", help="manifest, as path or URL; several are numbered through")
    peek.add_argument("--out", required=True, help="PNG to write")
    peek.add_argument("--augment", metavar="RECIPE", help="crop, resize and augment as this recipe does")
    peek.add_argument("--sample", type=int, nargs="+", metavar="N", help="these samples, by number")
    peek.add_argument("--count", type=count, default=64, help="pictures at most (default: 64)")
    peek.add_argument("--seed", type=seed, default=0, help="of the choice of samples (default: 0)")
    peek.add_argument("--size", type=count, default=160, help="side of a picture on the sheet in pixels (default: 160)")

    stats = add(commands, run_data_stats, "vitscale data stats data/mine/train.json")
    stats.add_argument("manifest", help=MANIFEST_HELP)
    stats.add_argument("--sample", type=count, default=1000, metavar="N", help="images whose header is read (default: 1000)")
    stats.add_argument("--seed", type=seed, default=0, help="of their choice (default: 0)")
    stats.add_argument("--json", action="store_true", help="as JSON, with the whole histogram")

    leaks = add(commands, run_data_leaks, "vitscale data leaks data/in1k/val.json data/in21k/train.json")
    leaks.add_argument("a", metavar="A", help=MANIFEST_HELP)
    leaks.add_argument("b", metavar="B", help=MANIFEST_HELP)
    leaks.add_argument("--json", action="store_true", help="one JSON object per image, and one at the end")


def run_data_verify(args: argparse.Namespace) -> int:
    """Read every byte, decode every image and compare with manifest and index; exit status 1 when anything is wrong."""
    from data_pipeline.manifest import read_manifest
    from data_pipeline.verify import check

    total = 0
    for location in args.manifests:
        manifest, found = read_manifest(location), 0
        for report in check(manifest, args.workers, args.num_classes, args.quick):
            for problem in report.problems:
                print(json.dumps(problem._asdict()) if args.json else problem)
            found += len(report.problems)
        counts = {"manifest": manifest.name, "images": manifest.num_samples, "shards": len(manifest.urls), "problems": found}
        text = "{manifest}: {images:,} images in {shards:,} shards, {problems:,} problems"
        print(json.dumps(counts) if args.json else text.format(**counts))
        total += found
    return 1 if total else 0


def run_data_peek(args: argparse.Namespace) -> int:
    """Pictures with labels and keys on one sheet; with a recipe, as the model will see them (before mixing and erasing)."""
    import numpy as np

    from data_pipeline import storage
    from data_pipeline.manifest import read_manifest
    from data_pipeline.peek import Training, contact_sheet, pictures
    from data_pipeline.stream import Shards
    from vitscale import recipe
    from vitscale.errors import UserError

    cfg = recipe.load(args.augment) if args.augment else None
    shards = Shards([read_manifest(location) for location in args.manifests])
    by_chance = np.random.default_rng(args.seed).choice(len(shards), min(args.count, len(shards)), replace=False)
    samples = args.sample or np.sort(by_chance).tolist()
    if min(samples) < 0 or max(samples) >= len(shards):
        raise UserError(f"--sample: found {min(samples)}..{max(samples)}, but samples have the numbers 0..{len(shards) - 1}")
    shown = pictures(shards, samples, Training(cfg.data, cfg.model.image_size, cfg.seed) if cfg else None)
    storage.write(args.out, contact_sheet(shown, args.size))
    print(f"{args.out}: {len(shown)} pictures")
    return 0


def run_data_stats(args: argparse.Namespace) -> int:
    """Images per class and shard, bytes; sizes and formats of some images."""
    from data_pipeline.manifest import read_manifest
    from data_pipeline.stats import stats

    found = stats(read_manifest(args.manifest), args.sample, args.seed)
    histogram = [] if args.json else sorted(found.pop("histogram"), key=lambda row: -row["images"])
    tell(found, args.json)
    for row in histogram:
        bar = "#" * round(40 * row["images"] / max(1, histogram[0]["images"]))
        print(f"{row['images']:>12,}  {row['class']:<30} {bar}".rstrip())
    return 0


def run_data_leaks(args: argparse.Namespace) -> int:
    """Images of A that are in B, byte for byte; exit status 1 when there are any. Images that were encoded again, resized or
    cropped are not found.
    """
    from data_pipeline.leaks import leaks
    from data_pipeline.manifest import read_manifest

    a, b = read_manifest(args.a), read_manifest(args.b)
    found = 0
    for leak in leaks(a, b):
        found += 1
        if args.json:
            print(json.dumps({"a": leak.a._asdict(), "b": leak.b._asdict(), "times_in_b": leak.times}))
        else:
            sides = (f"{side.shard}: sample {side.key} (label {side.label})" for side in (leak.a, leak.b))
            print(" = ".join(sides) + (f" and {leak.times - 1} more" if leak.times > 1 else ""))
    counts = {"a": a.name, "b": b.name, "images": a.num_samples, "in_b": found}
    text = "{a}: {in_b:,} of {images:,} images are in {b}, byte for byte; altered copies would not be seen"
    print(json.dumps(counts) if args.json else text.format(**counts))
    return 1 if found else 0
