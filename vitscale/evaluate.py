"""Accuracy on held-out images, exact for any number of ranks: every image counts once, padding never."""

from collections.abc import Callable, Iterable, Sequence

import torch

from data_pipeline.config import Preprocessing
from data_pipeline.loader import Batch, Layout, Loader, eval_loader
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.mixing import normalise
from data_pipeline.stream import Shards
from vitscale import fewshot
from vitscale.pretrained import Pretrained
from vitscale.real import read_real
from vitscale.tally import Tally
from vitscale.world import World

Model = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def evaluate(
    model: Model, batches: Iterable[Batch], config: Preprocessing, tally: Tally, dtype: torch.dtype, world: World
) -> Tally:
    """The tally of all ranks' batches. Call on every rank.

    `model` maps images_BCHW to logits_BK and must be in evaluation mode. Worthless when all ranks agree to stop on the way.
    """
    for batch in world.until_stop(batches):
        batch = batch.to(world.device)
        tally.add(batch, model(normalise(batch.images_BHWC, config.mean, config.std).to(dtype)).float())
    if not world.stopping:
        tally.sum_over_ranks(world)
    return tally


def evaluate_on(manifest: str, pretrained: Pretrained, batch: int, world: World, real: str | None = None) -> Tally:
    """The same of a loaded model on the shards of a manifest; `real`: the file of ReaL labels. Call on every rank."""
    info, listed = pretrained.info, read_manifest(manifest)
    listed.check()
    listed.check_labels(info.model.num_classes)
    listed.check_classes(info.classes, "the model")
    batches = _batches(listed, pretrained, batch, info.model.num_classes, world)
    real_NR = read_real(real, Shards(listed), info.model.num_classes) if real else None
    tally = Tally(info.model.num_classes, world.device, real_NR)
    return evaluate(pretrained.model.to(world.device), batches, info, tally, torch.float32, world)


def features_of(
    pretrained: Pretrained, sets: Sequence[tuple[str, int | None]], batch: int, world: World
) -> list[fewshot.Features]:
    """What a loaded model's head would see of the images of manifests, of each the first so many. Call on every rank."""
    manifests = [read_manifest(manifest) for manifest, _ in sets]
    model, found = pretrained.model.to(world.device), []
    for listed, (_, first) in zip(manifests, sets, strict=True):
        listed.check()
        listed.check_classes(manifests[0].classes, manifests[0].name)
        batches = _batches(listed, pretrained, batch, listed.num_labels, world, first)
        head = model.get_submodule("head")
        found.append(fewshot.extract(model, head, batches, pretrained.info, torch.float32, world))
    return found


def _batches(
    listed: Manifest, pretrained: Pretrained, batch: int, num_classes: int, world: World, first: int | None = None
) -> Loader:
    layout, info = Layout(world.rank, world.size, world.cores, world.device.type == "cuda"), pretrained.info
    return eval_loader(Shards(listed), info, info.model.image_size, batch, num_classes, layout, first)
