"""`vitscale data bench`: how fast this machine makes batches."""

import argparse
import json

from vitscale.arguments import Commands, add, count


def add_bench_command(commands: Commands) -> None:
    bench = add(
        commands,
        "bench",
        run_data_bench,
        "images per core-second of decoding and of the whole loader, beside PIL and webdataset on the same photos",
        "vitscale data bench --json",
    )
    bench.add_argument("--images", type=count, default=512, help="photos, cut out of scikit-learn's two (default: 512)")
    bench.add_argument("--rounds", type=count, default=5, help="each takes its turn this often; the median counts (default: 5)")
    bench.add_argument("--threads", type=count, help="of loaders (default: the cores)")
    bench.add_argument("--json", action="store_true", help="as JSON")


def run_data_bench(args: argparse.Namespace) -> int:
    from data_pipeline.bench import ABOUT, bench

    rates = bench(args.images, args.rounds, args.threads)
    if args.json:
        print(json.dumps({name: round(rate, 1) for name, rate in rates.items()}))
        return 0
    for name, rate in rates.items():
        print(f"{name:<24}{rate:>10,.0f}  {ABOUT[name]}")
    return 0
