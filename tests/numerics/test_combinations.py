"""Every combination of the model's options builds, trains and moves every parameter."""

import itertools
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from tiny_models import ON_RESNET, vit

from vitscale.model.config import ViTConfig
from vitscale.model.vit import ViT

TINY = {"width": 8, "num_heads": 2, "mlp_dim": 8, "image_size": 8, "num_classes": 3}
POOLS, POS_EMBEDS, PLACES, SCHEDULES = (
    get_args(ViTConfig.model_fields[name].annotation) for name in ("pool", "pos_embed", "pos_embed_at", "drop_path_schedule")
)
OTHERS = {
    "representation_size": (None, 4),
    "layer_scale": (None, 0.1),
    "drop_path": ((0.0, "linear"), *((0.3, schedule) for schedule in SCHEDULES)),
    "dropout": (0.0, 0.1),
}


def options(values, **more):
    names = ("pool", "pos_embed", "pos_embed_at", *OTHERS)
    chosen = dict(zip(names, values, strict=True))
    chosen["drop_path"], chosen["drop_path_schedule"] = chosen["drop_path"]
    return vit(**{**TINY, **chosen, **more})


def train(cfg, dtype=torch.float32):
    """A step of SGD moves every parameter, once nothing starts at zero that keeps gradients from the rest."""
    model = ViT(cfg).train().to(dtype)
    torch.nn.init.normal_(model.head.weight)
    for name, parameter in model.named_parameters():
        if name.endswith("norm3.weight"):
            torch.nn.init.ones_(parameter)
    images, chance = torch.randn(3, 3, cfg.image_size, cfg.image_size), torch.rand(3, cfg.depth, 2)
    chance[0] = 0.99  # an image that keeps every branch
    logits = model(images.to(dtype), chance)
    assert (logits.shape, logits.dtype) == ((3, cfg.num_classes), dtype), cfg
    F.cross_entropy(logits.float(), torch.arange(3)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters()), cfg
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert model(images.to(dtype)).isfinite().all(), cfg


@pytest.mark.slow
def test_every_combination_on_pixels_trains():
    torch.manual_seed(0)
    for values in itertools.product(POOLS, POS_EMBEDS, PLACES, *OTHERS.values()):
        train(options(values))


def test_hybrids_train_with_every_pool_and_position():
    """What else there is, in turns: beyond its channels and grid the encoder knows nothing of a stem."""
    torch.manual_seed(0)
    others = itertools.cycle(itertools.product(*OTHERS.values()))
    for stem, (image_size, patch_size) in {(): (8, 1), (1, 1): (16, 1)}.items():
        for values in itertools.product(POOLS, POS_EMBEDS, PLACES):
            train(options((*values, *next(others)), stem_blocks=stem, image_size=image_size, patch_size=patch_size))


def test_bf16_trains():
    torch.manual_seed(0)
    others = itertools.cycle(itertools.product(*OTHERS.values()))
    for pool, pos_embed in itertools.product(POOLS, POS_EMBEDS):
        train(options((pool, pos_embed, "every", *next(others))), torch.bfloat16)
    train(options(("map", "relative", "every", *next(others)), **ON_RESNET), torch.bfloat16)
