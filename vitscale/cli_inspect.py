"""`vitscale data ...`: the commands that look into shards."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vitscale.arguments import Commands, add, count, seed

if TYPE_CHECKING:
    from data_pipeline.order import Slots
    from data_pipeline.stream import Shards
    from vitscale.config import RunConfig

MANIFEST_HELP = "manifest, as path or URL"
NUM_SHOWN = 10  # classes at either end of the histogram


def add_inspect_commands(commands: Commands) -> None:
    verify = add(commands, run_data_verify, "vitscale data verify data/mine/train.json data/mine/val.json")
    verify.add_argument("manifests", nargs="+", metavar="MANIFEST", help=MANIFEST_HELP)
    verify.add_argument("--num-classes", type=count, help="labels must lie below it (default: the manifest's list of classes)")
    verify.add_argument("--quick", action="store_true", help="headers of images only, none is decoded")
    verify.add_argument("--workers", type=count, help="processes (default: one per core)")
    verify.add_argument("--json", action="store_true", help="one JSON object per problem, and one at the end of each manifest")

    peek = add(commands, run_data_peek, "vitscale data peek data/mine/train.json --out sheet.png --augment RECIPE --step 100")
    peek.add_argument("manifests", nargs="+", metavar="MANIFEST", help="manifest, as path or URL; several are numbered through")
    peek.add_argument("--out", required=True, help="PNG to write")
    peek.add_argument("--augment", metavar="RECIPE", help="crop, resize and augment as this recipe does")
    which = peek.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="images of this global step, in the order of the recipe of --augment")
    which.add_argument("--sample", type=int, nargs="+", metavar="N", help="these samples, by number")
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
    leaks.add_argument("--pixels", action="store_true", help="compare decoded pixels, in whatever file; decodes all of A and B")
    leaks.add_argument("--json", action="store_true", help="one JSON object per image, and one at the end")


def run_data_verify(args: argparse.Namespace) -> int:
    """Read every byte, decode every image and compare with manifest and index; exit status 1 when anything is wrong."""
    from data_pipeline.manifest import read_manifest
    from data_pipeline.pool import default_workers
    from data_pipeline.verify import check

    total = 0
    for location in args.manifests:
        manifest, found = read_manifest(location), 0
        for report in check(manifest, args.workers or default_workers(), args.num_classes, args.quick):
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
    from data_pipeline import storage
    from data_pipeline.manifest import read_manifest
    from data_pipeline.peek import Training, contact_sheet, pictures
    from data_pipeline.stream import Shards
    from vitscale import recipe

    cfg = recipe.load(args.augment) if args.augment else None
    shards = Shards([read_manifest(location) for location in args.manifests])
    training = Training(cfg.data, cfg.model.image_size, cfg.seed) if cfg else None
    shown = pictures(shards, choose(args, shards, cfg), training)
    storage.write(args.out, contact_sheet(shown, args.size))
    print(f"{args.out}: {len(shown)} pictures")
    return 0


def choose(args: argparse.Namespace, shards: "Shards", cfg: "RunConfig | None") -> "Slots":
    """Which samples to show, in which epoch: those named, those of a step, or some by chance."""
    import numpy as np

    from data_pipeline.order import Order, Slots
    from vitscale.errors import UserError

    if args.step is not None:
        if cfg is None or args.step < 0:
            raise UserError(f"--step {args.step}: needs --augment RECIPE, whose order it is a step of, and counts from 0")
        weights, sizes = cfg.data.source_weights, [manifest.samples for manifest in shards.manifests]
        if weights and len(weights) != len(sizes):
            raise UserError(
                f"--step: the recipe weighs {len(weights)} sources, {len(sizes)} manifests are given; give them all"
            )
        order = Order(sizes, cfg.train.global_batch, cfg.lanes, cfg.data.shuffle_block, cfg.seed, weights)
        slots = order.view(0, order.lanes).step(args.step)
        return Slots(*(column[: args.count] for column in slots))
    by_chance = np.random.default_rng(args.seed).choice(len(shards), min(args.count, len(shards)), replace=False)
    samples = np.array(args.sample or np.sort(by_chance))
    if samples.min() < 0 or samples.max() >= len(shards):
        raise UserError(f"--sample: found {samples.min()}..{samples.max()}, but samples have the numbers 0..{len(shards) - 1}")
    return Slots(np.zeros_like(samples), samples)


def run_data_stats(args: argparse.Namespace) -> int:
    """Images per class and shard, bytes; sizes and formats of some images."""
    from data_pipeline.manifest import read_manifest
    from data_pipeline.stats import stats

    found = stats(read_manifest(args.manifest), args.sample, args.seed)
    print(json.dumps(found) if args.json else "\n".join(stats_lines(found)))
    return 0


def stats_lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for people; of many classes those with most and fewest images."""
    sampled = found["sampled"]
    yield "{manifest}: {images:,} images in {shards:,} shards, {bytes:,} bytes, {classes:,} classes".format(**found)
    yield f"{'':<20}{'min':>14}{'5 %':>14}{'median':>14}{'95 %':>14}{'max':>14}"
    for name in ("images_per_shard", "bytes_per_shard", "bytes_per_image", "images_per_class"):
        yield f"{name.replace('_', ' '):<20}" + "".join(f"{value:>14,.0f}" for value in found[name].values())
    for name, digits in (("width", 0), ("height", 0), ("aspect", 2)):
        yield f"{name:<20}" + "".join(f"{value:>14,.{digits}f}" for value in sampled[name].values())
    formats = ", ".join(f"{count:,} {name}" for name, count in sampled["formats"].items()) or "none readable"
    yield f"of {sampled['images']:,} images looked at: {formats}; " + (
        f"{sampled['damaged']:,} damaged; {sampled['restart_markers']:.1%} with restart markers"
    )
    yield f"labels {found['label_min']}..{found['label_max']}; {found['without_label']:,} images without label; " + (
        f"largest class / smallest: {found['imbalance']}; {len(found['classes_without_images']):,} classes without images"
    )
    ranked = sorted(found["histogram"], key=lambda row: -row["images"])
    middle = len(ranked) - 2 * NUM_SHOWN
    for row in ranked if middle <= 1 else [*ranked[:NUM_SHOWN], None, *ranked[-NUM_SHOWN:]]:
        bar = "#" * round(40 * row["images"] / max(1, ranked[0]["images"])) if row else ""
        yield f"{row['images']:>12,}  {row['class']:<30} {bar}".rstrip() if row else f"{'...':>12}  {middle:,} more classes"


def run_data_leaks(args: argparse.Namespace) -> int:
    """Images of A that are in B, byte for byte; exit status 1 when there are any. Images that were encoded again, resized or
    cropped are not found.
    """
    from data_pipeline.leaks import leaks
    from data_pipeline.manifest import read_manifest

    a, b = read_manifest(args.a), read_manifest(args.b)
    found = 0
    for leak in leaks(a, b, args.pixels):
        found += 1
        if args.json:
            print(json.dumps({"a": leak.a._asdict(), "b": leak.b._asdict(), "times_in_b": leak.times}))
        else:
            sides = (f"{side.shard}: sample {side.key} (label {side.label})" for side in (leak.a, leak.b))
            print(" = ".join(sides) + (f" and {leak.times - 1} more" if leak.times > 1 else ""))
    by = "pixels" if args.pixels else "bytes"
    counts = {"a": a.name, "b": b.name, "compared": by, "images": a.num_samples, "in_b": found}
    text = "{a}: {in_b:,} of {images:,} images are in {b}, compared by {compared}; altered copies would not be seen"
    print(json.dumps(counts) if args.json else text.format(**counts))
    return 1 if found else 0
