"""`vitscale data ...`: the commands that look into shards, and into their order."""

import argparse
import json
from typing import TYPE_CHECKING

from vitscale.arguments import JSON, WORKERS, Commands, add, count, seed, shared, tell

if TYPE_CHECKING:
    from data_pipeline.manifest import Manifest
    from data_pipeline.order import Order
    from vitscale.config import RunConfig

MANIFEST_HELP = "manifest, as path or URL"
LANES = shared("--lanes", type=count, metavar="L", help="default: G")
SHUFFLE_BLOCK = shared("--shuffle-block", type=count, metavar="B", help="default: that of recipes")


def add_inspect_commands(commands: Commands) -> None:
    verify = add(commands, run_data_verify, "vitscale data verify data/mine/train.json data/mine/val.json", WORKERS)
    verify.add_argument("manifests", nargs="+", metavar="MANIFEST", help=MANIFEST_HELP)
    verify.add_argument("--num-classes", type=count, help="labels must lie below it (default: the manifest's list of classes)")
    verify.add_argument("--quick", action="store_true", help="headers of images only, none is decoded")
    verify.add_argument("--json", action="store_true", help="one JSON object per problem, and one at the end of each manifest")

    example = "vitscale data peek data/mine/train.json --out sheet.png --augment RECIPE --sample 0 1 2"
    peek = add(commands, run_data_peek, example)
    peek.add_argument("manifests", nargs="+", metavar="MANIFEST", help="manifest, as path or URL; several are numbered through")
    peek.add_argument("--out", required=True, help="PNG to write")
    peek.add_argument("--augment", metavar="RECIPE", help="crop, resize and augment as this recipe does")
    peek.add_argument("--sample", type=int, nargs="+", metavar="N", help="these samples, by number")
    peek.add_argument("--count", type=count, default=64, help="pictures at most (default: 64)")
    peek.add_argument("--seed", type=seed, default=0, help="of the choice of samples (default: 0)")
    peek.add_argument("--size", type=count, default=160, help="side of a picture on the sheet in pixels (default: 160)")

    stats = add(commands, run_data_stats, "vitscale data stats data/mine/train.json", JSON)
    stats.add_argument("manifest", help=MANIFEST_HELP)
    stats.add_argument("--sample", type=count, default=1000, metavar="N", help="images whose header is read (default: 1000)")
    stats.add_argument("--seed", type=seed, default=0, help="of their choice (default: 0)")

    leaks = add(commands, run_data_leaks, "vitscale data leaks data/in1k/val.json data/in21k/train.json")
    leaks.add_argument("a", metavar="A", help=MANIFEST_HELP)
    leaks.add_argument("b", metavar="B", help=MANIFEST_HELP)
    leaks.add_argument("--json", action="store_true", help="one JSON object per image, and one at the end")

    example = "vitscale data order data/mine/train.json --global-batch 4096 --steps 81234 --json"
    order = add(commands, run_data_order, example, LANES, SHUFFLE_BLOCK)
    order.add_argument("manifests", nargs="*", metavar="MANIFEST", help="of each source, path or URL (default: the recipe's)")
    batch = order.add_mutually_exclusive_group(required=True)
    batch.add_argument("--global-batch", type=count, metavar="G", help="images per step")
    batch.add_argument("--recipe", help="take what is not given here from this recipe")
    order.add_argument("--seed", type=seed, metavar="S", help="default: 0")
    counted = "steps A, ..., B - 1, or A alone; they count from 0, so what metrics and ledger call step 5 is 4 here"
    order.add_argument("--steps", type=steps, required=True, metavar="A:B", help=counted)
    order.add_argument("--ranks", type=count, default=1, metavar="R", help="processes (default: 1)")
    order.add_argument("--json", action="store_true", help="one line per step, with a list of keys per rank")

    example = "vitscale data simulate --samples 4e9 --shards 400000 --ranks 4096"
    simulate = add(commands, run_data_simulate, example, LANES, SHUFFLE_BLOCK, JSON)
    simulate.add_argument("--samples", type=count, default=4_000_000_000, help="default: 4e9")
    simulate.add_argument("--shards", type=count, default=400_000, help="default: 400000")
    simulate.add_argument("--ranks", type=count, default=4096, help="default: 4096")
    simulate.add_argument("--global-batch", type=count, default=32_768, metavar="G", help="default: 32768")


