"""Where a ViT looks: the attention of every block, how far it reaches, and what it adds up to.

B images, h heads, N tokens (prefix tokens first), n patches. The model never forms these matrices; they follow from what
its blocks were given, so it stays as it is.
"""

import functools
from collections.abc import Iterable, Iterator

import torch

from vitscale.model.config import Grid
from vitscale.model.vit import Attention, ViT


@torch.no_grad()
def attention_maps(model: ViT, images_BCHW: torch.Tensor) -> Iterator[torch.Tensor]:
    """Each block's probabilities_BhNN, a row per query. One matrix is held at a time, and the tokens of all blocks."""
    given: list[tuple[Attention, tuple]] = []
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: given.append((layer, inputs))) for layer in layers]
    try:
        model.features(images_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, inputs in given:
        yield probabilities(layer, *inputs)


def probabilities(attention: Attention, tokens_BND: torch.Tensor, keys_NNd: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(q k / sqrt(d)), BhNN, with q times the relative keys in it where there are some; see `Attention.forward`."""
    q_BhNd, k_BhNd, _ = attention.qkv(tokens_BND).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits_BhNN = q_BhNd @ k_BhNd.transpose(2, 3)
    if keys_NNd is not None:
        logits_BhNN += torch.einsum("bhnd,nmd->bhnm", q_BhNd, keys_NNd)
    return (logits_BhNN * q_BhNd.shape[-1] ** -0.5).softmax(dim=-1)


def mean_distance(probabilities_BhNN: torch.Tensor, grid: Grid, stride: int) -> torch.Tensor:
    """How many pixels off a head looks, Bh (appendix D.7): between patch centres, weighted by attention, over all queries.

    Prefix tokens have no place: they are left out, and what goes to the patches is scaled to sum to 1.
    """
    place_n2 = torch.cartesian_prod(*(torch.arange(length) * float(stride) for length in grid)).reshape(-1, 2)
    prefix = probabilities_BhNN.shape[-1] - len(place_n2)
    patches_Bhnn = probabilities_BhNN[..., prefix:, prefix:]
    weights_Bhnn = patches_Bhnn / patches_Bhnn.sum(dim=-1, keepdim=True).clamp(min=1e-30)
    return (weights_Bhnn * torch.cdist(place_n2, place_n2)).sum(dim=-1).mean(dim=-1)


def rollout(maps: Iterable[torch.Tensor], grid: Grid) -> torch.Tensor:
    """How much of each patch is in what the head sees, B x down x across (Abnar & Zuidema 2020; appendix D.8).

    Of each block the mean over heads, plus the identity for the residual, scaled to sum to 1; then the product over blocks.
    Read off at the class token, or without one at the mean over the patches, which with `pool: map` is an approximation.
    """
    mixed = ((map_BhNN.mean(dim=1) + torch.eye(map_BhNN.shape[-1])) / 2 for map_BhNN in maps)
    joint_BNN = functools.reduce(lambda below_BNN, block_BNN: block_BNN @ below_BNN, mixed)
    prefix = joint_BNN.shape[-1] - grid[0] * grid[1]
    seen_BN = joint_BNN[:, 0] if prefix else joint_BNN.mean(dim=1)
    return seen_BN[:, prefix:].unflatten(1, grid)
