"""A job that only reads: each rank writes what its steps hold, a JSON line per step, until it is killed.

The ranks are forks of one process, which has imported torch for all of them.
"""

import hashlib
import json
import multiprocessing
import sys
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.loader import Layout, train_loader
from data_pipeline.manifest import read_manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards


def read(manifest: str, rank: int, ranks: int, start: int, stop: int, out: Path) -> None:
    config = DataConfig.model_validate(
        {
            "train": {"manifest": manifest},
            "shuffle_block": 8,
            "augment": {"randaugment_layers": 2, "color_jitter": 0.4, "erase": 0.3},
            "bad_samples": {"policy": "replace", "max_run": 3},
        }
    )
    shards = Shards(read_manifest(manifest))
    order = Order([manifest.samples for manifest in shards.manifests], 24, 12, config.shuffle_block, seed=1)
    with out.open("a", buffering=1) as file:
        for step, batch in enumerate(
            train_loader(shards, order, config, 32, 3, 1, range(start, stop), Layout(rank, ranks, 2)), start
        ):
            keys = [shards.key(sample) for sample in batch.slots.samples.tolist()]
            columns = (batch.images_BHWC, batch.labels_B, batch.flip_B, batch.erase_B4, batch.noise_B)
            slots = [
                hashlib.sha256(b"".join(part.numpy().tobytes() for part in slot)).hexdigest()
                for slot in zip(*columns, strict=True)
            ]
            file.write(json.dumps({"step": step, "keys": keys, "slots": slots, "skipped": [s.key for s in batch.skips]}) + "\n")


def main(manifest: str, ranks: int, start: int, stop: int, folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=read, args=(manifest, rank, ranks, start, stop, folder / f"{rank}.jsonl")) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5]))
