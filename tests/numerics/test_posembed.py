"""Position embeddings against scipy, a formula, and cases with known answers."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from vitscale.model.config import ViTConfig
from vitscale.model.posembed import resize, sincos2d
from vitscale.model.vit import ViT

GRIDS = [(4, 6), (14, 24), (16, 37), (24, 14), (7, 8), (14, 1), (2, 5)]


def table(grid, width=3, prefix=0):
    """A random position embedding in float64."""
    generator = torch.Generator().manual_seed(grid)
    return torch.randn(1, prefix + grid * grid, width, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_resize_equals_scipys_zoom_as_the_official_code_calls_it(old, new):
    given = table(old)
    grid = given.reshape(old, old, 3).numpy()
    expected = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    np.testing.assert_allclose(resize(given, old, new, 0).reshape(new, new, 3), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("grid", [1, 4, 14])
def test_resize_to_the_same_grid_changes_nothing(grid):
    assert torch.equal(resize(table(grid, prefix=1), grid, grid, 1), table(grid, prefix=1))


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_a_constant_stays_constant(old, new):
    constant = torch.full((1, old * old, 2), 0.7, dtype=torch.float64)
    np.testing.assert_allclose(resize(constant, old, new, 0), 0.7, rtol=1e-15)


@pytest.mark.parametrize(("old", "new"), [(4, 6), (14, 24), (24, 14)])
def test_a_ramp_stays_the_ramp_between_the_same_corners(old, new):
    def ramp(side):
        y, x = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")
        return np.stack([2 * x - 1, 3 * y + x], axis=-1)

    resized = resize(torch.from_numpy(ramp(old).reshape(1, -1, 2)), old, new, 0)
    np.testing.assert_allclose(resized.reshape(new, new, 2), ramp(new), atol=1e-14)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_prefix_tokens_are_kept_and_the_grid_does_not_see_them(prefix):
    given = table(4, prefix=prefix)
    resized = resize(given, 4, 6, prefix)
    assert torch.equal(resized[:, :prefix], given[:, :prefix])
    assert torch.equal(resized[:, prefix:], resize(given[:, prefix:], 4, 6, 0))


@pytest.mark.parametrize(("grid", "width"), [(2, 8), (14, 64), (24, 384)])
def test_sincos2d_is_the_formula(grid, width):
    found = sincos2d(grid, width).numpy()
    omega = 1 / 10_000 ** (np.arange(width // 4) / (width // 4 - 1))
    for index in {0, 1, grid, grid * grid - 1}:
        y, x = divmod(index, grid)
        parts = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
        np.testing.assert_allclose(found[index], np.concatenate(parts), atol=1e-6)


def test_sincos2d_is_added_to_patches_only_and_is_not_a_weight():
    sizes = {"patch_size": 4, "width": 8, "depth": 1, "num_heads": 1, "mlp_dim": 8, "image_size": 12, "pos_embed": "sincos2d"}
    model = ViT(ViTConfig(**sizes))
    assert "pos_embed" not in model.state_dict()
    assert not model.pos_embed[0, 0].any()
    assert torch.equal(model.pos_embed[0, 1:], sincos2d(3, 8))


@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d", "none"])
def test_without_a_position_embedding_the_order_of_patches_does_not_matter(pos_embed):
    torch.manual_seed(0)
    sizes = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 16, "image_size": 8, "num_classes": 4}
    model = ViT(ViTConfig(**sizes, pos_embed=pos_embed)).eval()
    torch.nn.init.normal_(model.head.weight)
    image = torch.randn(1, 3, 8, 8)
    swapped = image.roll(4, dims=3)  # the left patches change places with the right ones
    assert torch.allclose(model(image), model(swapped), atol=1e-5) == (pos_embed == "none")
