"""What pictures of a model are made of, against numpy and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import ON_RESNET, bit, random_images, randomised, vit

from vitscale.errors import ModelError
from vitscale.figures.drawing import mosaic
from vitscale.figures.model import NUM_FILTERS, first_filters, position_similarity, principal_components


def test_components_are_the_eigenvectors_of_the_covariance():
    filters = np.random.default_rng(0).normal(size=(200, 4, 5, 3)) * np.linspace(1, 3, 60).reshape(4, 5, 3)
    values, vectors = np.linalg.eigh(np.cov(filters.reshape(200, -1), rowvar=False))
    found = principal_components(filters)
    assert found.shape == (NUM_FILTERS, 4, 5, 3)
    alike = np.abs(found.reshape(NUM_FILTERS, -1) @ vectors[:, np.argsort(-values)[:NUM_FILTERS]])
    np.testing.assert_allclose(alike, np.eye(NUM_FILTERS), atol=1e-8)


@pytest.mark.parametrize("shape", [(5, 4, 4, 3), (64, 2, 2, 3)])
def test_there_are_no_more_components_than_filters_or_pixels(shape):
    assert len(principal_components(np.random.default_rng(0).normal(size=shape))) == min(shape[0], 12 * (shape[1] // 2) ** 2)


def test_the_filters_of_a_vit_do_to_images_what_its_patch_embedding_does():
    model = randomised(vit())
    images = random_images(model.config)
    layer, filters_FHWC = first_filters(model)
    found = F.conv2d(images, filters_FHWC.permute(0, 3, 1, 2), model.patch_embed.proj.bias, stride=4)
    assert layer == "initial linear embedding"
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), model.patch_embed(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "root", "padding"),
    [(vit(**ON_RESNET), "stem.root", (2, 3, 2, 3)), (bit(1, 1, 1, 1), "root", (3, 3, 3, 3))],
    ids=["hybrid", "bit"],
)
def test_the_filters_of_a_resnet_do_to_images_what_its_first_convolution_does(config, root, padding):
    model = randomised(config)
    images = random_images(config)
    layer, filters_FHWC = first_filters(model)
    found = F.conv2d(F.pad(images, padding), filters_FHWC.permute(0, 3, 1, 2), stride=2)
    assert layer == "first convolution"
    torch.testing.assert_close(found, model.get_submodule(root)(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [3, 5])
def test_similarity_of_sincos_positions_is_a_sum_of_cosines(side):
    """sin a sin b + cos a cos b = cos(a - b): the mean over frequencies of cos(w dx) and cos(w dy)."""
    width = 24
    frequency = 10_000.0 ** -(np.arange(width // 4) / (width // 4 - 1))
    along = np.cos(np.subtract.outer(np.arange(side), np.arange(side))[..., None] * frequency).mean(axis=-1)
    expected = (along[:, None, :, None] + along[None, :, None, :]) / 2
    model = randomised(vit(pos_embed="sincos2d", width=width))
    np.testing.assert_allclose(position_similarity(model, (side, side)), expected, atol=1e-5)


def test_similarity_of_learned_positions_leaves_the_class_token_out_and_follows_a_resize():
    """Vectors (1, column) on a grid of 3 become (1, column / 2) on one of 5: corners stay, halves between."""
    model = randomised(vit())
    with torch.no_grad():
        model.pos_embed.table.zero_()
        model.pos_embed.table[0, 0] = 7.0
        model.pos_embed.table[0, 1:, 0] = 1.0
        model.pos_embed.table[0, 1:, 1] = torch.arange(3.0).repeat(3)
    for side, step in ((3, 1.0), (5, 0.5)):
        at = np.arange(side) * step
        norm = np.sqrt(1 + at**2)
        between_columns = (1 + np.outer(at, at)) / np.outer(norm, norm)
        expected = np.broadcast_to(between_columns[None, :, None, :], (side, side, side, side))
        np.testing.assert_allclose(position_similarity(model, (side, side)).detach(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "relative"])
def test_positions_without_vectors_cannot_be_compared(kind):
    with pytest.raises(ModelError, match=f"pos_embed: {kind}"):
        position_similarity(randomised(vit(pos_embed=kind)), (3, 3))


def test_a_mosaic_has_its_tiles_in_reading_order():
    tiles = np.arange(2 * 2 * 1 * 2).reshape(2, 2, 1, 2)
    np.testing.assert_array_equal(mosaic(tiles, 1, -1.0), [[0, 1, -1, 2, 3], [-1] * 5, [4, 5, -1, 6, 7]])
