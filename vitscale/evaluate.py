"""Accuracy on held-out images, exact for any number of ranks: every image counts once, padding never."""

import os
from collections.abc import Callable, Iterable

import torch

from data_pipeline.config import DataConfig
from data_pipeline.loader import Batch, Layout, eval_loader
from data_pipeline.manifest import read_manifest
from data_pipeline.mixing import normalise
from data_pipeline.stream import Shards
from vitscale.modelinfo import ModelInfo
from vitscale.pretrained import Pretrained
from vitscale.tally import Tally
from vitscale.world import World

Model = Callable[[torch.Tensor], torch.Tensor]


def evaluate(
    model: Model, batches: Iterable[Batch], config: DataConfig, num_classes: int, dtype: torch.dtype, world: World
) -> Tally:
    """What is counted over all ranks' batches. Call on every rank.

    `model` maps images_BCHW to logits_BK and must be in evaluation mode. Worthless when all ranks agree to stop on the way.
    """
    tally = Tally(num_classes, world.device)
    count_all(tally, model, world.until_stop(batches), config, dtype)
    if not world.stopping:
        tally.sum_over_ranks(world)
    return tally


@torch.no_grad()
def count_all(tally: Tally, model: Model, batches: Iterable[Batch], config: DataConfig | ModelInfo, dtype: torch.dtype) -> None:
    for batch in batches:
        batch = batch.to(tally.sums.device)
        tally.add(batch, model(normalise(batch.images_BHWC, config.mean, config.std).to(dtype)).float())


def evaluate_alone(pretrained: Pretrained, manifest: str, batch: int) -> Tally:
    """The same of a loaded model in this process, on the shards of a manifest."""
    info, listed = pretrained.info, read_manifest(manifest)
    listed.check()
    listed.check_labels(info.model.num_classes)
    listed.check_classes(info.classes, "the model")
    layout = Layout(rank=0, ranks=1, threads=len(os.sched_getaffinity(0)))
    batches = eval_loader(Shards(listed), info, info.model.image_size, batch, info.model.num_classes, layout)
    tally = Tally(info.model.num_classes, torch.device("cpu"))
    count_all(tally, pretrained.model, batches, info, torch.float32)
    return tally
