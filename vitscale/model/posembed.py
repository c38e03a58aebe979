"""Position embeddings, and how they change with the resolution (ViT paper, section 3.2 and appendix D.4)."""

import torch
import torch.nn.functional as F
from torch import nn

from vitscale.config import ModelConfig

STD = 0.02
TEMPERATURE = 10_000.0


def attach(module: nn.Module, config: ModelConfig) -> None:
    """Give the module its `pos_embed`, (1, prefix + G*G, D), or None where the config says none.

    A sine-cosine table follows from the config, so it is a buffer that no file of weights holds.
    """
    if config.pos_embed == "none":
        module.register_parameter("pos_embed", None)
    elif config.pos_embed == "learned":
        module.register_parameter("pos_embed", nn.Parameter(torch.randn(1, config.num_tokens, config.width) * STD))
    else:
        prefix = torch.zeros(config.num_prefix_tokens, config.width)
        table_ND = torch.cat([prefix, sincos2d(config.grid_size, config.width)])
        module.register_buffer("pos_embed", table_ND[None], persistent=False)


def sincos2d(grid_size: int, width: int) -> torch.Tensor:
    """(G*G, D), row by row: sin x, cos x, sin y, cos y, D/4 frequencies each (big_vision's form: 1 down to 1/10,000)."""
    quarter = width // 4
    frequency = TEMPERATURE ** -(torch.arange(quarter, dtype=torch.float64) / (quarter - 1))
    y, x = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
    angles_x, angles_y = (axis.flatten()[:, None] * frequency for axis in (x, y))
    return torch.cat([angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()], dim=1).float()


def resize(table_1ND: torch.Tensor, grid_from: int, grid_to: int, num_prefix_tokens: int) -> torch.Tensor:
    """A learned embedding for another grid: (1, prefix + from*from, D) -> (1, prefix + to*to, D).

    Linear in both directions with the corners kept in place, as the official code's `scipy.ndimage.zoom(order=1)`;
    prefix tokens are kept as they are.
    """
    prefix, grid = table_1ND[:, :num_prefix_tokens], table_1ND[:, num_prefix_tokens:]
    image_1DGG = grid.unflatten(1, (grid_from, grid_from)).permute(0, 3, 1, 2)
    resized_1DGG = F.interpolate(image_1DGG, (grid_to, grid_to), mode="bilinear", align_corners=True)
    return torch.cat([prefix, resized_1DGG.flatten(2).transpose(1, 2)], dim=1)
