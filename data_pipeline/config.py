"""The `data:` section of a recipe: which images, in which order, changed how."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen part of a recipe. Unknown keys and values of another type are errors; the line below a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


Positive = Annotated[float, Field(gt=0.0)]
Pair = Annotated[tuple[float, float], Field(strict=False)]  # YAML has lists, not tuples
Channels = Annotated[tuple[float, float, float], Field(strict=False)]


class SourceConfig(Section):
    """One set of shards."""

    manifest: str
    """path of the manifest that `vitscale data build` or `vitscale data index` wrote"""
    samples: int | None = Field(None, ge=1)
    """images in it: lets `show` compute steps before the data exist; checked against the manifest at start"""


class AugmentConfig(Section):
    """Random changes of training images; every draw is keyed by (seed, epoch, sample)."""

    crop_area: Pair = (0.05, 1.0)
    """inception crop: fraction of the image's area, from and to"""
    crop_ratio: Pair = (3 / 4, 4 / 3)
    """inception crop: width / height, from and to"""
    flip: bool = True
    """mirror left-right with probability 1/2"""
    mixup: float = Field(0.0, ge=0.0, le=2.0)
    """alpha of mixup's Beta(alpha, alpha); 0 = off"""

    @model_validator(mode="after")
    def ranges(self) -> Self:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_area [{low}, {high}] is not a range within (0, 1], lower end first")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio [{low}, {high}] is not a range of positive numbers, lower end first")
        return self


class DataConfig(Section):
    """Shards, order and preprocessing."""

    train: SourceConfig
    """training shards"""
    val: SourceConfig | None = None
    """held-out shards; without them nothing is evaluated"""
    lanes: int | None = Field(None, ge=1)
    """parallel streams through the shards; must divide global_batch and be divisible by the ranks; default global_batch"""
    shuffle_block: int = Field(64, ge=1)
    """samples shuffled together inside a lane; larger mixes better and reads more ahead"""
    mix_group: int = Field(8, ge=1)
    """consecutive batch slots that mixup pairs with each other; must divide the micro-batch when mixup is on"""
    mean: Channels = (0.5, 0.5, 0.5)
    """subtracted from pixels scaled to [0, 1], per RGB channel"""
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] = (0.5, 0.5, 0.5)
    """divides after the mean is subtracted, per RGB channel"""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """how images are resized (antialiased)"""
    eval_crop: float = Field(0.875, gt=0.0, le=1.0)
    """evaluation: fraction of the resized short side that the centre crop keeps (224 of 256 = 0.875)"""
    augment: AugmentConfig = AugmentConfig()
    """random changes of training images"""
