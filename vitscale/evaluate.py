"""Accuracy on held-out images, exact for any number of ranks: every image counts once, padding never."""

import os
from collections.abc import Callable, Iterable

import torch

from data_pipeline.config import DataConfig
from data_pipeline.loader import Batch, Layout, eval_loader
from data_pipeline.manifest import read_manifest
from data_pipeline.mixing import normalise
from data_pipeline.stream import Shards
from vitscale.loss import softmax
from vitscale.modelinfo import ModelInfo
from vitscale.pretrained import Pretrained
from vitscale.world import World

Model = Callable[[torch.Tensor], torch.Tensor]


def evaluate(model: Model, batches: Iterable[Batch], config: DataConfig, dtype: torch.dtype, world: World) -> dict[str, float]:
    """`top1`, `top5`, `loss` (mean cross-entropy) and `images` over all ranks' batches. Call on every rank.

    `model` maps images_BCHW to logits_BK and must be in evaluation mode. Nothing when all ranks agree to stop on the way.
    """
    sums = count_all(model, world.until_stop(batches), config, dtype, world.device)
    return {} if world.stopping else summarise(world.sum(sums))


@torch.no_grad()
def count_all(
    model: Model, batches: Iterable[Batch], config: DataConfig | ModelInfo, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The sums of `count` over batches."""
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches:
        batch = batch.to(device)
        logits_BK = model(normalise(batch.images_BHWC, config.mean, config.std).to(dtype)).float()
        sums += count(logits_BK, batch.labels_B, batch.weight_B)
    return sums


def summarise(sums: torch.Tensor) -> dict[str, float]:
    top1, top5, loss, images = sums.tolist()
    return {"top1": top1 / images, "top5": top5 / images, "loss": loss / images, "images": images}


def evaluate_alone(pretrained: Pretrained, manifest: str, batch: int) -> dict[str, float]:
    """The same of a loaded model in this process, on the shards of a manifest."""
    info, listed = pretrained.info, read_manifest(manifest)
    listed.check()
    listed.check_labels(info.model.num_classes)
    listed.check_classes(info.classes, "the model")
    layout = Layout(rank=0, ranks=1, threads=len(os.sched_getaffinity(0)))
    batches = eval_loader(Shards(listed), info, info.model.image_size, batch, info.model.num_classes, layout)
    return summarise(count_all(pretrained.model, batches, info, torch.float32, torch.device("cpu")))


def count(logits_BK: torch.Tensor, labels_B: torch.Tensor, weight_B: torch.Tensor) -> torch.Tensor:
    """float64 sums over a batch: (first guess right, one of five right, loss, images), each slot times its weight."""
    best_B5 = logits_BK.topk(min(5, logits_BK.shape[1])).indices
    right_B5 = best_B5 == labels_B[:, None]
    targets_BK = torch.nn.functional.one_hot(labels_B, logits_BK.shape[1]).float()
    columns = torch.stack(
        [right_B5[:, 0].float(), right_B5.any(dim=1).float(), softmax(logits_BK, targets_BK), torch.ones_like(weight_B)]
    )
    return (columns * weight_B).double().sum(dim=1)
