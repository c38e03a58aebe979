"""Position embeddings, and how they change with the resolution (ViT paper, section 3.2 and appendix D.4).

Grids are (patches down, patches across). T tables: one per block where each has its own, else one. O offsets.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import nn

from vitscale.model.config import Grid, ViTConfig

Method = Literal["linear", "bicubic"]
STD = 0.02
TEMPERATURE = 10_000.0


class Tables(nn.Module):
    """Tables for the grid of the config; those for the last other grid are, without gradients, kept."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tables = config.depth if config.pos_embed_at == "every" else 1
        self._kept: dict[int, tuple[object, list[torch.Tensor], torch.Tensor]] = {}

    def train(self, mode: bool = True) -> Self:
        self._kept.clear()  # weights that training writes to by `.data` do not tell
        return super().train(mode)

    def at(self, layer: int, grid: Grid) -> torch.Tensor:
        """The table of a block for a grid."""
        table, weights = layer % self.num_tables, [*self.parameters(), *self.buffers()]
        # Tensors born in inference mode do not tell when they change.
        if torch.is_grad_enabled() or grid == self.config.grid or any(weight.is_inference() for weight in weights):
            return self.make(table, grid)
        made_from = grid, [(weight.data_ptr(), weight._version) for weight in weights]
        kept = self._kept.get(table)
        if kept is None or kept[0] != made_from or any(old is not new for old, new in zip(kept[1], weights, strict=True)):
            kept = self._kept[table] = made_from, weights, self.make(table, grid)
        return kept[2]

    def make(self, table: int, grid: Grid) -> torch.Tensor:
        """A table for a grid, in the type of the weights."""
        raise NotImplementedError


class PosEmbed(Tables):
    """A vector per token, added to the tokens at the stem, or before every block, each its own or all the same (Table 8).

    learned1d: one per token, class token included, in raster order. learned2d: D/2 for the column, then D/2 for the row.
    sincos2d: fixed. The last two leave the class token, which is learned itself, as it is.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        rows, columns = config.grid
        if config.pos_embed == "learned1d":
            self.table = nn.Parameter(torch.randn(self.num_tables, config.num_tokens, config.width) * STD)
        elif config.pos_embed == "learned2d":
            self.columns = nn.Parameter(torch.randn(self.num_tables, columns, config.width // 2) * STD)
            self.rows = nn.Parameter(torch.randn(self.num_tables, rows, config.width // 2) * STD)
        else:  # follows from the config, so no file of weights holds it
            self.fixed: torch.Tensor
            self.register_buffer("fixed", sincos2d(config.grid, config.width), persistent=False)

    def forward(self, tokens_BND: torch.Tensor, layer: int, grid: Grid) -> torch.Tensor:
        """The tokens of a block's input with their positions, if any are added there."""
        if layer > 0 and self.config.pos_embed_at == "stem":
            return tokens_BND
        return tokens_BND + self.at(layer, grid)

    def make(self, table: int, grid: Grid) -> torch.Tensor:  # -> (prefix + N, D)
        own, prefix = self.config.grid, self.config.num_prefix_tokens
        if self.config.pos_embed == "learned1d":
            table_1ND = self.table[table : table + 1]
            return (table_1ND if grid == own else resize(table_1ND, own, grid, prefix).to(table_1ND))[0]
        if self.config.pos_embed == "learned2d":
            x_WD, y_HD = (
                resize_axis(axis[table : table + 1], length)[0].to(axis)
                for axis, length in ((self.columns, grid[1]), (self.rows, grid[0]))
            )
            table_ND = torch.cat([x_WD.repeat(grid[0], 1), y_HD.repeat_interleave(grid[1], dim=0)], dim=1)
        else:
            table_ND = self.fixed if grid == own else sincos2d(grid, self.config.width).to(self.fixed)
        return F.pad(table_ND, (0, 0, prefix, 0))


