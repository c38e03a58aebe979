"""Small layers of the Vision Transformer, and how the official code initialises."""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.LayerNorm):
    """Computed in fp32 whatever the input's type: bf16 has 8 bits, too few for a variance."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.is_cuda:  # whose kernels do so inside; the CPU's sum a weight's gradient in bf16, 9 % off
            return super().forward(tokens)
        normal = F.layer_norm(tokens.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normal.to(tokens.dtype)


class LayerScale(nn.Module):
    """A learned factor per channel ("Going deeper with Image Transformers", arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), initial))

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        return tokens_BND * self.factor


def drop_path_factor(chance_BL2: torch.Tensor, rates: list[float]) -> torch.Tensor:  # -> factor_BL2
    """Stochastic depth (Huang et al. 2016): what an image's branches are multiplied by, in blocks of these evenly spaced rates:
    0 where the chance, uniform in [0, 1), is below the rate, else 1 / (1 - rate), to keep the mean."""
    rate_L = torch.linspace(rates[0], rates[-1], len(rates), device=chance_BL2.device)  # a copy of them would wait for it
    return (chance_BL2 >= rate_L[:, None]) / (1 - rate_L[:, None])


def scaled(branch_BND: torch.Tensor, factor_B: torch.Tensor | None) -> torch.Tensor:
    """Each image's branch times its factor; None = 1."""
    return branch_BND if factor_B is None else branch_BND * factor_B[:, None, None]


def lecun_normal_(weight: torch.Tensor) -> None:
    """Normal of variance 1 / fan_in, truncated at two sigma and rescaled, as jax.nn.initializers.lecun_normal."""
    std = weight[0].numel() ** -0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def xavier_linear(fan_in: int, fan_out: int, copies: int = 1) -> nn.Linear:
    """A layer that holds `copies` matrices (fan_out, fan_in) side by side, each Xavier-uniform on its own, biases 0.

    On a fused matrix Xavier's limit would be too small: by sqrt(2) for q, k and v.
    """
    linear = nn.Linear(fan_in, copies * fan_out)
    for weight in linear.weight.data.chunk(copies):
        nn.init.xavier_uniform_(weight)
    nn.init.zeros_(linear.bias)
    return linear
