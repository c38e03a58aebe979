"""uint8 pixels -> what the model sees, on the device, without waiting for it: flip, normalise, erase, mixup or cutmix."""

import functools

import torch

from data_pipeline.config import DataConfig
from data_pipeline.loader import Batch
from data_pipeline.noise import normal_noise


def prepare(
    batch: Batch, config: DataConfig, num_classes: int, dtype: torch.dtype, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """images_BCHW in `dtype` and targets_BC in float32, on the batch's device, mixed with their neighbours by mixplan.py.

    `smoothing`: the share of the targets' weight that is spread evenly over all classes (Szegedy et al. 2016, section 7). Few
    operations, for the host of a fast device pays for each of them.
    """
    augment = config.augment
    images_BHWC = batch.images_BHWC
    if augment.flip:
        images_BHWC = torch.where(batch.flip_B.view(-1, 1, 1, 1), images_BHWC.flip(2), images_BHWC)
    images_BCHW = normalise(images_BHWC, config.mean, config.std)
    is_label_BC = batch.labels_B.unsqueeze(1) == _classes(num_classes, batch.labels_B.device)
    spread = smoothing / num_classes
    targets_BC = torch.where(is_label_BC, 1 - smoothing + spread, spread)
    if augment.erase:
        images_BCHW = erase(images_BCHW, batch.erase_B4, batch.noise_B)
    if augment.mixes:
        weight_B111 = batch.mix_B.view(-1, 1, 1, 1)
        if augment.cutmix:
            weight_B111 = own_weight(batch.mix_B, batch.cut_B4, *images_BCHW.shape[2:])[:, None]
        images_BCHW = mix(images_BCHW, weight_B111, config.mix_group, config.repeated)
        targets_BC = mix(targets_BC, batch.mix_B.unsqueeze(1), config.mix_group, config.repeated)
    return images_BCHW.to(dtype), targets_BC


def normalise(images_BHWC: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 -> float32 images_BCHW, (x / 255 - mean) / std per channel, in the order of memory that the pixels have."""
    mean_C, std_C = _levels(mean, std, images_BHWC.device)
    # In place: new memory would cost a CPU more than the sums.
    return images_BHWC.float().sub_(mean_C).div_(std_C).permute(0, 3, 1, 2)


@functools.cache
def _levels(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in levels of 0 to 255; filled in on the device, because a copy to it waits for it, and kept."""
    mean_C, std_C = (torch.stack([torch.full((), 255 * value, device=device) for value in of]) for of in (mean, std))
    return mean_C, std_C


@functools.cache
def _classes(count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(count, device=device)


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
    neighbours = values.index_select(0, _neighbours(len(values), group, shift, values.device))
    return torch.lerp(neighbours, values, weight)


@functools.cache
def _neighbours(count: int, group: int, shift: int, device: torch.device) -> torch.Tensor:
    return torch.arange(count, device=device).unflatten(0, (-1, group)).roll(-shift, dims=1).flatten()
