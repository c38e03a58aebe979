"""The encoder of the ViT paper (section 3.1, appendix A) in float64 numpy; tokens are (B, N, D)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from references.layers import Affine, Array, dense, layer_norm


class Attention(NamedTuple):
    """Every weight (D, D)."""

    query: Affine
    key: Affine
    value: Affine
    out: Affine


def attention(to: Array, of: Array, layer: Attention, num_heads: int) -> Array:
    """Multi-head dot-product attention (ViT paper, appendix A) of tokens `to` (B, M, D) on tokens `of` (B, N, D)."""
    query, key, value = dense(to, layer.query), dense(of, layer.key), dense(of, layer.value)
    parts = zip(*(np.split(tensor, num_heads, axis=2) for tensor in (query, key, value)), strict=True)
    return dense(np.concatenate([one_head(*part) for part in parts], axis=2), layer.out)


def one_head(query: Array, key: Array, value: Array) -> Array:
    scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[2])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


class MLP(NamedTuple):
    fc1: Affine
    fc2: Affine


def mlp(x: Array, layer: MLP, gelu: Callable[[Array], Array]) -> Array:
    return dense(gelu(dense(x, layer.fc1)), layer.fc2)


class Block(NamedTuple):
    """An encoder block; `scale1` and `scale2` are LayerScale's, on the two branches."""

    norm1: Affine
    attention: Attention
    norm2: Affine
    mlp: MLP
    scale1: Array | float = 1.0
    scale2: Array | float = 1.0


class Transformer(NamedTuple):
    """The arithmetic of a transformer, that no file of weights tells."""

    num_heads: int
    eps: float
    gelu: Callable[[Array], Array]

    def block(self, x: Array, block: Block) -> Array:
        """Equations 2 and 3 of the ViT paper."""
        normed = layer_norm(x, block.norm1, self.eps)
        x = x + block.scale1 * attention(normed, normed, block.attention, self.num_heads)
        return x + block.scale2 * mlp(layer_norm(x, block.norm2, self.eps), block.mlp, self.gelu)

    def attention_pool(self, x: Array, probe: Array, layer: Attention, norm: Affine, hidden: MLP) -> Array:
        """A learned query attends to all tokens; an MLP with a residual follows ("Scaling Vision Transformers", MAP)."""
        probes = np.broadcast_to(probe, (len(x), *probe.shape[1:]))
        pooled = attention(probes, x, layer, self.num_heads)
        return (pooled + mlp(layer_norm(pooled, norm, self.eps), hidden, self.gelu))[:, 0]
