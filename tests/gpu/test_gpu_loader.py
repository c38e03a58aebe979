"""What the loader gives for a GPU is in pinned memory, and arrives there unchanged."""

from data_pipeline.loader import Layout, train_loader
from data_pipeline.manifest import read_manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards
from vitscale import recipe


def first_batches(tiny, pin):
    cfg = recipe.load(tiny.recipe)
    shards = Shards(read_manifest(cfg.data.train[0].manifest))
    order = Order(
        [manifest.samples for manifest in shards.manifests], cfg.train.global_batch, cfg.lanes, cfg.data.shuffle_block, cfg.seed
    )
    layout = Layout(0, 1, threads=2, pin=pin)
    return list(train_loader(shards, order, cfg.data, cfg.model.image_size, cfg.model.num_classes, 0, range(3), layout))


def test_batches_arrive(device, tiny):
    plain, given = first_batches(tiny, pin=False), first_batches(tiny, pin=device.type == "cuda")
    for expected, batch in zip(plain, given, strict=True):
        assert batch.images_BHWC.is_pinned() == (device.type == "cuda")
        there = batch.to(device)
        for name in ("images_BHWC", "labels_B", "flip_B", "erase_B4", "noise_B", "mix_B", "cut_B4", "weight_B"):
            found = getattr(there, name)
            assert found.device.type == device.type
            assert found.cpu().equal(getattr(expected, name)), name
