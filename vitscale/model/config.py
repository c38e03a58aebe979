"""What a model may be: the Vision Transformer and its hybrids, or the BiT ResNet they are compared with. Imports no torch."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from data_pipeline.config import Section
from vitscale.model.zoo import BIT, ZOO

Count = Annotated[int, Field(ge=1, le=2**24)]
Grid = tuple[int, int]  # cells down, cells across


class ModelConfig(Section):
    """The model. Validating this class gives a ViTConfig or, where the name, `blocks` or `width_factor` say so, a BiTConfig."""

    # Two models of a kind with equal values here hold tensors of equal shapes, position embedding and head apart.
    ARCHITECTURE: ClassVar[tuple[str, ...]] = ()
    HEAD: ClassVar[tuple[str, ...]] = ("num_classes",)

    name: str = "custom"
    """a model of the papers (vit-b16, vit-l16, r50-b16, bit-r152x4, ...) that fills in its numbers, or `custom`"""
    image_size: int = Field(224, ge=1, le=2**16)
    """side of the square input in pixels"""
    num_classes: Count = 1000
    """outputs of the head"""
    head_bias: float = 0.0
    """initial bias of the head; -10 for sigmoid pretraining on many classes"""
    resnet_eps: Literal["official", "timm"] = "official"
    """hybrids and BiT: what keeps norms and standardised filters from dividing by zero, as the official code or as timm"""

    @model_validator(mode="wrap")
    @classmethod
    def of_its_kind(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> "ModelConfig":
        if not isinstance(values, dict) or not isinstance(values.get("name", "custom"), str):
            return handler(values)
        values = with_size(values)
        if cls is ModelConfig:
            return cls.kind(values).model_validate(values)
        return handler(values)

    @staticmethod
    def kind(values: dict[str, Any]) -> "type[ModelConfig]":
        """What these values describe."""
        is_bit = not {"blocks", "width_factor"}.isdisjoint(values) or str(values.get("name")) in BIT
        return BiTConfig if is_bit else ViTConfig

    def architecture_differences(self, other: "ModelConfig", with_head: bool = False) -> list[str]:
        """`width: 768 here, 1024 there` for everything that keeps the one's weights from fitting the other."""
        if type(self) is not type(other):
            kinds = (f"{type(model).__name__.removesuffix('Config')} {model.name}" for model in (self, other))
            return ["kind: {} here, {} there".format(*kinds)]
        names = self.ARCHITECTURE + (self.HEAD if with_head else ())
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return [f"{name}: {mine} here, {theirs} there" for name, mine, theirs in pairs if mine != theirs]


def with_size(values: dict[str, Any]) -> dict[str, Any]:
    """The values with the numbers that their `name` stands for; ValueError where they contradict it."""
    name = values.get("name", "custom")
    if name != "custom" and name not in ZOO:
        raise ValueError(f"unknown model name {name!r}; allowed: custom, {', '.join(ZOO)}")
    size = ZOO.get(name, {})
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in size}
    if differing := [key for key, value in given.items() if value != size[key]]:
        own = ", ".join(f"{key} {size[key]}" for key in differing)
        found = ", ".join(f"{key}: {values[key]}" for key in differing)
        raise ValueError(f"model {name} has {own}, and {found} is given beside it; use name: custom for other sizes")
    return {**values, **size}


def stem_stride(stem_blocks: tuple[int, ...] | None) -> int:
    """Pixels per cell of a ResNet's output: 4 after its root, doubled by every stage but the first; 1 without a ResNet."""
    return 1 if stem_blocks is None else 4 * 2 ** max(0, len(stem_blocks) - 1)


