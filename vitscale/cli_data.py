"""`vitscale data ...`: the commands about shards; here those that make them, and `bench`."""

import argparse
import json
from pathlib import Path

from vitscale.arguments import JSON, WORKERS, Commands, add, count, seed, shared
from vitscale.cli_inspect import add_inspect_commands

SOURCES_HELP = (
    "folder of class folders; .csv or .jsonl with `path` and `label`; .parquet with `image` and `label`; webdataset tars "
    "(brace lists, urls); ILSVRC2012_img_train.tar; ImageNet-21k (tar of tars, or their folder); cifar-10-binary.tar.gz or "
    "cifar-100-binary.tar.gz (as --val their test images); `digits`, 1,797 scans inside scikit-learn; or `shapes:20000`, so "
    "many made pictures"
)
CLASSES_HELP = "text file with one class name per line, in the order of their numbers"
LABEL_HELP = "where tars have labels: cls, txt, json:FIELD, none, or auto (.cls, else `label` in .json, else .txt; the default)"
LABEL = shared("--label", default="auto", metavar="RULE", help=LABEL_HELP)


def add_data_commands(commands: Commands) -> None:
    add_build(commands)
    example = "vitscale data index 's3://bucket/train-{0000..1023}.tar' --out data/train.json"
    index = add(commands, run_data_index, example, LABEL, WORKERS)
    index.add_argument("shards", nargs="+", metavar="SHARD", help="webdataset tars or brace lists, in the order that counts")
    index.add_argument("--out", required=True, help="manifest to write, local or remote")
    index.add_argument("--classes", help=CLASSES_HELP)
    add_inspect_commands(commands)
    bench = add(commands, run_data_bench, "vitscale data bench --json", JSON)
    bench.add_argument("--images", type=count, default=512, help="photos, cut out of scikit-learn's two (default: 512)")
    bench.add_argument("--rounds", type=count, default=5, help="each takes its turn this often; the median counts (default: 5)")
    bench.add_argument("--threads", type=count, help="of loaders (default: the cores)")


def add_build(commands: Commands) -> None:
    example = "vitscale data build images/ --out data/mine --val-fraction 0.1"
    build = add(commands, run_data_build, example, LABEL, WORKERS)
    build.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCES_HELP)
    build.add_argument("--out", type=local_folder, required=True, help="folder for train.json, val.json and the shards")
    held_out = build.add_mutually_exclusive_group()
    held_out.add_argument("--val", nargs="+", default=[], metavar="SOURCE", help="images of the val split, of the same classes")
    held_out.add_argument("--val-fraction", type=float, default=0.2, help="else the held-out part (default: 0.2; 0 = none)")
    build.add_argument("--classes", help=f"{CLASSES_HELP} (default: all names, sorted)")
    build.add_argument("--synsets", default="", help="of ILSVRC2012_img_val.tar: ILSVRC2012_devkit_t12.tar.gz, or a text file")
    build.add_argument("--allow-pipe", action="store_true", help="run sources of the form pipe:COMMAND, which print a tar")

    size = build.add_mutually_exclusive_group()
    per_shard = "images per shard; several numbers are successive shards, the last repeats (default: 1000)"
    size.add_argument("--shard-samples", type=count, nargs="+", default=[1000], metavar="N", help=per_shard)
    size.add_argument("--shard-bytes", type=byte_size, default=0, metavar="SIZE", help="or how large shards become, e.g. 1GB")
    build.add_argument("--seed", type=seed, default=0, help="of shuffle and split (default: 0)")
    build.add_argument("--no-shuffle", action="store_true", help="keep the order of the sources")
    build.add_argument("--skip-bad", action="store_true", help="leave out what cannot be decoded (SPLIT.skipped.jsonl)")
    part_help = "write every N-th shard from the K-th on, 0 <= K < N, while others write theirs; then build without it"
    build.add_argument("--part", type=part, default=(0, 1), metavar="K/N", help=part_help)

    # Names and defaults as in `data_pipeline.encode.Encoding`.
    build.add_argument("--longest", type=count, metavar="PIXELS", help="make images smaller whose longer side is longer")
    build.add_argument("--shortest", type=count, metavar="PIXELS", help="make images smaller whose shorter side is longer")
    build.add_argument("--quality", type=int, choices=range(1, 101), default=95, metavar="Q", help="of new JPEGs (default: 95)")
    interval = "blocks of 16x16 pixels between restart markers, at which crops are cut out (default: about 4)"
    build.add_argument("--restart-interval", type=count, default=4, metavar="MCUS", help=interval)
    build.add_argument("--restart-all", action="store_true", help="restart markers, without loss, in kept JPEGs too (jpegtran)")


def part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not 0 <= int(number) < int(of):
        raise argparse.ArgumentTypeError(f"{text}: must be K/N with 0 <= K < N")
    return int(number), int(of)


def local_folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: shards are built into a local folder; copy them when they are complete")
    return Path(text)


def byte_size(text: str) -> int:
    """1GB -> 1,000,000,000; 1GiB -> 2^30."""
    from pydantic import ByteSize, TypeAdapter

    if (size := int(TypeAdapter(ByteSize).validate_python(text))) < 1:
        raise ValueError
    return size


def run_data_build(args: argparse.Namespace) -> None:
    """Images into shards, with a manifest per split."""
    from data_pipeline import build, collection, encode, sources

    classes = collection.read_classes(args.classes) if args.classes else []
    whole = args.part == (0, 1)
    with build.spool(args.out, alone=whole) as spool:
        reading = sources.Reading(spool, args.label, classes, args.synsets, args.allow_pipe)
        train = build.gather(args.sources, reading, args.workers)
        held_out = reading._replace(classes=train.classes, held_out=True)
        val = build.gather(args.val, held_out, args.workers) if args.val else None
        manifests = build.build(
            train,
            args.out,
            args.val_fraction,
            args.shard_samples,
            args.seed,
            val=val,
            shard_bytes=args.shard_bytes,
            shuffle=not args.no_shuffle,
            encoding=encode.Encoding(**{name: getattr(args, name) for name in encode.Encoding._fields}),
            skip_bad=args.skip_bad,
            workers=args.workers,
            part=args.part,
        )
    if not whole:
        print(f"part {args.part[0]} of {args.part[1]} is there; build without --part when all are")
    for manifest in manifests.values():
        images, shards, classes_ = manifest.num_samples, len(manifest.urls), len(manifest.classes)
        print(f"{manifest.name}: {images:,} images in {shards} shards, {classes_} classes")


def run_data_index(args: argparse.Namespace) -> None:
    """Index tars that exist, local or remote, and list them in a manifest."""
    from data_pipeline import collection, shardlist

    classes = collection.read_classes(args.classes) if args.classes else []
    manifest = shardlist.list_shards(shardlist.expand(args.shards), args.out, classes, args.label, args.workers)
    print(f"{manifest.name}: {manifest.num_samples:,} images in {len(manifest.urls)} shards")


def run_data_bench(args: argparse.Namespace) -> None:
    """Images per core-second of decoding and of the whole loader, beside PIL and webdataset on the same photos."""
    from data_pipeline.bench import ABOUT, bench

    rates = bench(args.images, args.rounds, args.threads)
    if args.json:
        print(json.dumps({name: round(rate, 1) for name, rate in rates.items()}))
        return
    for name, rate in rates.items():
        print(f"{name:<24}{rate:>10,.0f}  {ABOUT[name]}")