def steps(text: str) -> range:
    """`3:7` or `3`."""
    first, colon, end = text.partition(":")
    found = range(int(first), int(end) if colon else int(first) + 1)
    if found.start < 0 or not found or found.stop > 2**40:
        raise argparse.ArgumentTypeError(f"{text}: must be A:B with 0 <= A < B")
    return found


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
        tell(counts, args.json, "{manifest}: {images:,} images in {shards:,} shards, {problems:,} problems")
        total += found
    return int(total > 0)


def run_data_peek(args: argparse.Namespace) -> None:
    """Pictures with labels and keys on one sheet; with a recipe, as the model will see them (before mixing and erasing)."""
    import numpy as np

    from data_pipeline import manifest, peek, storage, stream
    from vitscale import errors

    cfg = _recipe(args.augment)
    shards = stream.Shards([manifest.read_manifest(location) for location in args.manifests])
    by_chance = np.random.default_rng(args.seed).choice(len(shards), min(args.count, len(shards)), replace=False)
    samples = args.sample or np.sort(by_chance).tolist()
    if min(samples) < 0 or max(samples) >= len(shards):
        raise errors.UserError(f"--sample: found {min(samples)}..{max(samples)}, but samples have numbers 0..{len(shards) - 1}")
    shown = peek.pictures(shards, samples, peek.Training(cfg.data, cfg.model.image_size, cfg.seed) if cfg else None)
    storage.write(args.out, peek.contact_sheet(shown, args.size))
    print(f"{args.out}: {len(shown)} pictures")


def _recipe(path: str | None) -> "RunConfig | None":
    """Where one is given: importing what reads it takes a third of the command's time."""
    if path is None:
        return None
    from vitscale import recipe

    return recipe.load(path)


def run_data_stats(args: argparse.Namespace) -> None:
    """Images per class and shard, bytes; sizes and formats of some images."""
    from data_pipeline.manifest import read_manifest
    from data_pipeline.stats import stats

    found = stats(read_manifest(args.manifest), args.sample, args.seed)
    histogram = [] if args.json else sorted(found.pop("histogram"), key=lambda row: -row["images"])
    tell(found, args.json)
    for row in histogram:
        bar = "#" * round(40 * row["images"] / max(1, histogram[0]["images"]))
        print(f"{row['images']:>12,}  {row['class']:<30} {bar}".rstrip())


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
    tell(counts, args.json, "{a}: {in_b:,} of {images:,} images are in {b}, byte for byte; altered copies would not be seen")
    return int(found > 0)


def run_data_order(args: argparse.Namespace) -> None:
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


def _order(args: argparse.Namespace) -> "tuple[list[Manifest], Order]":
    from data_pipeline.config import OrderConfig
    from data_pipeline.errors import DataError
    from data_pipeline.manifest import read_manifest
    from data_pipeline.order import Order

    cfg = _recipe(args.recipe)
    data = cfg.data if cfg else OrderConfig.model_construct(train=())
    locations, weights = args.manifests or [source.manifest for source in data.train], data.source_weights
    if not locations or (weights and len(weights) != len(locations)):
        raise DataError(f"data order: {len(locations)} manifests; give one or more, or none for those of --recipe")
    batch, lanes, first = (cfg.train.global_batch, cfg.lanes, cfg.seed) if cfg else (args.global_batch, args.global_batch, 0)
    lanes, block, first = (
        args.lanes or lanes,
        args.shuffle_block or data.shuffle_block,
        first if args.seed is None else args.seed,
    )
    manifests = [read_manifest(location) for location in locations]
    return manifests, Order([manifest.samples for manifest in manifests], batch, lanes, block, first, weights, data.repeated)


def run_data_simulate(args: argparse.Namespace) -> None:
    """The order at any scale without data: start, resume, balance and memory of a rank."""
    from data_pipeline.errors import DataError
    from data_pipeline.simulate import Scale, simulate

    lanes, block = args.lanes or args.global_batch, args.shuffle_block or Scale.shuffle_block
    if args.shards > args.samples:
        raise DataError(f"--shards {args.shards}: more than the {args.samples} samples; a shard holds at least one")
    tell(simulate(Scale(args.samples, args.shards, args.ranks, args.global_batch, lanes, block)), args.json)
