"""Small models at random weights, for tests of several kinds."""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vitscale.model.build import Model, build
from vitscale.model.config import BiTConfig, ModelConfig, ViTConfig

SIZES = {"patch_size": 4, "width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "image_size": 12, "num_classes": 5}
ON_RESNET = {"patch_size": 1, "stem_blocks": (1, 1), "image_size": 16}
POS_EMBEDS = ("none", "learned1d", "learned2d", "sincos2d", "relative")
PLACES = ("stem", "every", "shared")


class Watched(TorchDispatchMode):
    """Types of what an operation is given; on CPUs its results would not show them."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.seen = operation, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.operation in str(function):
            self.seen += [value.dtype for value in args if isinstance(value, torch.Tensor)]
        return function(*args, **(kwargs or {}))


def vit(**changes: object) -> ViTConfig:
    return ViTConfig(**{**SIZES, **changes})


def bit(*blocks: int, width_factor: int = 1, image_size: int = 24) -> BiTConfig:
    return BiTConfig(blocks=blocks, width_factor=width_factor, image_size=image_size, num_classes=5)


def randomised(config: ModelConfig, std: float = 0.3) -> Model:
    """A model in which every parameter is random, so that none can be left out unnoticed."""
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return model


def weights_of(model: Model) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def random_images(config: ModelConfig, batch: int = 3, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, config.image_size, config.image_size, generator=generator)
