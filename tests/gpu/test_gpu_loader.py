"""What the loader gives for a GPU is in pinned memory, and arrives there unchanged; so does what processes have decoded."""

from functools import partial

import pytest

from data_pipeline.loader import Layout, train_loader
from data_pipeline.manifest import read_manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards
from data_pipeline.workers import spread
from vitscale import recipe


def first_batches(tiny, pin, processes):
    cfg = recipe.load(tiny.recipe)
    shards, model = Shards(read_manifest(cfg.data.train[0].manifest)), cfg.model
    sizes = [manifest.samples for manifest in shards.manifests]
    order = Order(sizes, cfg.train.global_batch, cfg.lanes, cfg.data.shuffle_block, cfg.seed)
    make = partial(train_loader, shards, order, cfg.data, model.image_size, model.num_classes, 0, range(3))
    return list(spread(make, Layout(0, 1, threads=2, pin=pin), order, 1, processes))


@pytest.mark.parametrize("processes", [0, 2])
def test_batches_arrive(device, tiny, processes):
    plain, given = first_batches(tiny, False, 0), first_batches(tiny, device.type == "cuda", processes)
    for expected, batch in zip(plain, given, strict=True):
        assert batch.images_BHWC.is_pinned() == (device.type == "cuda")
        there = batch.to(device)
        for name in ("images_BHWC", "labels_B", "flip_B", "erase_B4", "noise_B", "mix_B", "cut_B4", "weight_B"):
            found = getattr(there, name)
            assert found.device.type == device.type
            assert found.cpu().equal(getattr(expected, name)), name
