"""The `data:` section of a recipe: which images, in which order, changed how."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator


class Section(BaseModel):
    """A frozen part of a recipe. Unknown keys and values of another type are errors; the line below a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0.0)]
Pair = Annotated[tuple[float, float], Field(strict=False)]  # YAML has lists, not tuples
Channels = Annotated[tuple[float, float, float], Field(strict=False)]


class SourceConfig(Section):
    """One set of shards."""

    manifest: str
    """path or URL of the manifest that `vitscale data build` or `vitscale data index` wrote"""
    samples: int | None = Field(None, ge=1)
    """images in it: lets `show` compute steps before the data exist; checked against the manifest at start"""


class TrainSourceConfig(SourceConfig):
    """One of the sets that are trained on."""

    weight: Positive | None = None
    """its share of every batch, relative to the other sources' weights; default: its number of images"""


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _single(sources: tuple[TrainSourceConfig, ...]) -> Any:
    dumped = [source.model_dump() for source in sources]
    return dumped[0] if len(dumped) == 1 else dumped


# In a recipe one source may stand by itself, and several as a list.
Sources = Annotated[
    tuple[TrainSourceConfig, ...], Field(strict=False, min_length=1), BeforeValidator(_listed), PlainSerializer(_single)
]


class AugmentConfig(Section):
    """Random changes of training images; every draw is keyed by (seed, epoch, sample)."""

    crop: Literal["inception", "simple"] = "inception"
    """inception: random area and ratio; simple: short side resized to the model's size, padded by 4, random square"""
    crop_area: Pair = (0.05, 1.0)
    """inception crop: fraction of the image's area, from and to"""
    crop_ratio: Pair = (3 / 4, 4 / 3)
    """inception crop: width / height, from and to"""
    flip: bool = True
    """mirror left-right with probability 1/2"""
    three_augment: bool = False
    """one of grey, solarise and blur (DeiT III)"""
    color_jitter: float = Field(0.0, ge=0.0, le=1.0)
    """brightness, contrast and saturation each times a factor from 1 - x to 1 + x; 0 = off"""
    randaugment: Literal["tf", "timm"] = "tf"
    """tf: as in AugReg, moves and holes in pixels, meant for images of 224; timm: its rand-mstd0.5-inc1, as in DeiT and MAE"""
    randaugment_layers: int = Field(0, ge=0)
    """operations of RandAugment applied one after another; 0 = off"""
    randaugment_magnitude: float = Field(10.0, ge=0.0, le=30.0)
    """strength of RandAugment's operations; above 10 tf's extrapolate and timm's are those of 10"""
    erase: float = Field(0.0, ge=0.0, le=1.0)
    """probability that a random rectangle is replaced by noise (random erasing)"""
    mixup: float = Field(0.0, ge=0.0, le=2.0)
    """alpha of mixup's Beta(alpha, alpha); 0 = off"""
    cutmix: float = Field(0.0, ge=0.0, le=2.0)
    """alpha of cutmix's Beta(alpha, alpha); 0 = off; with mixup on, each group of slots takes one or the other"""

    @property
    def mixes(self) -> bool:
        """Whether images of a group are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def ranges(self) -> Self:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_area [{low}, {high}] is not a range within (0, 1], lower end first")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio [{low}, {high}] is not a range of positive numbers, lower end first")
        return self


class BadSamplesConfig(Section):
    """What happens when an image cannot be used: damaged, undecodable, huge, or with a label that does not exist."""

    policy: Literal["fail", "replace"] = "fail"
    """fail: stop and say which; replace: by another of its source, always the same one, noted in data_ledger.jsonl"""
    max_fraction: float = Field(1e-3, ge=0.0, le=1.0)
    """replace: largest part of the images seen so far; above it the run stops"""
    max_run: int = Field(16, ge=1)
    """replace: most bad images in a row in a shard, and most that are tried in the place of one; above it the run stops"""


class OrderConfig(Section):
    """Which images, in which order."""

    train: Sources
    """training shards: one source, or a list of several that are mixed by weight"""
    val: SourceConfig | None = None
    """held-out shards; without them nothing is evaluated"""
    lanes: int | None = Field(None, ge=1)
    """parallel streams through the shards; must divide global_batch and be divisible by the ranks; default global_batch"""
    shuffle_block: int = Field(64, ge=1)
    """samples shuffled together inside a lane; larger mixes better and reads more ahead"""
    mix_group: int = Field(8, ge=1)
    """consecutive batch slots that mixup and cutmix pair with each other; must divide the micro-batch when either is on"""
    repeated: int = Field(1, ge=1)
    """slots of a batch that an image takes, each with another crop (DeiT: 3); an epoch sees that much fewer images"""

    @property
    def source_weights(self) -> list[float] | None:
        """Of each training source; None = each counts by its number of images."""
        return [source.weight for source in self.train if source.weight] or None

    @model_validator(mode="after")
    def weights_of_all_or_none(self) -> Self:
        given = [source.weight is not None for source in self.train]
        if any(given) and not all(given):
            raise ValueError("train: give every source a weight, or none (then each counts by its number of images)")
        return self


class Preprocessing(Section):
    """What training and evaluation do to every image; a model is used with what it was trained with."""

    mean: Channels = (0.5, 0.5, 0.5)
    """subtracted from pixels scaled to [0, 1], per RGB channel"""
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] = (0.5, 0.5, 0.5)
    """divides after the mean is subtracted, per RGB channel"""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """how images are resized (antialiased)"""
    eval_crop: float = Field(0.875, gt=0.0, le=1.0)
    """evaluation: fraction of the resized short side that the centre crop keeps (224 of 256 = 0.875)"""


class DataConfig(Preprocessing, OrderConfig):
    """Shards, order and preprocessing."""

    augment: AugmentConfig = AugmentConfig()
    """random changes of training images"""
    bad_samples: BadSamplesConfig = BadSamplesConfig()
    """what happens when an image cannot be used"""

    @model_validator(mode="after")
    def mixes_different_images(self) -> Self:
        if self.augment.mixes and self.repeated > 1 and self.mix_group < 2 * self.repeated:
            raise ValueError(
                f"mix_group {self.mix_group} is less than twice repeated {self.repeated}: images would be mixed with themselves"
            )
        return self
