"""The Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1).

B images, C channels, P patch side, G grid side (image side / P), N tokens (G*G, one more with a class token), D width,
H heads, K classes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vitscale.config import ModelConfig
from vitscale.model import posembed

EPS = 1e-6  # LayerNorm, as in the official code


class ViT(nn.Module):
    """Images to logits: patches, tokens, encoder, head."""

    pos_embed: torch.Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch_size, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.pool == "token" else None
        posembed.attach(self, config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = LayerNorm(config.width)
        self.pre_logits = PreLogits(config.width, config.representation_size) if config.representation_size else nn.Identity()
        self.head = Head(config.representation_size or config.width, config.num_classes, config.head_bias)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # -> logits_BK
        return self.head(self.pre_logits(self.features(images_BCHW)))

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # -> features_BD
        """What the head sees: the class token, or the mean over all tokens."""
        tokens_BND = self.patch_embed(images_BCHW)
        if self.cls_token is not None:
            tokens_BND = torch.cat([self.cls_token.expand(len(tokens_BND), -1, -1), tokens_BND], dim=1)
        if self.pos_embed is not None:
            tokens_BND = tokens_BND + self.pos_embed
        tokens_BND = self.dropout(tokens_BND)
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        tokens_BND = self.norm(tokens_BND)
        return tokens_BND[:, 0] if self.cls_token is not None else tokens_BND.mean(dim=1)


class PatchEmbed(nn.Module):
    """Each P x P patch, flattened in (row, column, channel) order, times one matrix (eq. 1): a convolution of stride P."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(3 * patch_size**2, width)
        lecun_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # -> tokens_BND
        patches = images_BCHW.unflatten(3, (-1, self.patch_size)).unflatten(2, (-1, self.patch_size))
        return self.proj(patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to its input (eq. 2 and 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        self.norm2 = LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_dim, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:  # -> tokens_BND
        tokens_BND = tokens_BND + self.dropout(self.attention(self.norm1(tokens_BND)))
        return tokens_BND + self.mlp(self.norm2(tokens_BND))


class Attention(nn.Module):
    """Multi-head self-attention (appendix A). q, k and v come from one fused matrix."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        # Xavier on each of q, k, v: on the fused matrix its limit would be too small by sqrt(2).
        for weight in (*self.qkv.weight.data.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:  # -> tokens_BND
        qkv = self.qkv(tokens_BND).unflatten(2, (3, self.num_heads, -1))
        q_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4)
        mixed_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        return self.out(mixed_BHNd.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with a GELU between (the tanh form, as in the official code)."""

    def __init__(self, width: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, width)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:  # -> tokens_BND
        hidden = self.dropout(F.gelu(self.fc1(tokens_BND), approximate="tanh"))
        return self.dropout(self.fc2(hidden))


class PreLogits(nn.Module):
    """The hidden layer of the pretraining head (section 3.1: "a MLP with one hidden layer at pre-training time")."""

    def __init__(self, width: int, representation_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, representation_size)
        lecun_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.fc(features_BD))


class Head(nn.Linear):
    """Zero weights, so that the first logits are all `bias` (-10 for sigmoid pretraining on many classes)."""

    def __init__(self, width: int, num_classes: int, bias: float) -> None:
        super().__init__(width, num_classes)
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, bias)


class LayerNorm(nn.LayerNorm):
    """Computed in fp32 whatever the input's type."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normal = F.layer_norm(tokens.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normal.to(tokens.dtype)


def lecun_normal_(weight: torch.Tensor) -> None:
    """Normal of variance 1 / fan_in, truncated at two sigma and rescaled, as jax.nn.initializers.lecun_normal."""
    std = weight.shape[1] ** -0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
