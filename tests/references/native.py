"""Our own models, every option, in float64 numpy from the names of their tensors: equations 1 to 4 of the ViT paper and more.

Weights are float64 arrays by name; images (B, C, H, W) of any size that the position embedding in the weights fits.
"""

import math
from collections.abc import Callable

import numpy as np

from references.layers import (
    Affine,
    Array,
    channels_last,
    dense,
    fixed,
    gelu_erf,
    gelu_tanh,
    layer_norm,
    patch_tokens,
    relu,
    same,
)
from references.resnet import ResNet, Unit
from vitscale.model.config import BiTConfig, ViTConfig

Weights = dict[str, Array]
HYBRID = {
    "official": ResNet(group_eps=1e-6, kernel_eps=1e-5, eps_inside=False, padding=same),
    "timm": ResNet(group_eps=1e-5, kernel_eps=1e-8, eps_inside=True, padding=same),
}
BIT = {
    "official": ResNet(group_eps=1e-5, kernel_eps=1e-10, eps_inside=True, padding=fixed),
    "timm": ResNet(group_eps=1e-5, kernel_eps=1e-8, eps_inside=True, padding=fixed),
}


def logits_native(w: Weights, cfg: ViTConfig | BiTConfig, images_BCHW: Array, chance_BL2: Array | None = None) -> Array:
    """`chance_BL2`: an image's branch is left out where it is below the block's rate, and divided by 1 - rate elsewhere."""
    x = channels_last(images_BCHW)
    if isinstance(cfg, BiTConfig):
        return logits_bit(w, cfg, x)
    if cfg.stem_blocks is not None:
        resnet = HYBRID[cfg.resnet_eps]
        root = resnet.hybrid_root(x, kernel(w, "stem.root"), affine(w, "stem.norm"))
        x = resnet.units(root, units(w, "stem.stages", cfg.stem_blocks), resnet.hybrid_unit)
    embedding = w["patch_embed.proj.weight"].T.reshape(cfg.patch_size, cfg.patch_size, -1, cfg.width)
    tokens = patch_tokens(x, Affine(embedding, w["patch_embed.proj.bias"]))
    if cfg.pool == "token":
        tokens = np.concatenate([np.tile(w["cls_token"], (len(x), 1, 1)), tokens], axis=1)
    grid = x.shape[1] // cfg.patch_size, x.shape[2] // cfg.patch_size
    for layer, rate in enumerate(rates(cfg)):
        if layer == 0 or cfg.pos_embed_at != "stem":
            tokens = tokens + positions(w, cfg, layer, grid)
        kept = np.ones((2, len(x))) if chance_BL2 is None else (rate <= chance_BL2[:, layer].T) / (1 - rate)
        tokens = block(tokens, w, cfg, layer, kept[:, :, None, None])
    tokens = layer_norm(tokens, affine(w, "norm"), cfg.norm_eps)
    return dense(features(tokens, w, cfg), linear(w, "head"))


def rates(cfg: ViTConfig) -> Array:
    if cfg.drop_path_schedule == "constant":
        return np.full(cfg.depth, cfg.drop_path)
    return np.linspace(0, cfg.drop_path, cfg.depth)


def features(tokens: Array, w: Weights, cfg: ViTConfig) -> Array:
    if cfg.pool == "token":
        pooled = tokens[:, 0]
    elif cfg.pool == "gap":
        pooled = tokens.mean(1)
    else:
        name, width = "attention_pool", cfg.width
        q = dense(np.tile(w[f"{name}.probe"], (len(tokens), 1, 1)), linear(w, f"{name}.q"))
        kv = dense(tokens, linear(w, f"{name}.kv"))
        pooled = dense(heads(q, kv[:, :, :width], kv[:, :, width:], cfg.num_heads), linear(w, f"{name}.out"))
        pooled = (pooled + mlp(layer_norm(pooled, affine(w, f"{name}.norm"), cfg.norm_eps), w, f"{name}.mlp", cfg))[:, 0]
    return np.tanh(dense(pooled, linear(w, "pre_logits.fc"))) if cfg.representation_size else pooled


def block(x: Array, w: Weights, cfg: ViTConfig, layer: int, kept: Array) -> Array:
    name = f"blocks.{layer}"
    qkv = np.split(
        dense(layer_norm(x, affine(w, f"{name}.norm1"), cfg.norm_eps), linear(w, f"{name}.attention.qkv")), 3, axis=2
    )
    mixed = heads(*qkv, cfg.num_heads, relative_keys(w, cfg, layer, x.shape[1]))
    x = x + kept[0] * w.get(f"{name}.scale1.factor", 1.0) * dense(mixed, linear(w, f"{name}.attention.out"))
    hidden = mlp(layer_norm(x, affine(w, f"{name}.norm2"), cfg.norm_eps), w, f"{name}.mlp", cfg)
    return x + kept[1] * w.get(f"{name}.scale2.factor", 1.0) * hidden