class RelativeKeys(Tables):
    """A key per distance in raster order, -(N-1) .. N-1 (appendix D.4: 1-dimensional relative attention), T x (2N-1) x d.

    Each block has its own unless they are shared; as in Shaw et al. 2018 the heads share them. The class token has no place:
    0.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.num_tables = 1 if config.pos_embed_at == "shared" else config.depth
        num_offsets = 2 * config.grid[0] * config.grid[1] - 1
        self.table = nn.Parameter(torch.randn(self.num_tables, num_offsets, config.width // config.num_heads) * STD)

    def forward(self, layer: int, grid: Grid) -> torch.Tensor:  # -> keys_NNd
        return self.at(layer, grid)

    def make(self, table: int, grid: Grid) -> torch.Tensor:
        own, prefix = self.config.grid, self.config.num_prefix_tokens
        table_1Od = self.table[table : table + 1]
        table_Od = (table_1Od if grid == own else resize_relative(table_1Od, own, grid).to(table_1Od))[0]
        place_N = torch.arange(grid[0] * grid[1], device=table_Od.device)
        keys_NNd = table_Od[place_N[:, None] - place_N + len(place_N) - 1]
        return F.pad(keys_NNd, (0, 0, prefix, 0, prefix, 0))


def sincos2d(grid: Grid, width: int) -> torch.Tensor:
    """(N, D), row by row: sin x, cos x, sin y, cos y, D/4 frequencies each (big_vision's form: 1 down to 1/10,000)."""
    quarter = width // 4
    frequency = TEMPERATURE ** -(torch.arange(quarter, dtype=torch.float64) / (quarter - 1))
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles_x, angles_y = (axis.flatten()[:, None] * frequency for axis in (x, y))
    return torch.cat([angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()], dim=1).float()


def resize(
    table_TND: torch.Tensor, grid_from: Grid, grid_to: Grid, num_prefix_tokens: int = 0, method: Method = "linear"
) -> torch.Tensor:
    """Embeddings for another grid: (T, prefix + N, D) -> (T, prefix + N', D), in fp32 or wider; prefix tokens are kept.

    linear: in both directions with the corners kept in place, as the official code's `scipy.ndimage.zoom(order=1)`, from which
    it differs by rounding. bicubic: antialiased, as DeiT and timm; it takes patches as areas, so that corners do move.
    """
    table_TND = table_TND.to(torch.promote_types(table_TND.dtype, torch.float32))
    prefix, patches = table_TND[:, :num_prefix_tokens], table_TND[:, num_prefix_tokens:]
    image_TDHW = patches.unflatten(1, grid_from).permute(0, 3, 1, 2)
    resized_TDHW = _resize_image(image_TDHW, grid_to, method)
    return torch.cat([prefix, resized_TDHW.flatten(2).transpose(1, 2)], dim=1)


def resize_axis(axis_TND: torch.Tensor, length: int, method: Method = "linear") -> torch.Tensor:
    """One axis of a two-axis embedding for another number of rows or columns."""
    if axis_TND.shape[1] == length:
        return axis_TND
    return resize(axis_TND, (axis_TND.shape[1], 1), (length, 1), method=method)


def resize_relative(table_TOd: torch.Tensor, grid_from: Grid, grid_to: Grid, method: Method = "linear") -> torch.Tensor:
    """Keys of distances for another grid: (T, 2N-1, d) -> (T, 2N'-1, d), by `linear` the key of distance 0 kept.

    A distance in raster order stands for at most two pairs (rows, columns). So the keys are laid out by rows and columns,
    resized there, and the pairs of each new distance averaged, weighted by how many patches lie so.
    """
    image_TdOO = table_TOd[:, _distances(grid_from)].permute(0, 3, 1, 2)
    image_TdOO = image_TdOO.to(torch.promote_types(table_TOd.dtype, torch.float32))
    target = (2 * grid_to[0] - 1, 2 * grid_to[1] - 1)
    values_TOd = _resize_image(image_TdOO, target, method).flatten(2).transpose(1, 2)
    rows, columns = (size - torch.arange(1 - size, size).abs() for size in grid_to)
    count_O = (rows[:, None] * columns).flatten().to(values_TOd)
    distance_O = _distances(grid_to).flatten()
    shape = (len(table_TOd), 2 * grid_to[0] * grid_to[1] - 1, table_TOd.shape[2])
    sums = values_TOd.new_zeros(shape).index_add(1, distance_O, values_TOd * count_O[:, None])
    return sums / values_TOd.new_zeros(shape[1]).index_add(0, distance_O, count_O)[:, None]


def _distances(grid: Grid) -> torch.Tensor:
    """(2H-1, 2W-1): for each difference in rows and columns its place in a table of raster distances."""
    rows, columns = (torch.arange(1 - size, size) for size in grid)
    return rows[:, None] * grid[1] + columns + grid[0] * grid[1] - 1


def _resize_image(image_TDHW: torch.Tensor, size: Grid, method: Method) -> torch.Tensor:
    if method == "linear":
        return F.interpolate(image_TDHW, size, mode="bilinear", align_corners=True)
    return F.interpolate(image_TDHW, size, mode="bicubic", antialias=True)
