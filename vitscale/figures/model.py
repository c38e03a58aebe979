"""Pictures of a model, as in figures 6 and 7 of the ViT paper. To add one, add a function to PICTURES."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from sklearn.decomposition import PCA

from vitscale.errors import ModelError
from vitscale.figures.attention import attention_maps, mean_distance, rollout
from vitscale.figures.drawing import COLOURS, gallery, mosaic, panels, save
from vitscale.model.build import Model
from vitscale.model.config import Grid, ViTConfig
from vitscale.model.resnet import StdConv2d
from vitscale.model.vit import ViT
from vitscale.pretrained import Pretrained

NUM_FILTERS = 28  # as in the paper
MAX_POSITIONS = 8  # down and across
MAX_ROLLOUTS = 12


@torch.no_grad()
def draw_model(loaded: Pretrained, images: Sequence[Image.Image], out: Path) -> Iterator[str]:
    """Each picture's file, or why there is none. Attention is that on the images, at the size of `loaded.transform`."""
    views_1CHW = [loaded.transform(image)[None] for image in images]
    for picture in PICTURES:
        try:
            yield save(picture(loaded, views_1CHW), out / picture.__name__)
        except ModelError as error:
            yield f"{picture.__name__}: not drawn: {error}"


def filters(loaded: Pretrained, _views: list[torch.Tensor]) -> Figure:
    """Figure 7, left; each component stretched to the whole range of colours."""
    layer, filters_FHWC = first_filters(loaded.model)
    components = principal_components(filters_FHWC.numpy(force=True))
    low, high = (edge(components, axis=(1, 2, 3), keepdims=True) for edge in (np.min, np.max))
    count, height, width, _ = components.shape
    caption = f"The first {count} principal components, row by row; {height} x {width} pixels each."
    return gallery(f"RGB filters of the {layer}", caption, (components - low) / (high - low), min(7, count), 0.8)


def first_filters(model: Model) -> tuple[str, torch.Tensor]:
    """The layer that touches the pixels, and its (filters, height, width, 3)."""
    if isinstance(model, ViT) and model.stem is None:
        side = model.patch_embed.patch_size
        return "initial linear embedding", model.patch_embed.proj.weight.unflatten(1, (side, side, 3))
    root = next(module for module in model.modules() if isinstance(module, StdConv2d))
    return "first convolution", root.standardised().permute(0, 2, 3, 1)


def principal_components(filters_FHWC: np.ndarray) -> np.ndarray:
    """The NUM_FILTERS directions in which centred filters vary most, largest variance first, unit length."""
    flat = filters_FHWC.reshape(len(filters_FHWC), -1).astype(np.float64)
    return PCA(min(NUM_FILTERS, *flat.shape), svd_solver="full").fit(flat).components_.reshape(-1, *filters_FHWC.shape[1:])


def pos_embed(loaded: Pretrained, _views: list[torch.Tensor]) -> Figure:
    """Figure 7, centre: at the model's own size, and resized to another where that is used."""
    model, used = as_vit(loaded)
    sizes = list({config.image_size: config.grid for config in (model.config, used)}.items())
    caption = "Tile: cosine similarity between the position embedding of the patch at its place and those of all patches."
    figure, axes = panels("Position embedding similarity", caption, 4.3 * len(sizes) + 0.8, 4.8, len(sizes))
    for ax, (pixels, grid) in zip(axes, sizes, strict=True):
        side, numbers = grid[0], np.arange(0, grid[0], -(-grid[0] // MAX_POSITIONS))
        gap = max(1, side // 8)
        tiles = position_similarity(model, grid).numpy()[np.ix_(numbers, numbers)]
        image = ax.imshow(mosaic(tiles, gap, np.nan), vmin=-1, vmax=1, interpolation="nearest")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(np.arange(len(numbers)) * (side + gap) + (side - 1) / 2, list(map(str, numbers + 1)))
        resized = "" if grid == model.config.grid else ", resized"
        ax.set(xlabel="Input patch column", ylabel="Input patch row", title=f"{pixels} pixels{resized}")
    figure.colorbar(image, ax=axes, label="Cosine similarity", shrink=0.75)
    return figure


def position_similarity(model: ViT, grid: Grid) -> torch.Tensor:
    """Cosines between the position embeddings of patches, (down, across, down, across); of the first block if each has some."""
    if model.pos_embed is None:
        raise ModelError(f"with model.pos_embed: {model.config.pos_embed} no position has a vector of its own")
    vectors_ND = F.normalize(model.pos_embed.make(0, grid)[model.config.num_prefix_tokens :], dim=1)
    return (vectors_ND @ vectors_ND.T).reshape(*grid, *grid)


def attention_distance(loaded: Pretrained, views_1CHW: list[torch.Tensor]) -> Figure:
    """Figure 7, right."""
    model, used = as_vit(loaded, views_1CHW)
    pixels = [[mean_distance(a, used.grid, used.stride)[0].numpy() for a in attention_maps(model, view)] for view in views_1CHW]
    pixels_Lh = np.mean(pixels, axis=0)
    images = f"mean over {len(views_1CHW)} images that are {used.image_size} pixels wide"
    figure, (ax,) = panels("Mean attention distance", f"Dot: one of {used.num_heads} heads, {images}.", 5, 3.8)
    ax.plot(np.arange(1, used.depth + 1), pixels_Lh, "o", color=COLOURS[0], alpha=0.6, markeredgewidth=0)
    ax.set(xlabel="Network depth (block)", ylabel="Mean attention distance (pixels)", ylim=(0, 1.05 * pixels_Lh.max()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def attention_rollout(loaded: Pretrained, views_1CHW: list[torch.Tensor]) -> Figure:
    """Figure 6: the first MAX_ROLLOUTS images, and beside each the same under its mask."""
    model, used = as_vit(loaded, views_1CHW)
    views_BCHW = torch.cat(views_1CHW[:MAX_ROLLOUTS])
    seen_BHW = torch.cat([rollout(attention_maps(model, view[None]), used.grid) for view in views_BCHW])
    masks_B1HW = F.interpolate(seen_BHW[:, None], views_BCHW.shape[2:], mode="bilinear")
    masks_BHW1 = (masks_B1HW / masks_B1HW.amax(dim=(2, 3), keepdim=True)).permute(0, 2, 3, 1).numpy()
    images_BHWC = np.clip(views_BCHW.permute(0, 2, 3, 1).numpy() * loaded.info.std + loaded.info.mean, 0, 1)
    pairs = np.concatenate([images_BHWC, images_BHWC * masks_BHW1], axis=2)
    caption = "Left: input. Right: the same, as bright as the attention from the output to it, relative to its maximum."
    return gallery("Attention rollout", caption, pairs, min(3, len(pairs)), 2.2)


def as_vit(loaded: Pretrained, views: list[torch.Tensor] | None = None) -> tuple[ViT, ViTConfig]:
    """The model, and its config at the size of images that is used."""
    if not isinstance(loaded.model, ViT) or not isinstance(loaded.info.model, ViTConfig):
        raise ModelError("a BiT has no patches, positions or attention")
    if views == []:
        raise ModelError("give images with --image or --data")
    return loaded.model, loaded.info.model


PICTURES: tuple[Callable[[Pretrained, list[torch.Tensor]], Figure], ...]
PICTURES = (filters, pos_embed, attention_distance, attention_rollout)
