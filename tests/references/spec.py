"""What a random file of weights is to hold."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ViTSpec:
    """A tiny Vision Transformer, or with `stem` a hybrid."""

    image_size: int = 12
    patch_size: int = 4  # on the stem's output where there is one
    width: int = 24
    depth: int = 2
    num_heads: int = 3
    mlp_dim: int = 48
    num_classes: int = 5
    pool: Literal["token", "gap", "map"] = "token"
    representation_size: int | None = None
    stem: tuple[int, ...] | None = None  # units per ResNet stage; () is the root alone
    stem_width: int = 64  # the root's channels; 32 groups must divide them

    @property
    def grid_size(self) -> int:
        side = self.image_size
        for _ in range(0 if self.stem is None else max(2, 1 + len(self.stem))):
            side = -(-side // 2)
        return side // self.patch_size

    @property
    def patch_channels(self) -> int:
        if self.stem is None:
            return 3
        return self.stem_width * 2 ** (len(self.stem) + 1) if self.stem else self.stem_width


@dataclass(frozen=True)
class BiTSpec:
    """A tiny pre-activation ResNet; width 64 is the x1 of the paper."""

    units: tuple[int, ...] = (1, 2, 1, 1)
    width: int = 64
    num_classes: int = 5
