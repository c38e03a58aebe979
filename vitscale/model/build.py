"""The model that a config describes."""

import torch

from vitscale.model.config import BiTConfig, ModelConfig, ViTConfig
from vitscale.model.resnet import BiT
from vitscale.model.vit import ViT

Model = ViT | BiT


def build(config: ModelConfig) -> Model:
    """Freshly initialised, on torch's current default device."""
    if isinstance(config, BiTConfig):
        return BiT(config)
    assert isinstance(config, ViTConfig)
    return ViT(config)


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Every parameter's name and shape, without allocating one."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in build(config).named_parameters()}
