"""Floating-point operations of one training image, counted as the papers count them. Imports no torch."""

from vitscale.model.config import BiTConfig, ModelConfig, ViTConfig
from vitscale.model.zoo import EXPANSION, ROOT_WIDTH


def forward_macs(model: ModelConfig) -> int:
    """Multiply-adds of a forward pass: matrix products and convolutions."""
    if isinstance(model, BiTConfig):
        width = ROOT_WIDTH * model.width_factor
        stages, channels, _ = stage_macs(model.blocks, width, half(half(model.image_size)))
        return first_layer_macs(model) + stages + channels * model.num_classes
    assert isinstance(model, ViTConfig)
    return stem_macs(model) + patch_macs(model) + encoder_macs(model) + head_macs(model)


def train_flops(model: ModelConfig) -> int:
    """Forward and backward of one image: backward is twice forward, but needs no gradient of the pixels."""
    return 6 * forward_macs(model) - 2 * first_layer_macs(model)


def first_layer_macs(model: ModelConfig) -> int:
    """What touches the pixels: the patch embedding, or the ResNet's first convolution."""
    if isinstance(model, ViTConfig) and model.stem_blocks is None:
        return patch_macs(model)
    width = ROOT_WIDTH * getattr(model, "width_factor", 1)
    return half(model.image_size) ** 2 * 49 * 3 * width


def encoder_macs(model: ViTConfig) -> int:
    n, d = model.num_tokens, model.width
    relative = n * n * d if model.pos_embed == "relative" else 0
    return model.depth * ((4 * d * d + 2 * d * model.mlp_dim) * n + 2 * n * n * d + relative)


def patch_macs(model: ViTConfig) -> int:
    channels = patch_channels(model.stem_blocks)
    return model.grid[0] * model.grid[1] * channels * model.patch_size**2 * model.width


def patch_channels(stem_blocks: tuple[int, ...] | None) -> int:
    """Channels of what is cut into patches: colours, or features of a ResNet."""
    return 3 if stem_blocks is None else stage_macs(stem_blocks, ROOT_WIDTH, 1)[1]


def stem_macs(model: ViTConfig) -> int:
    if model.stem_blocks is None:
        return 0
    return first_layer_macs(model) + stage_macs(model.stem_blocks, ROOT_WIDTH, half(half(model.image_size)))[0]


def head_macs(model: ViTConfig) -> int:
    n, d, hidden = model.num_tokens, model.width, model.representation_size or 0
    pool = 2 * d * d * (n + 1) + 2 * n * d + 2 * d * model.mlp_dim if model.pool == "map" else 0
    return pool + d * hidden + (hidden or d) * model.num_classes


def stage_macs(blocks: tuple[int, ...], width: int, size: int) -> tuple[int, int, int]:
    """A ResNet's stages on a map of `size` x `size`: multiply-adds, the channels and the size that come out."""
    macs, channels = 0, width
    for stage, units in enumerate(blocks):
        for number in range(units):
            first, inner = number == 0, width * 2**stage
            size_in, size = size, half(size) if first and stage > 0 else size
            shortcut = channels * EXPANSION * inner if first else 0
            macs += size_in**2 * channels * inner + size**2 * (9 * inner**2 + EXPANSION * inner**2 + shortcut)
            channels = EXPANSION * inner
    return macs, channels, size


def half(size: int) -> int:
    return -(-size // 2)
