"""Random tensors of a file of weights."""

import math

import numpy as np

from references.layers import Array


class Draw:
    """Random tensors, float32, at scales where a wrong detail (an eps, a GELU, a bias left out) shows in the logits."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def normal(self, *shape: int, mean: float = 0.0, std: float = 0.3) -> Array:
        return self.rng.normal(mean, std, shape).astype(np.float32)

    def kernel(self, *shape: int, fan_in: int | None = None) -> Array:
        """The last axis is the output's, unless fan_in is given."""
        return self.normal(*shape, std=1.5 * (fan_in or math.prod(shape[:-1])) ** -0.5)

    def embedding(self, *shape: int) -> Array:
        """For what the first LayerNorm sees: so small that its eps counts."""
        return self.normal(*shape, std=0.01)

    def std_kernel(self, *shape: int) -> Array:
        """For a kernel that is standardised: small, every output channel with its own mean and its own size."""
        size = np.exp(self.rng.uniform(math.log(0.001), math.log(0.02), shape[-1]))
        return ((self.rng.normal(size=shape) + self.rng.normal(size=shape[-1])) * size).astype(np.float32)

    def norm(self, channels: int) -> tuple[Array, Array]:
        return self.normal(channels, mean=1.0), self.normal(channels)

    def small_norm(self, *shape: int) -> tuple[Array, Array]:
        """For a GroupNorm before a standardised kernel: so small that the next norm's eps counts."""
        return self.rng.uniform(0.002, 0.006, shape).astype(np.float32), self.normal(*shape, std=0.002)
