"""One rank of a job that only reads: prints what each step holds, a JSON line per step, until it is killed."""

import hashlib
import json
import sys
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.loader import Layout, train_loader
from data_pipeline.manifest import read_manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards


def main(manifest: str, rank: int, ranks: int, start: int, stop: int, out: str) -> None:
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
    with Path(out).open("a", buffering=1) as file:
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


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6])
