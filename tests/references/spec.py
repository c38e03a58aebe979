"""What a random file of weights is to hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple


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


class UnitShape(NamedTuple):
    """Where a bottleneck stands and how wide it is, counted from 0; its output has four times `middle` channels."""

    stage: int
    unit: int
    channels: int
    middle: int

    @property
    def convolutions(self) -> dict[str, tuple[int, int, int, int]]:
        """(height, width, in, out) of `1`, `2`, `3`, and in a stage's first unit of the projection."""
        sides_1_3_1 = {
            "1": (1, 1, self.channels, self.middle),
            "2": (3, 3, self.middle, self.middle),
            "3": (1, 1, self.middle, 4 * self.middle),
        }
        return sides_1_3_1 | ({} if self.unit else {"projection": (1, 1, self.channels, 4 * self.middle)})


def unit_shapes(stages: tuple[int, ...], width: int) -> Iterator[UnitShape]:
    """Every bottleneck of a ResNet whose root has `width` channels."""
    channels = width
    for stage, units in enumerate(stages):
        middle = width * 2**stage
        for unit in range(units):
            yield UnitShape(stage, unit, channels, middle)
            channels = 4 * middle
