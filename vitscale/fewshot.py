"""How good a model's features are without training it further: a few labelled images per class, and an answer in closed form.

Ridge regression to targets of -1 and 1 on whitened features, with the constants of big_vision's few-shot evaluation; the ViT
paper tracks pretraining by such accuracies (section 4.1). And k nearest neighbours by cosine, weighted as in DINO (arXiv
2104.14294). N images of D features, K classes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from data_pipeline.config import Preprocessing
from data_pipeline.draw import Purpose, permutation
from data_pipeline.loader import Batch
from data_pipeline.mixing import normalise
from vitscale.world import World

SHOTS, DRAWS = (1, 5, 10, 25), 3  # images per class; the mean over so many draws of them counts
RIDGE, BIAS, MIN_STD = 1024.0, 100.0, 1e-5  # on the sum of squares; a constant feature; what is added to each deviation
NEIGHBOURS, TEMPERATURE = 20, 0.07
CHUNK = 1024  # images whose neighbours are looked for at once


class Features(NamedTuple):
    """What the head would see of N images."""

    features_ND: torch.Tensor  # on the CPU
    labels_N: torch.Tensor


@torch.no_grad()
def extract(
    model: Callable, head: nn.Module, batches: Iterable[Batch], config: Preprocessing, dtype: torch.dtype, world: World
) -> Features:
    """The features of all ranks' images, on every rank; `model` maps images_BCHW to logits by way of `head`.

    Call on every rank, with equally many equal batches. Worthless when all ranks agree to stop on the way.
    """
    features, labels, weights = [], [], []
    with inputs_of(head) as seen:
        for batch in world.until_stop(batches):
            on_device = batch.to(world.device)
            model(normalise(on_device.images_BHWC, config.mean, config.std).to(dtype))
            features.append(seen.pop().float().cpu())
            labels.append(batch.labels_B)
            weights.append(batch.weight_B)
    parts = [everywhere(torch.stack(tensors), world) for tensors in (features, labels, weights)] if features else []
    features_ND, labels_N, weight_N = parts or (torch.zeros(0, 1), torch.zeros(0), torch.zeros(0))
    return Features(features_ND[weight_N > 0], labels_N[weight_N > 0])


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What the module is given meanwhile, newest last; under ZeRO only a whole forward may ask for it."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        hook.remove()


def everywhere(part_SB: torch.Tensor, world: World) -> torch.Tensor:
    """All ranks' parts, S batches of B images each, in the order of the images, which does not depend on the layout."""
    parts = [torch.empty_like(part_SB) for _ in range(world.size)]
    dist.all_gather(parts, part_SB)
    return torch.stack(parts, dim=1).flatten(0, 2)


def accuracies(train: Features, test: Features) -> dict[str, float]:
    """`5shot` and so on, and `knn`, which uses all of `train`."""
    num_classes = int(torch.cat([train.labels_N, test.labels_N]).max()) + 1
    found = {}
    for shots in SHOTS:
        few = (draw(train, shots, seed) for seed in range(DRAWS))
        right = [accuracy(ridge(drawn, test.features_ND, num_classes), test) for drawn in few]
        found[f"{shots}shot"] = sum(right) / DRAWS
    return {**found, "knn": accuracy(nearest(train, test.features_ND, num_classes), test)}


def shortage(train: Features) -> str:
    """A line about classes with fewer images than the most shots, or nothing."""
    counts = train.labels_N.bincount()
    few = counts[(counts > 0) & (counts < SHOTS[-1])]
    if not len(few):
        return ""
    return f"warning: {len(few)} classes have fewer than {SHOTS[-1]} images to learn from, one {few.min()}; all are taken\n"


def accuracy(guesses_N: torch.Tensor, test: Features) -> float:
    return float((guesses_N == test.labels_N).double().mean())


def draw(train: Features, shots: int, seed: int) -> Features:
    """So many images of each class, or all of a class that has fewer; they depend on seed and labels only."""
    shuffled = torch.from_numpy(permutation(len(train.labels_N), seed, Purpose.FEWSHOT).astype(np.int64))
    ordered = shuffled[train.labels_N[shuffled].argsort(stable=True)]
    labels_N = train.labels_N[ordered]
    place_N = torch.arange(len(labels_N)) - torch.searchsorted(labels_N, labels_N)  # among those of its class
    chosen = ordered[place_N < shots]
    return Features(train.features_ND[chosen].double(), train.labels_N[chosen])


def ridge(train: Features, test_MD: torch.Tensor, num_classes: int) -> torch.Tensor:  # -> guesses_M
    """The class of the largest output of a linear map that minimises squared errors + RIDGE x squared weights."""
    mean_D, std_D = train.features_ND.mean(0), train.features_ND.std(0, unbiased=False) + MIN_STD

    def whitened(features_ND: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad((features_ND - mean_D) / std_D, (0, 1), value=BIAS)

    x_NE, y_NK = whitened(train.features_ND), 2.0 * nn.functional.one_hot(train.labels_N, num_classes).double() - 1.0
    weights_EK = torch.linalg.solve(x_NE.T @ x_NE + RIDGE * torch.eye(x_NE.shape[1], dtype=x_NE.dtype), x_NE.T @ y_NK)
    return (whitened(test_MD.double()) @ weights_EK).argmax(dim=1)


def nearest(train: Features, test_MD: torch.Tensor, num_classes: int) -> torch.Tensor:  # -> guesses_M
    """What the nearest say, each with weight exp(cosine / TEMPERATURE)."""
    train_ND, guesses = nn.functional.normalize(train.features_ND), []
    for part_MD in nn.functional.normalize(test_MD).split(CHUNK):
        cosine_Mk, index_Mk = (part_MD @ train_ND.T).topk(min(NEIGHBOURS, len(train_ND)))
        votes_MK = part_MD.new_zeros(len(part_MD), num_classes)
        votes_MK.scatter_add_(1, train.labels_N[index_Mk], (cosine_Mk / TEMPERATURE).exp())
        guesses.append(votes_MK.argmax(dim=1))
    return torch.cat(guesses)
