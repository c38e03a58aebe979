"""The data pipeline beside its peers, in one run: `make bench-data`.

`vitscale data bench` measures this package, PIL and webdataset, here come the physical limits and reading alone, and peers.py
measures the rest on the same images, each time in a new process. All take turns, round after round; the median counts, and the
spread is shown.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import webdataset as wds

from data_pipeline import jpeg
from data_pipeline.bench import ABOUT, PASSES, RESTART_BLOCKS, Kind, bench, make, one_core
from data_pipeline.box import Box
from data_pipeline.stream import Shards

PEERS = Path(__file__).with_name("peers.py")
LIMITS = {
    "entropy_decode": "the limit: reading all codes of an ordinary JPEG",
    "entropy_decode_restart": "the limit: reading the codes that a crop touches",
    "index_reader": "samples read by the index, not decoded, one core",
    "webdataset_reader": "samples read by webdataset, not decoded, one core",
}
LIBRARIES = ("torch", "simplejpeg", "pillow", "webdataset")


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        plain, restart = (make(Path(folder) / str(blocks), args.images, blocks) for blocks in (0, RESTART_BLOCKS))
        write_images(Path(folder), plain.images)
        peers = ask(args.python, "convert", folder)
        rounds = [one_round(args, plain, restart, folder, list(peers["about"])) for _ in range(args.rounds)]
    setting = {name: getattr(args, name) for name in ("images", "rounds", "threads")}
    setting |= {"ours": {library: version(library) for library in LIBRARIES}, "peers": peers["versions"]}
    about = ABOUT | LIMITS | peers["about"]
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


def write_images(folder: Path, images: list[bytes]) -> None:
    """FOLDER/images/LABEL/NUMBER.jpg, PASSES times."""
    for number, image in enumerate(images * PASSES):
        path = folder / "images" / str(number % 10) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)


def one_round(args: argparse.Namespace, plain: Kind, restart: Kind, folder: str, peers: list[str]) -> dict[str, float]:
    """One turn of every entry."""
    return {
        **bench(args.images, rounds=1, threads=args.threads),
        "entropy_decode": one_core(entropy_only, plain),
        "entropy_decode_restart": one_core(entropy_only_of_cut, restart),
        "index_reader": one_core_of(our_reader, plain),
        "webdataset_reader": one_core_of(webdataset_reader, plain),
        **{name: ask(args.python, name, folder, str(args.threads)) for name in peers},
    }


def entropy_only(image: bytes, _box: Box) -> np.ndarray:
    """All codes read, an eighth of the pixels computed: no decoder that reads the whole image can be much faster."""
    return simplejpeg.decode_jpeg(image, "GRAY", min_width=1, min_height=1, min_factor=8)


def entropy_only_of_cut(image: bytes, box: Box) -> np.ndarray:
    """The same of what a crop touches."""
    header = jpeg.read_header(image)
    smaller = jpeg.cut(image, header, box) if header else None
    return entropy_only(bytes(smaller[0]) if smaller else image, box)


def one_core_of(read: Callable[[Kind], Iterable], kind: Kind) -> float:
    """Samples per CPU second of this process."""
    began = time.process_time()
    count = sum(1 for _ in read(kind))
    return count / (time.process_time() - began)


def our_reader(kind: Kind) -> Iterator[tuple[bytes, int]]:
    shards = Shards(kind.manifest)
    for start in range(0, len(shards), 64):
        samples = np.arange(start, min(start + 64, len(shards)))
        block = shards.load(samples)
        for sample in samples.tolist():
            yield block.image(sample)


def webdataset_reader(kind: Kind) -> Iterator[dict]:
    urls = [kind.manifest.shard(number) for number in range(len(kind.manifest.urls))]
    yield from wds.DataPipeline(wds.SimpleShardList(urls), wds.tarfile_to_samples())


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
