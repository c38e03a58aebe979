"""The Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1).

B images of H x W pixels in C channels, P patch side, N tokens (a patch each, one more with a class token), D width, heads h of
width d, L blocks, K classes. A grid is (patches down, patches across). Sharding, checkpointing and compiling come from outside.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitscale.model.config import Grid, ViTConfig
from vitscale.model.heads import AttentionPool, Head, PreLogits
from vitscale.model.layers import LayerNorm, LayerScale, drop_path_factor, lecun_normal_, scaled, xavier_linear
from vitscale.model.posembed import PosEmbed, RelativeKeys
from vitscale.model.resnet import STEM_EPS, Stem


class ViT(nn.Module):
    """Images to logits: patches, tokens, encoder, head. In evaluation any multiple of the patch will do as height and width."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = None if config.stem_blocks is None else Stem(config.stem_blocks, STEM_EPS[config.resnet_eps])
        self.patch_embed = PatchEmbed(config.patch_size, self.stem.channels if self.stem else 3, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.pool == "token" else None
        self.pos_embed = PosEmbed(config) if config.pos_embed in ("learned1d", "learned2d", "sincos2d") else None
        self.relative_keys = RelativeKeys(config) if config.pos_embed == "relative" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.attention_pool = AttentionPool(config, MLP(config)) if config.pool == "map" else None
        self.pre_logits = PreLogits(config.width, config.representation_size) if config.representation_size else nn.Identity()
        self.head = Head(config.representation_size or config.width, config.num_classes, config.head_bias)

    def forward(self, images_BCHW: torch.Tensor, chance_BL2: torch.Tensor | None = None) -> torch.Tensor:  # -> logits_BK
        """`chance_BL2`, uniform in [0, 1), decides in training which image skips which branch; default: torch's generator."""
        return self.head(self.pre_logits(self.features(images_BCHW, chance_BL2)))

    def features(self, images_BCHW: torch.Tensor, chance_BL2: torch.Tensor | None = None) -> torch.Tensor:  # -> features_BD
        """What the head sees: the class token (eq. 4), the mean over the patches, or an attention pool of them."""
        tokens_BND, grid = self.embed(images_BCHW)
        tokens_BND = self.norm(self.encode(tokens_BND, grid, chance_BL2))
        if self.attention_pool is not None:
            return self.attention_pool(tokens_BND)
        return tokens_BND[:, 0] if self.cls_token is not None else tokens_BND.mean(dim=1)

    def embed(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """Pixels, or a ResNet's features of them (hybrid), to tokens_BND; and how the patches lie."""
        grid = self.grid_of(images_BCHW)
        tokens_BND = self.patch_embed(images_BCHW if self.stem is None else self.stem(images_BCHW))
        if self.cls_token is not None:
            tokens_BND = torch.cat([self.cls_token.expand(len(tokens_BND), -1, -1), tokens_BND], dim=1)
        return tokens_BND, grid

    def encode(self, tokens_BND: torch.Tensor, grid: Grid, chance_BL2: torch.Tensor | None = None) -> torch.Tensor:
        """The blocks, with the position embedding before the first or before each (Table 8)."""
        factor_BL2 = None
        if self.training and self.config.drop_path:
            if chance_BL2 is None:
                chance_BL2 = torch.rand(len(tokens_BND), len(self.blocks), 2, device=tokens_BND.device)
            factor_BL2 = drop_path_factor(chance_BL2, self.config.drop_path_rates).to(tokens_BND.dtype)
        for layer, block in enumerate(self.blocks):
            if self.pos_embed is not None:  # which adds where pos_embed_at says
                tokens_BND = self.pos_embed(tokens_BND, layer, grid)
            if layer == 0:
                tokens_BND = self.dropout(tokens_BND)
            keys_NNd = None if self.relative_keys is None else self.relative_keys(layer, grid)
            tokens_BND = block(tokens_BND, keys_NNd, None if factor_BL2 is None else factor_BL2[:, layer])
        return tokens_BND

    def grid_of(self, images_BCHW: torch.Tensor) -> Grid:
        """Patches down and across; ValueError where they do not fit."""
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3 or 0 in images_BCHW.shape[2:]:
            raise ValueError(f"images have the shape {list(images_BCHW.shape)}, it should be [batch, 3, height, width]")
        height, width = images_BCHW.shape[2:]
        stride, expected = self.config.stride, self.config.image_size
        if height % stride or width % stride:
            raise ValueError(f"images are {height} x {width} pixels; the model takes multiples of {stride}, resize or pad them")
        if self.training and (height, width) != (expected, expected):
            raise ValueError(
                f"training images are {height} x {width} pixels, model.image_size is {expected}; other sizes are for evaluation"
            )
        return height // stride, width // stride


class PatchEmbed(nn.Module):
    """Each P x P patch, flattened in (row, column, channel) order, times one matrix (eq. 1): a convolution of stride P.

    Hybrids take the cells of a feature map as patches (section 3.1, "Hybrid Architecture").
    """

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(patch_size**2 * channels, width)
        lecun_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # -> tokens_BND
        patches = images_BCHW.unflatten(3, (-1, self.patch_size)).unflatten(2, (-1, self.patch_size))
        return self.proj(patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to its input (eq. 2 and 3)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config.width, config.num_heads)
        self.scale1 = LayerScale(config.width, config.layer_scale) if config.layer_scale else nn.Identity()
        self.norm2 = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.scale2 = LayerScale(config.width, config.layer_scale) if config.layer_scale else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens_BND: torch.Tensor, keys_NNd: torch.Tensor | None = None, factor_B2: torch.Tensor | None = None
    ) -> torch.Tensor:  # -> tokens_BND
        """`factor_B2`: what each image's two branches are multiplied by in training (stochastic depth)."""
        factor1_B, factor2_B = (None, None) if factor_B2 is None else factor_B2.unbind(1)
        branch_BND = self.scale1(self.dropout(self.attention(self.norm1(tokens_BND), keys_NNd)))
        tokens_BND = tokens_BND + scaled(branch_BND, factor1_B)
        return tokens_BND + scaled(self.scale2(self.mlp(self.norm2(tokens_BND))), factor2_B)


class Attention(nn.Module):
    """Multi-head self-attention (appendix A). q, k and v come from one fused matrix."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernel: SDPBackend | None = None  # None = torch chooses; attention.py
        self.qkv = xavier_linear(width, width, copies=3)
        self.out = xavier_linear(width, width)

    def forward(self, tokens_BND: torch.Tensor, keys_NNd: torch.Tensor | None = None) -> torch.Tensor:  # -> tokens_BND
        """`keys_NNd`: a key for the relative position of each pair of tokens; q times it joins the logits (appendix D.4)."""
        qkv = self.qkv(tokens_BND).unflatten(2, (3, self.num_heads, -1))
        q_BhNd, k_BhNd, v_BhNd = qkv.permute(2, 0, 3, 1, 4)
        bias_BhNN = None
        if keys_NNd is not None:
            bias_BhNN = torch.einsum("bhnd,nmd->bhnm", q_BhNd * q_BhNd.shape[-1] ** -0.5, keys_NNd)
        free = self.kernel is None or bias_BhNN is not None  # few kernels take a bias
        with nullcontext() if free else sdpa_kernel([self.kernel, SDPBackend.MATH]):  # type: ignore[list-item]
            mixed_BhNd = F.scaled_dot_product_attention(q_BhNd, k_BhNd, v_BhNd, attn_mask=bias_BhNN)
        return self.out(mixed_BhNd.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.fc1 = xavier_linear(config.width, config.mlp_dim)
        self.fc2 = xavier_linear(config.mlp_dim, config.width)
        self.dropout = nn.Dropout(config.dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:  # -> tokens_BND
        hidden = self.dropout(F.gelu(self.fc1(tokens_BND), approximate=self.approximate))
        return self.dropout(self.fc2(hidden))
