"""Position embeddings against scipy, Pillow, closed forms and definitions; and at other resolutions than the model's own."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from references.native import logits_native, sincos
from tiny_models import PLACES, POS_EMBEDS, randomised, vit, weights_of

from vitscale.model.posembed import resize, resize_axis, resize_relative, sincos2d
from vitscale.model.vit import ViT
from vitscale.weights.transfer import transfer

GRIDS = [
    ((4, 4), (6, 6)),
    ((14, 14), (24, 24)),
    ((16, 16), (37, 37)),
    ((24, 24), (14, 14)),
    ((14, 14), (1, 1)),
    ((2, 2), (5, 5)),
    ((4, 6), (6, 4)),
    ((5, 3), (7, 12)),
    ((9, 4), (3, 8)),
    ((1, 1), (3, 2)),
    ((1, 6), (1, 4)),
]
METHODS = ("linear", "bicubic")


def table(grid, width=3, prefix=0, tables=1):
    """A random position embedding in float64."""
    generator = torch.Generator().manual_seed(grid[0])
    return torch.randn(tables, prefix + grid[0] * grid[1], width, dtype=torch.float64, generator=generator)


def on_grid(table_1ND, grid):
    return table_1ND.reshape(*grid, -1).numpy()


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_linear_is_scipys_zoom_as_the_official_code_calls_it(old, new):
    given = table(old)
    expected = scipy.ndimage.zoom(on_grid(given, old), (new[0] / old[0], new[1] / old[1], 1), order=1)
    np.testing.assert_allclose(on_grid(resize(given, old, new), new), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bicubic_is_pillows(old, new):
    given = table(old).float()
    channels = [Image.fromarray(on_grid(given, old)[:, :, channel]) for channel in range(3)]
    expected = [np.array(image.resize(new[::-1], Image.Resampling.BICUBIC)) for image in channels]
    np.testing.assert_allclose(on_grid(resize(given, old, new, method="bicubic"), new), np.stack(expected, 2), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (3, 5)], ids=str)
def test_to_the_same_grid_nothing_changes(grid, method):
    given = table(grid, prefix=1)
    assert torch.equal(resize(given, grid, grid, 1, method), given)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_a_constant_stays_constant(old, new, method):
    constant = torch.full((2, old[0] * old[1], 2), 0.7, dtype=torch.float64)
    np.testing.assert_allclose(resize(constant, old, new, method=method), 0.7, rtol=1e-15)


def ramp(y, x):
    y, x = np.meshgrid(y, x, indexing="ij")
    return np.stack([2 * x - 1, 3 * y + x], axis=-1)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((14, 14), (24, 24)), ((24, 24), (14, 14)), ((5, 3), (7, 12))])
def test_linear_keeps_a_ramp_between_the_same_corners(old, new):
    before, after = (ramp(*(np.linspace(0, 1, side) for side in grid)) for grid in (old, new))
    resized = resize(torch.from_numpy(before).reshape(1, -1, 2), old, new)
    np.testing.assert_allclose(on_grid(resized, new), after, atol=1e-14)


@pytest.mark.parametrize(("old", "new"), [((6, 6), (9, 9)), ((14, 14), (24, 24)), ((7, 8), (12, 9))])
def test_bicubic_keeps_a_ramp_over_areas_away_from_the_border(old, new):
    """A patch of the new grid lies at ((i + 1/2) old / new - 1/2): other places than linear's, which keeps corners."""
    before = ramp(*(np.arange(side) for side in old)).astype(float)
    places = [(np.arange(b) + 0.5) * a / b - 0.5 for a, b in zip(old, new, strict=True)]
    resized = on_grid(resize(torch.from_numpy(before).reshape(1, -1, 2), old, new, method="bicubic"), new)
    inner = np.ix_(*((place >= 1) & (place <= side - 2) for place, side in zip(places, old, strict=True)))
    np.testing.assert_allclose(resized[inner], ramp(*places)[inner], atol=1e-12)


