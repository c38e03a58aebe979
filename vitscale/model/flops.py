"""Floating-point operations of one training image, counted as the papers count them. Imports no torch."""

from vitscale.config import ModelConfig


def forward_macs(model: ModelConfig) -> int:
    """Multiply-adds of a forward pass: matrix products of the encoder, attention, patch embedding and head."""
    n, d, mlp = model.num_tokens, model.width, model.mlp_dim
    encoder = model.depth * ((4 * d * d + 2 * d * mlp) * n + 2 * n * n * d)
    hidden = model.representation_size or 0
    return encoder + patch_embed_macs(model) + d * hidden + (hidden or d) * model.num_classes


def patch_embed_macs(model: ModelConfig) -> int:
    return model.grid_size**2 * 3 * model.patch_size**2 * model.width


def train_flops(model: ModelConfig) -> int:
    """Forward and backward of one image: backward is twice forward, but needs no gradient of the pixels."""
    return 6 * forward_macs(model) - 2 * patch_embed_macs(model)
