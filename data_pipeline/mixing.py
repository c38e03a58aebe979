"""uint8 pixels -> what the model sees, on the device, without waiting for it: flip, normalise, erase, mixup or cutmix."""

import torch
import torch.nn.functional as F

from data_pipeline.config import DataConfig
from data_pipeline.loader import Batch
from data_pipeline.noise import normal_noise


def prepare(batch: Batch, config: DataConfig, num_classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """images_BCHW in `dtype` and targets_BC in float32, on the batch's device, mixed with their neighbours by mixplan.py."""
    augment = config.augment
    images_BHWC = torch.where(batch.flip_B[:, None, None, None], batch.images_BHWC.flip(2), batch.images_BHWC)
    images_BCHW = normalise(images_BHWC, config.mean, config.std)
    targets_BC = F.one_hot(batch.labels_B, num_classes).float()
    if augment.erase:
        images_BCHW = erase(images_BCHW, batch.erase_B4, batch.noise_B)
    if augment.mixes:
        weight_BHW = own_weight(batch.mix_B, batch.cut_B4, *images_BCHW.shape[2:])
        images_BCHW = mix(images_BCHW, weight_BHW[:, None], config.mix_group, config.repeated)
        targets_BC = mix(targets_BC, batch.mix_B[:, None], config.mix_group, config.repeated)
    return images_BCHW.to(dtype), targets_BC


def normalise(images_BHWC: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 -> float32 images_BCHW, (x / 255 - mean) / std per channel."""
    # Python's numbers rather than tensors: a copy of the mean to the device would wait for it.
    channels = zip(images_BHWC.unbind(-1), mean, std, strict=True)
    return torch.stack([(channel_BHW / 255 - m) / s for channel_BHW, m, s in channels], dim=1)


def erase(images_BCHW: torch.Tensor, box_B4: torch.Tensor, word_B: torch.Tensor) -> torch.Tensor:
    """Random erasing (Zhong et al. 2020): N(0, 1) noise, made of each sample's word, inside its box."""
    inside_BHW = inside(box_B4, *images_BCHW.shape[2:])
    return torch.where(inside_BHW[:, None], normal_noise(word_B, *images_BCHW.shape[1:]), images_BCHW)


def own_weight(mix_B: torch.Tensor, cut_B4: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """float32 weight_BHW of the slot's own pixels: 0 inside and 1 outside its cutmix box, mix_B everywhere without one."""
    outside_BHW = (~inside(cut_B4, height, width)).float()
    return torch.where((cut_B4[:, 2] > 0)[:, None, None], outside_BHW, mix_B[:, None, None])


def inside(box_B4: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """bool_BHW: which pixels lie inside the boxes (y, x, height, width)."""
    y, x, h, w = box_B4[:, :, None].unbind(1)
    rows, columns = (torch.arange(length, device=box_B4.device) for length in (height, width))
    return ((rows >= y) & (rows < y + h))[:, :, None] & ((columns >= x) & (columns < x + w))[:, None, :]


def mix(values: torch.Tensor, weight: torch.Tensor, group: int, shift: int = 1) -> torch.Tensor:
    """weight * own + (1 - weight) * that of `shift` slots on, wrapping round inside each group; the weight broadcasts."""
    neighbour = values.unflatten(0, (-1, group)).roll(-shift, dims=1).flatten(0, 1)
    return torch.lerp(neighbour, values, weight.to(values.dtype))