def test_linear_keeps_the_corners_and_bicubic_moves_them():
    given = table((4, 4))
    corners = np.ix_((0, -1), (0, -1))
    linear, bicubic = (on_grid(resize(given, (4, 4), (6, 6), method=method), (6, 6)) for method in METHODS)
    assert (linear[corners] == on_grid(given, (4, 4))[corners]).all()
    assert np.abs(bicubic[corners] - linear[corners]).min() > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_prefix_tokens_survive_a_round_trip_and_the_grid_does_not_see_them(prefix, method):
    given = table((4, 3), prefix=prefix, tables=2)
    resized = resize(given, (4, 3), (6, 7), prefix, method)
    assert torch.equal(resized[:, prefix:], resize(given[:, prefix:], (4, 3), (6, 7), 0, method))
    back = resize(resized, (6, 7), (4, 3), prefix, method)
    assert torch.equal(resized[:, :prefix], given[:, :prefix])
    assert torch.equal(back[:, :prefix], given[:, :prefix])


def test_every_table_is_resized_by_itself():
    given = table((4, 4), tables=3)
    apart = torch.cat([resize(one[None], (4, 4), (5, 7)) for one in given])
    assert torch.equal(resize(given, (4, 4), (5, 7)), apart)


@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_an_axis_is_scipys_zoom_along_it(length):
    given = table((4, 1), tables=2)
    expected = scipy.ndimage.zoom(given.numpy(), (1, length / 4, 1), order=1)
    np.testing.assert_allclose(resize_axis(given, length), expected, atol=1e-14)


def test_half_precision_is_resized_in_fp32():
    given = table((4, 4)).bfloat16()
    for resized in (resize(given, (4, 4), (6, 6)), resize_relative(given[:, :7], (2, 2), (3, 3))):
        assert resized.dtype == torch.float32


# Relative keys

RELATIVE_GRIDS = [((2, 2), (3, 3)), ((3, 4), (5, 6)), ((4, 4), (2, 3)), ((1, 5), (1, 8)), ((3, 1), (5, 1)), ((2, 3), (3, 2))]


def keys(grid, width=2, tables=1):
    return table((1, 2 * grid[0] * grid[1] - 1), width, tables=tables)


def by_definition(function, grid):
    """The mean of function(rows apart, columns apart) over all pairs of patches at each raster distance."""
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    found = defaultdict(list)
    for i, j in itertools.product(range(len(places)), repeat=2):
        found[i - j].append(function(places[i][0] - places[j][0], places[i][1] - places[j][1]))
    return [np.mean(found[distance]) for distance in sorted(found)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (2, 4), (1, 5)], ids=str)
def test_relative_keys_for_the_same_grid_are_the_same(grid, method):
    given = keys(grid, tables=2)
    np.testing.assert_allclose(resize_relative(given, grid, grid, method), given, rtol=0, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("old", "new"), RELATIVE_GRIDS)
def test_constant_relative_keys_stay_constant(old, new, method):
    constant = torch.full_like(keys(old), 0.7)
    np.testing.assert_allclose(resize_relative(constant, old, new, method), 0.7, rtol=1e-14)


