"""What decodes the images of a run: threads of the rank on CPUs, processes on GPUs, as many as make equal parts."""

from types import SimpleNamespace

import pytest
import torch

from data_pipeline.stream import Shards
from data_pipeline.workers import Workers
from vitscale.train import build_train_loader


@pytest.mark.parametrize(
    ("device", "overrides", "count"),
    [
        ("cpu", [], 0),
        ("cuda", [], 6),  # a divisor of 24 lanes, at most 7 threads
        ("cuda", ["hardware.loader_processes=0"], 0),
        ("cpu", ["hardware.loader_processes=5"], 4),
        ("cuda", ["hardware.loader_threads=3"], 3),
        ("cuda", ["data.mix_group=6", "data.augment.mixup=0.2"], 4),  # parts of whole groups
        ("cuda", ["data.mix_group=6"], 6),  # that nothing is mixed in
    ],
)
def test_processes_of_a_run(config, shards, device, overrides, count):
    cfg = config("train.global_batch=24", *overrides)
    world = SimpleNamespace(rank=0, size=1, cores=7, device=torch.device(device))
    batches = build_train_loader(Shards(shards["train"]), cfg, 0, 3, world)
    assert (batches.count if isinstance(batches, Workers) else 0) == count
    if isinstance(batches, Workers):
        assert batches.layout.pin == (device == "cuda")
