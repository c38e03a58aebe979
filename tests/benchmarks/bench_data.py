"""The data pipeline beside its peers, in one run: `make bench-data`.

`vitscale data bench` measures this package, PIL, webdataset and the physical limits; peers.py measures the rest on the same
images, each time in a new process. All take turns, round after round; the median counts, and the spread is shown.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipeline.bench import ABOUT, bench, make

PEERS = Path(__file__).with_name("peers.py")
PASSES = 3  # of the loaders over the images, as in data_pipeline/bench.py
LIBRARIES = ("torch", "simplejpeg", "pillow", "webdataset")


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.images)
        peers = ask(args.python, "convert", folder)
        rounds = [one_round(args, folder, list(peers["about"])) for _ in range(args.rounds)]
    setting = {name: getattr(args, name) for name in ("images", "rounds", "threads")}
    setting |= {"ours": {library: version(library) for library in LIBRARIES}, "peers": peers["versions"]}
    about = ABOUT | peers["about"]
    rows = {name: summary([rates[name] for rates in rounds]) for name in about}
    if args.json:
        print(json.dumps({**setting, "images_per_core_second": rows}))
    else:
        show(setting, rows, about)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="of the environment with peers.txt")
    parser.add_argument("--images", type=int, default=512, help="photos (default: 512)")
    parser.add_argument("--rounds", type=int, default=5, help="each takes its turn this often (default: 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of loaders (default: the cores)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser.parse_args()


def write_images(folder: Path, count: int) -> None:
    """FOLDER/images/LABEL/NUMBER.jpg: the images of `bench`, PASSES times."""
    for number, image in enumerate(make(folder / "shards", count, restart_blocks=0).images * PASSES):
        path = folder / "images" / str(number % 10) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)


def one_round(args: argparse.Namespace, folder: str, peers: list[str]) -> dict[str, float]:
    """One turn of every entry."""
    ours = bench(args.images, rounds=1, threads=args.threads)
    return ours | {name: ask(args.python, name, folder, str(args.threads)) for name in peers}


def ask(python: Path, *words: str) -> Any:
    """The last line that peers.py prints; some libraries print before it."""
    command = [str(python), str(PEERS), *words]
    environment = {**os.environ, "LITDATA_DISABLE_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rates: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(rates), 1), "low": round(min(rates), 1), "high": round(max(rates), 1)}


def show(setting: dict[str, Any], rows: dict[str, dict[str, float]], about: dict[str, str]) -> None:
    print(*(f"{name}: {value}" for name, value in setting.items()), sep="\n")
    print(f"\n{'images per core-second':<26}{'median':>8}{'low':>8}{'high':>8}")
    for name, row in rows.items():
        print(f"{name:<26}{row['median']:>8,.0f}{row['low']:>8,.0f}{row['high']:>8,.0f}  {about[name]}")


if __name__ == "__main__":
    main()