@pytest.mark.parametrize(("old", "new"), RELATIVE_GRIDS)
def test_the_key_of_distance_zero_is_kept(old, new):
    given = keys(old)
    resized = resize_relative(given, old, new)
    assert resized.shape == (1, 2 * new[0] * new[1] - 1, 2)
    np.testing.assert_allclose(resized[:, resized.shape[1] // 2], given[:, given.shape[1] // 2], rtol=1e-14)


@pytest.mark.parametrize(("old", "new"), RELATIVE_GRIDS)
def test_relative_keys_that_are_linear_in_rows_and_columns_are_the_same_function_of_the_new_ones(old, new):
    """As raster distance = rows * width + columns, a ramp over distances is linear in both."""
    distances = torch.arange(1 - old[0] * old[1], old[0] * old[1], dtype=torch.float64)
    stretch = [(a - 1) / (b - 1) if b > 1 else 0.0 for a, b in zip(old, new, strict=True)]
    expected = by_definition(lambda rows, columns: old[1] * rows * stretch[0] + columns * stretch[1], new)
    np.testing.assert_allclose(resize_relative(distances[None, :, None], old, new)[0, :, 0], expected, atol=1e-12)


def test_relative_keys_by_hand():
    """From 2 x 2 to 3 x 3 patches: one column apart (6 pairs), and one row down and two columns back (2 pairs)."""
    k = {distance: float(value) for distance, value in zip(range(-3, 4), keys((2, 2), width=1)[0, :, 0], strict=True)}
    one_column, wrapped = (k[0] + k[1]) / 2, (k[-1] + k[1]) / 2
    resized = resize_relative(keys((2, 2), width=1), (2, 2), (3, 3))[0, :, 0]
    assert float(resized[8 + 1]) == pytest.approx((6 * one_column + 2 * wrapped) / 8, abs=1e-15)
    row = torch.tensor([[[5.0], [1.0], [2.0]]])  # 1 x 2 to 1 x 3: in between
    assert resize_relative(row, (1, 2), (1, 3)).flatten().tolist() == [5.0, 3.0, 1.0, 1.5, 2.0]


# sincos2d


@pytest.mark.parametrize(("grid", "width"), [((2, 2), 8), ((14, 14), 64), ((3, 5), 384)])
def test_sincos2d_is_the_formula(grid, width):
    found = sincos2d(grid, width).numpy()
    expected = [sincos(y, x, width) for y in range(grid[0]) for x in range(grid[1])]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sincos2d_is_added_to_patches_only_and_is_not_a_weight():
    model = ViT(vit(pos_embed="sincos2d"))
    assert not [name for name in model.state_dict() if name.startswith("pos_embed")]
    added = model.pos_embed(torch.zeros(1, 10, 24), 0, (3, 3))[0]
    assert not added[0].any()
    assert torch.equal(added[1:], sincos2d((3, 3), 24))


# Another resolution in evaluation


def resized_by_hand(weights, cfg, grid):
    """The weights of a model for another grid, by scipy and by definition."""
    new, own, prefix = dict(weights), cfg.grid, cfg.num_prefix_tokens
    zooms = [b / a for a, b in zip(own, grid, strict=True)]
    if cfg.pos_embed == "learned1d":
        given = weights["pos_embed.table"]
        image = scipy.ndimage.zoom(given[:, prefix:].reshape(len(given), *own, -1), (1, *zooms, 1), order=1)
        new["pos_embed.table"] = np.concatenate([given[:, :prefix], image.reshape(len(given), -1, cfg.width)], axis=1)
    elif cfg.pos_embed == "learned2d":
        for name, zoom in zip(("pos_embed.rows", "pos_embed.columns"), zooms, strict=True):
            new[name] = scipy.ndimage.zoom(weights[name], (1, zoom, 1), order=1)
    elif cfg.pos_embed == "relative":
        given = weights["relative_keys.table"]
        new["relative_keys.table"] = np.stack([np.stack([column_by_hand(c, own, grid) for c in t.T], 1) for t in given])
    return new


def column_by_hand(column, old, new):
    """One channel of the keys: laid out by rows and columns apart, read between them, and averaged over pairs."""

    def at(rows, columns):
        y, x = (d * (a - 1) / (b - 1) if b > 1 else 0.0 for d, a, b in zip((rows, columns), old, new, strict=True))
        y0, x0 = int(np.floor(y)), int(np.floor(x))
        corners = [(y0 + i, x0 + j, abs(1 - i - (y - y0)) * abs(1 - j - (x - x0))) for i in (0, 1) for j in (0, 1)]
        return sum(weight * column[r * old[1] + c + len(column) // 2] for r, c, weight in corners if weight)

    return by_definition(at, new)


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_inputs_of_any_size_are_as_with_a_table_by_hand(pos_embed):
    for at, pool in itertools.product(PLACES, ("token", "gap")):
        cfg = vit(pos_embed=pos_embed, pos_embed_at=at, pool=pool)
        model = randomised(cfg)
        for grid in ((2, 5), (4, 4)):
            images = torch.randn(2, 3, *(4 * side for side in grid), generator=torch.Generator().manual_seed(2))
            with torch.no_grad():
                found = model(images).numpy()
            expected = logits_native(resized_by_hand(weights_of(model), cfg, grid), cfg, images.numpy())
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("stem", [None, ()])
@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_another_size_on_the_fly_is_the_same_as_a_transfer_to_it(pos_embed, stem):
    for at in PLACES:
        cfg, larger = (vit(pos_embed=pos_embed, pos_embed_at=at, stem_blocks=stem, image_size=size) for size in (32, 48))
        model, moved = randomised(cfg), ViT(larger).eval()
        transfer(moved, model.state_dict(), cfg)
        moved.head.load_state_dict(model.head.state_dict())
        images = torch.randn(2, 3, 48, 48)
        with torch.no_grad():
            torch.testing.assert_close(model(images), moved(images), rtol=0, atol=1e-6)


def tables_of(model):
    return model.pos_embed or model.relative_keys


@pytest.mark.parametrize("pos_embed", [name for name in POS_EMBEDS if name != "none"])
def test_a_table_for_another_size_is_kept_until_the_weights_change(pos_embed):
    model = randomised(vit(pos_embed=pos_embed, pos_embed_at="every"))
    tables = tables_of(model)
    with torch.no_grad():
        first = tables.at(1, (2, 5))
        assert tables.at(1, (2, 5)) is first
        for tensor in (*tables.parameters(), *tables.buffers()):
            tensor.mul_(2)
        again = tables.at(1, (2, 5))
        assert again is not first
        if pos_embed != "sincos2d":
            torch.testing.assert_close(again, 2 * first)
        tables.at(1, (3, 4))
        torch.testing.assert_close(tables.at(1, (2, 5)), again, rtol=0, atol=0)
        assert len(tables._kept) == 1  # of one size alone, else evaluation on images of all sizes fills the memory


@pytest.mark.parametrize("round", range(20))  # a freed address is soon used again
def test_a_table_is_renewed_when_the_weights_are_replaced(round):
    model = randomised(vit())
    tables, weights = tables_of(model), {name: torch.randn_like(p) for name, p in model.state_dict().items()}
    with torch.no_grad():
        tables.at(0, (2, 5))
        model.load_state_dict(weights, assign=True)
        torch.testing.assert_close(tables.at(0, (2, 5)), tables.make(0, (2, 5)), rtol=0, atol=0)
        other = {name: tensor + round for name, tensor in weights.items()}
        found = torch.func.functional_call(model, other, (torch.ones(1, 3, 8, 20),))
        model.load_state_dict(other)
        torch.testing.assert_close(found, model(torch.ones(1, 3, 8, 20)))


def test_what_training_writes_past_torchs_eyes_is_seen_in_the_next_evaluation():
    model = randomised(vit())
    tables = tables_of(model)
    with torch.no_grad():
        tables.at(0, (2, 5))
        model.train()
        tables.table.data.mul_(5)
        model.eval()
        torch.testing.assert_close(tables.at(0, (2, 5)), tables.make(0, (2, 5)), rtol=0, atol=0)


@pytest.mark.parametrize("pos_embed", ["learned1d", "learned2d", "relative"])
def test_with_gradients_a_table_is_made_anew_and_learns(pos_embed):
    model = randomised(vit(pos_embed=pos_embed, pool="gap"))
    tables, images = tables_of(model), torch.randn(2, 3, 8, 20)
    with torch.no_grad():
        kept, logits = tables.at(0, (2, 5)), model(images)
    assert tables.at(0, (2, 5)) is not kept
    again = model(images)
    torch.testing.assert_close(again, logits)
    again.square().sum().backward()
    assert all(parameter.grad.any() for parameter in tables.parameters())


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
@pytest.mark.parametrize("pool", ["token", "gap"])
def test_another_size_in_bf16(pos_embed, pool):
    model = randomised(vit(pos_embed=pos_embed, pool=pool), std=0.1)
    images = torch.randn(2, 3, 8, 20)
    with torch.no_grad():
        exact, half = model(images), model.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)


def test_another_size_in_inference_mode():
    with torch.inference_mode():
        model = randomised(vit())
        first = model(torch.ones(1, 3, 8, 20))
        model.pos_embed.table.mul_(-1)
        assert not torch.allclose(model(torch.ones(1, 3, 8, 20)), first)
    loaded = randomised(vit())
    with torch.inference_mode():
        inferred = loaded(torch.ones(1, 3, 8, 20))
    assert torch.equal(loaded(torch.ones(1, 3, 8, 20)), inferred)


@pytest.mark.parametrize("training", [True, False])
def test_sizes_that_the_patch_does_not_divide_are_refused(training):
    with pytest.raises(ValueError, match=r"images are 12 x 14 pixels; the model takes multiples of 4"):
        ViT(vit()).train(training)(torch.zeros(1, 3, 12, 14))
    with pytest.raises(ValueError, match=r"images are 16 x 24 pixels; the model takes multiples of 16"):
        ViT(vit(stem_blocks=(), image_size=32)).train(training)(torch.zeros(1, 3, 16, 24))


def test_training_at_another_size_is_refused():
    with pytest.raises(ValueError, match=r"training images are 12 x 16 pixels, model.image_size is 12"):
        ViT(vit()).train()(torch.zeros(1, 3, 12, 16))
