"""ResNets with group normalisation and standardised weights: the stem of the hybrids, and BiT (Kolesnikov et al. 2020).

B images, C channels. The hybrids' is ResNet-v1 (norms after convolutions, padding as TensorFlow's SAME), as in the official
models_resnet.py; BiT is ResNet-v2 (norms before them, symmetric padding), as in the Big Transfer release.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vitscale.model.config import BiTConfig
from vitscale.model.heads import Head
from vitscale.model.layers import lecun_normal_
from vitscale.model.zoo import EXPANSION, ROOT_WIDTH

NUM_GROUPS = 32


class Eps(NamedTuple):
    """Small numbers against division by zero."""

    norm: float  # added to the variance in GroupNorm
    deviation: float  # added to a filter's deviation
    variance: float  # added to a filter's variance


STEM_EPS = {"official": Eps(norm=1e-6, deviation=1e-5, variance=0.0), "timm": Eps(norm=1e-5, deviation=0.0, variance=1e-8)}
BIT_EPS = {"official": Eps(norm=1e-5, deviation=0.0, variance=1e-10), "timm": Eps(norm=1e-5, deviation=0.0, variance=1e-8)}


class StdConv2d(nn.Conv2d):
    """Each filter is standardised, over inputs and places, before use ("Micro-Batch Training", arXiv 1903.10520); no bias."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, eps: Eps, stride: int = 1) -> None:
        super().__init__(channels, out_channels, kernel_size, stride, bias=False)
        self.eps = eps
        lecun_normal_(self.weight)

    def standardised(self) -> torch.Tensor:
        """fp32."""
        variance, mean = torch.var_mean(self.weight.float(), dim=(1, 2, 3), correction=0, keepdim=True)
        return (self.weight.float() - mean) / ((variance + self.eps.variance).sqrt() + self.eps.deviation)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        same = pad_same(images_BCHW, self.kernel_size[0], self.stride[0])
        return F.conv2d(same, self.standardised().to(images_BCHW.dtype), stride=self.stride)


class BiTConv2d(StdConv2d):
    """The same with zeros on both sides alike."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        weight = self.standardised().to(images_BCHW.dtype)
        return F.conv2d(images_BCHW, weight, stride=self.stride, padding=(self.kernel_size[0] - 1) // 2)


class GroupNorm(nn.GroupNorm):
    """32 groups, computed in fp32 whatever the input's type."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(NUM_GROUPS, channels, eps)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        normal = F.group_norm(images_BCHW.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return normal.to(images_BCHW.dtype)


def pad_same(images_BCHW: torch.Tensor, kernel_size: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Padding after which a convolution gives ceil(size / stride) places; what is odd goes to the right and below."""
    totals = [max(0, (-(-size // stride) - 1) * stride + kernel_size - size) for size in images_BCHW.shape[:1:-1]]
    return F.pad(images_BCHW, [side for total in totals for side in (total // 2, total - total // 2)], value=value)


class Stem(nn.Module):
    """Root and stages of the ResNet in front of a hybrid: images to `channels` features at a 4 x 2^(stages-1)th of the size."""

    def __init__(self, blocks: tuple[int, ...], eps: Eps) -> None:
        super().__init__()
        self.root = StdConv2d(3, ROOT_WIDTH, 7, eps, stride=2)
        self.norm = GroupNorm(ROOT_WIDTH, eps.norm)
        self.stages, self.channels = build_stages(Unit, blocks, ROOT_WIDTH, eps)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.root(images_BCHW)))
        return self.stages(F.max_pool2d(pad_same(x, 3, 2, value=float("-inf")), 3, stride=2))


class Unit(nn.Module):
    """Bottleneck of a ResNet-v1: 1 x 1, 3 x 3 (with the stride), 1 x 1, each normalised; added to its input."""

    def __init__(self, channels: int, width: int, stride: int, eps: Eps) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1, self.norm1 = StdConv2d(channels, width, 1, eps), GroupNorm(width, eps.norm)
        self.conv2, self.norm2 = StdConv2d(width, width, 3, eps, stride), GroupNorm(width, eps.norm)
        self.conv3, self.norm3 = StdConv2d(width, out_channels, 1, eps), GroupNorm(out_channels, eps.norm)
        nn.init.zeros_(self.norm3.weight)  # each unit starts as its shortcut
        self.shortcut: nn.Module = nn.Identity()
        if channels != out_channels or stride != 1:
            conv, norm = StdConv2d(channels, out_channels, 1, eps, stride), GroupNorm(out_channels, eps.norm)
            self.shortcut = nn.Sequential(conv, norm)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x_BCHW)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.shortcut(x_BCHW) + self.norm3(self.conv3(y)))


class BiT(nn.Module):
    """Images to logits: root, four stages, norm, mean over the places, head."""

    def __init__(self, config: BiTConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = ROOT_WIDTH * config.width_factor, BIT_EPS[config.resnet_eps]
        self.root = BiTConv2d(3, width, 7, eps, stride=2)
        self.stages, channels = build_stages(BiTUnit, config.blocks, width, eps)
        self.norm = GroupNorm(channels, eps.norm)
        self.head = Head(channels, config.num_classes, config.head_bias)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # -> logits_BK
        return self.head(self.features(images_BCHW))

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # -> features_BC
        x = F.max_pool2d(F.pad(self.root(images_BCHW), (1, 1, 1, 1)), 3, stride=2)
        return F.relu(self.norm(self.stages(x))).mean(dim=(2, 3))


class BiTUnit(nn.Module):
    """Bottleneck of a ResNet-v2: norm and ReLU before each convolution; the first also before the shortcut's."""

    def __init__(self, channels: int, width: int, stride: int, eps: Eps) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.norm1, self.conv1 = GroupNorm(channels, eps.norm), BiTConv2d(channels, width, 1, eps)
        self.norm2, self.conv2 = GroupNorm(width, eps.norm), BiTConv2d(width, width, 3, eps, stride)
        self.norm3, self.conv3 = GroupNorm(width, eps.norm), BiTConv2d(width, out_channels, 1, eps)
        projects = channels != out_channels or stride != 1
        self.shortcut = BiTConv2d(channels, out_channels, 1, eps, stride) if projects else None

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(x_BCHW))
        shortcut = x_BCHW if self.shortcut is None else self.shortcut(y)
        y = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return shortcut + self.conv3(F.relu(self.norm3(y)))


def build_stages(unit: type[Unit] | type[BiTUnit], blocks: tuple[int, ...], width: int, eps: Eps) -> tuple[nn.Sequential, int]:
    """Stages of units, each stage but the first at half the size and twice the channels; and the channels that come out."""
    stages, channels = [], width
    for stage, count in enumerate(blocks):
        stage_width, units = width * 2**stage, []
        for number in range(count):
            units.append(unit(channels, stage_width, 2 if stage > 0 and number == 0 else 1, eps))
            channels = EXPANSION * stage_width
        stages.append(nn.Sequential(*units))
    return nn.Sequential(*stages), channels
