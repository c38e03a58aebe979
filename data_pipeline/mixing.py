"""uint8 pixels -> what the model sees, on the device: flip, normalise, mixup."""

import torch
import torch.nn.functional as F

from data_pipeline.config import DataConfig
from data_pipeline.loader import Batch


def prepare(batch: Batch, config: DataConfig, num_classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """images_BCHW in `dtype` and targets_BC in float32, on the batch's device.

    Mixup (Zhang et al. 2018) pairs each image with its neighbour inside groups of `mix_group` consecutive slots.
    """
    images_BHWC = torch.where(batch.flip_B[:, None, None, None], batch.images_BHWC.flip(2), batch.images_BHWC)
    images_BCHW = normalise(images_BHWC, config.mean, config.std)
    targets_BC = F.one_hot(batch.labels_B, num_classes).float()
    if config.augment.mixup:
        images_BCHW = mix(images_BCHW, batch.mix_B, config.mix_group)
        targets_BC = mix(targets_BC, batch.mix_B, config.mix_group)
    return images_BCHW.to(dtype), targets_BC


def normalise(images_BHWC: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 -> float32 images_BCHW, (x / 255 - mean) / std per channel."""
    pixels = images_BHWC.permute(0, 3, 1, 2).float() / 255
    shape = (1, len(mean), 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def mix(values: torch.Tensor, weight_B: torch.Tensor, group: int) -> torch.Tensor:
    """weight * own + (1 - weight) * the next slot's, wrapping round inside each group."""
    grouped = values.unflatten(0, (-1, group))
    weight = weight_B.view(-1, group, *(1,) * (values.ndim - 1)).to(values.dtype)
    return (weight * grouped + (1 - weight) * grouped.roll(-1, dims=1)).flatten(0, 1)