class ViTConfig(ModelConfig):
    """A Vision Transformer, on pixels or (hybrid) on what a ResNet makes of them."""

    ARCHITECTURE = (
        *("patch_size", "width", "depth", "num_heads", "mlp_dim", "stem_blocks", "pool", "pos_embed", "pos_embed_at"),
        *("uses_layer_scale", "gelu", "norm_eps", "resnet_eps"),
    )
    HEAD = ("num_classes", "representation_size")

    patch_size: Count
    """side of a patch: in pixels, in a hybrid in cells of the ResNet's output"""
    width: int = Field(ge=8, le=2**17)
    """D, the length of a token"""
    depth: int = Field(ge=1, le=1000)
    """encoder blocks"""
    num_heads: Count
    """attention heads; must divide width"""
    mlp_dim: Count
    """hidden width of a block's MLP"""
    stem_blocks: Annotated[tuple[Count, ...] | None, Field(strict=False)] = None
    """hybrids: units in each stage of the ResNet before the patches; [] = its root alone, none = no ResNet"""
    pool: Literal["token", "gap", "map"] = "token"
    """what the head sees: a class token, the mean over the patches, or an attention pool over them"""
    pos_embed: Literal["none", "learned1d", "learned2d", "sincos2d", "relative"] = "learned1d"
    """position embedding: a vector per patch, per row and column, fixed sines and cosines, or keys per distance"""
    pos_embed_at: Literal["stem", "every", "shared"] = "stem"
    """added once before the encoder, or before every block: one for each or the same; `relative` is in every block, each with
    its own unless `shared`"""
    representation_size: Count | None = None
    """width of the tanh layer before the head (pretraining head of the paper); none = a single linear head"""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """after every dense layer except qkv, and after adding the position embedding"""
    drop_path: float = Field(0.0, ge=0.0, lt=1.0)
    """chance that a training image skips an attention or MLP branch (stochastic depth)"""
    drop_path_schedule: Literal["linear", "constant"] = "linear"
    """over depth: from 0 at the first block up to drop_path at the last, or the same in all"""
    layer_scale: float | None = Field(None, gt=0.0)
    """initial value of a learned factor per channel on each branch (DeiT III: 1e-4); none = no such factor"""
    gelu: Literal["tanh", "exact"] = "tanh"
    """tanh approximation as in the official code, or the exact form of weights trained with timm or transformers"""
    norm_eps: float = Field(1e-6, gt=0.0)
    """added to the variance in LayerNorm; Hugging Face's ViT has 1e-12"""

    @model_validator(mode="after")
    def shapes_fit(self) -> Self:
        if self.image_size % self.stride:
            near = self.image_size // self.stride * self.stride
            stride, sizes = f"patch_size {self.patch_size}", [str(size) for size in (near, near + self.stride) if size]
            if self.stem_blocks is not None:
                stride += f" times the ResNet's stride {self.stem_stride}"
            raise ValueError(f"image_size {self.image_size} is not a multiple of {stride}; use {' or '.join(sizes)}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide width {self.width}")
        parts = {"sincos2d": 4, "learned2d": 2}.get(self.pos_embed, 1)
        if self.width % parts or (self.pos_embed == "sincos2d" and self.width < 8):
            raise ValueError(f"pos_embed {self.pos_embed} needs a width that {parts} divides, found {self.width}")
        return self

    @property
    def stem_stride(self) -> int:
        """Pixels per cell of the ResNet's output."""
        return stem_stride(self.stem_blocks)

    @property
    def stride(self) -> int:
        """Pixels between neighbouring patches."""
        return self.stem_stride * self.patch_size

    @property
    def grid(self) -> Grid:
        """Patches down and across."""
        return self.image_size // self.stride, self.image_size // self.stride

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return int(self.pool == "token")

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1] + self.num_prefix_tokens

    @property
    def uses_layer_scale(self) -> bool:
        return self.layer_scale is not None

    @property
    def drop_path_rates(self) -> list[float]:
        """One per block."""
        if self.drop_path_schedule == "constant" or self.depth == 1:
            return [self.drop_path] * self.depth
        return [self.drop_path * block / (self.depth - 1) for block in range(self.depth)]


class BiTConfig(ModelConfig):
    """A ResNet-v2 with group normalisation and standardised weights ("Big Transfer")."""

    ARCHITECTURE = ("blocks", "width_factor", "resnet_eps")

    blocks: Annotated[tuple[Count, Count, Count, Count], Field(strict=False)]
    """units in each of the four stages"""
    width_factor: Count
    """multiple of ResNet-50's channels"""
