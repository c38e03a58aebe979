"""The ResNets of the hybrids (post-activation) and of BiT (pre-activation) in float64 numpy; feature maps are (B, H, W, C)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from references.layers import Affine, Array, Padding, conv, group_norm, max_pool, relu, standardise


class Unit(NamedTuple):
    """A bottleneck of ResNet: 1x1, 3x3 with the stride, 1x1, each with its norm; a projection where the shape changes."""

    kernels: tuple[Array, Array, Array]
    norms: tuple[Affine, Affine, Affine]
    projection: Array | None
    projection_norm: Affine | None = None


class ResNet(NamedTuple):
    """The arithmetic of a ResNet with GroupNorm and standardised kernels, that no file of weights tells."""

    group_eps: float
    kernel_eps: float
    eps_inside: bool
    padding: Padding

    def conv(self, x: Array, kernel: Array, stride: int = 1) -> Array:
        return conv(x, standardise(kernel, self.kernel_eps, self.eps_inside), stride, self.padding)

    def norm(self, x: Array, norm: Affine) -> Array:
        return group_norm(x, norm, self.group_eps)

    def hybrid_root(self, x: Array, kernel: Array, norm: Affine) -> Array:
        return max_pool(relu(self.norm(self.conv(x, kernel, 2), norm)), self.padding, -np.inf)

    def bit_root(self, x: Array, kernel: Array) -> Array:
        return max_pool(self.conv(x, kernel, 2), self.padding, 0.0)

    def hybrid_unit(self, x: Array, unit: Unit, stride: int) -> Array:
        """Post-activation, a norm also after the projection."""
        shortcut = x
        if unit.projection is not None:
            shortcut = self.norm(self.conv(x, unit.projection, stride), unit.projection_norm)
        for kernel, norm, step in zip(unit.kernels[:2], unit.norms[:2], (1, stride), strict=True):
            x = relu(self.norm(self.conv(x, kernel, step), norm))
        return relu(shortcut + self.norm(self.conv(x, unit.kernels[2]), unit.norms[2]))

    def bit_unit(self, x: Array, unit: Unit, stride: int) -> Array:
        """Pre-activation: the projection sees the normed input, the residual path is never rectified."""
        normed = relu(self.norm(x, unit.norms[0]))
        shortcut = x if unit.projection is None else self.conv(normed, unit.projection, stride)
        x = self.conv(normed, unit.kernels[0])
        x = self.conv(relu(self.norm(x, unit.norms[1])), unit.kernels[1], stride)
        return shortcut + self.conv(relu(self.norm(x, unit.norms[2])), unit.kernels[2])

    def units(self, x: Array, stages: list[list[Unit]], step: Callable[[Array, Unit, int], Array]) -> Array:
        """All stages; the first unit of every stage but the first halves the sides."""
        for stage, units in enumerate(stages):
            for number, unit in enumerate(units):
                x = step(x, unit, 2 if stage and not number else 1)
        return x