def heads(q: Array, k: Array, v: Array, num_heads: int, keys_NMd: Array | float = 0.0) -> Array:
    """Appendix A, head by head; `keys_NMd` are added to the keys as query n sees them (Shaw et al. 2018, eq. 4)."""
    mixed = []
    for q_h, k_h, v_h in zip(*(np.split(part, num_heads, axis=2) for part in (q, k, v)), strict=True):
        scores = (q_h[:, :, None] * (k_h[:, None] + keys_NMd)).sum(-1) / math.sqrt(q_h.shape[2])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ v_h)
    return np.concatenate(mixed, axis=2)


def mlp(x: Array, w: Weights, name: str, cfg: ViTConfig) -> Array:
    gelu: Callable[[Array], Array] = gelu_tanh if cfg.gelu == "tanh" else gelu_erf
    return dense(gelu(dense(x, linear(w, f"{name}.fc1"))), linear(w, f"{name}.fc2"))


def positions(w: Weights, cfg: ViTConfig, layer: int, grid: tuple[int, int]) -> Array | float:
    """(prefix + N, D), token by token."""
    table = layer if cfg.pos_embed_at == "every" else 0
    if cfg.pos_embed == "learned1d":
        return w["pos_embed.table"][table]
    if cfg.pos_embed not in ("learned2d", "sincos2d"):
        return 0.0
    rows = [np.zeros(cfg.width)] if cfg.pool == "token" else []
    for y in range(grid[0]):
        for x in range(grid[1]):
            if cfg.pos_embed == "learned2d":
                rows.append(np.concatenate([w["pos_embed.columns"][table, x], w["pos_embed.rows"][table, y]]))
            else:
                rows.append(sincos(y, x, cfg.width))
    return np.stack(rows)


def sincos(y: int, x: int, width: int) -> Array:
    """big_vision's posemb_sincos_2d for one patch."""
    omega = 1 / 10_000 ** (np.arange(width // 4) / (width // 4 - 1))
    return np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])


def relative_keys(w: Weights, cfg: ViTConfig, layer: int, num_tokens: int) -> Array | float:
    """(N, N, d): for query i and key j that of the distance i - j in raster order, none for a class token (appendix D.4)."""
    if cfg.pos_embed != "relative":
        return 0.0
    table = w["relative_keys.table"][0 if cfg.pos_embed_at == "shared" else layer]
    prefix, middle = int(cfg.pool == "token"), len(table) // 2
    keys = np.zeros((num_tokens, num_tokens, table.shape[1]))
    for i in range(prefix, num_tokens):
        for j in range(prefix, num_tokens):
            keys[i, j] = table[middle + i - j]
    return keys


def logits_bit(w: Weights, cfg: BiTConfig, x: Array) -> Array:
    resnet = BIT[cfg.resnet_eps]
    x = resnet.units(resnet.bit_root(x, kernel(w, "root")), units(w, "stages", cfg.blocks), resnet.bit_unit)
    return dense(relu(resnet.norm(x, affine(w, "norm"))).mean((1, 2)), linear(w, "head"))


def units(w: Weights, name: str, blocks: tuple[int, ...]) -> list[list[Unit]]:
    return [[unit(w, f"{name}.{stage}.{number}") for number in range(count)] for stage, count in enumerate(blocks)]


def unit(w: Weights, name: str) -> Unit:
    kernels = tuple(kernel(w, f"{name}.conv{part}") for part in (1, 2, 3))
    norms = tuple(affine(w, f"{name}.norm{part}") for part in (1, 2, 3))
    if f"{name}.shortcut.0.weight" in w:
        return Unit(kernels, norms, kernel(w, f"{name}.shortcut.0"), affine(w, f"{name}.shortcut.1"))
    return Unit(kernels, norms, kernel(w, f"{name}.shortcut") if f"{name}.shortcut.weight" in w else None)


def linear(w: Weights, name: str) -> Affine:
    return Affine(w[f"{name}.weight"].T, w[f"{name}.bias"])


def affine(w: Weights, name: str) -> Affine:
    return Affine(w[f"{name}.weight"], w[f"{name}.bias"])


def kernel(w: Weights, name: str) -> Array:
    return w[f"{name}.weight"].transpose(2, 3, 1, 0)
