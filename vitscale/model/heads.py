"""What stands between the encoder's tokens and the logits."""

import torch
import torch.nn.functional as F
from torch import nn

from vitscale.model.config import ViTConfig
from vitscale.model.layers import LayerNorm, lecun_normal_, xavier_linear


class AttentionPool(nn.Module):
    """One learned query over all tokens, then an MLP ("Scaling Vision Transformers", arXiv 2106.04560)."""

    def __init__(self, config: ViTConfig, mlp: nn.Module) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        nn.init.xavier_uniform_(self.probe[0].data)
        self.q = xavier_linear(config.width, config.width)
        self.kv = xavier_linear(config.width, config.width, copies=2)
        self.out = xavier_linear(config.width, config.width)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = mlp

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:  # -> features_BD
        q_Bh1d = self.q(self.probe.expand(len(tokens_BND), -1, -1)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k_BhNd, v_BhNd = self.kv(tokens_BND).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_B1D = F.scaled_dot_product_attention(q_Bh1d, k_BhNd, v_BhNd).transpose(1, 2).flatten(2)
        features_B1D = self.out(mixed_B1D)
        return (features_B1D + self.mlp(self.norm(features_B1D)))[:, 0]


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
