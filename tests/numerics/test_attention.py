"""Attention looked at from outside, against what the model computes inside and against cases worked out by hand."""

import math

import pytest
import torch
from tiny_models import ON_RESNET, POS_EMBEDS, random_images, randomised, vit

from vitscale.figures.attention import attention_maps, mean_distance, rollout

OPTIONS = [*({"pos_embed": kind} for kind in POS_EMBEDS), {"pool": "gap"}, {"pool": "map"}, ON_RESNET]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_the_maps_are_what_the_model_mixes_values_with(changes):
    """Values times the map, through the output matrix, are what the attention module itself returns."""
    model = randomised(vit(**changes))
    images, calls = random_images(model.config, batch=2), []
    hooks = [
        block.attention.register_forward_hook(lambda _, args, output: calls.append((args[0], output))) for block in model.blocks
    ]
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    maps = list(attention_maps(model, images))
    assert len(maps) == model.config.depth
    for block, (tokens, expected), map_BhNN in zip(model.blocks, calls, maps, strict=True):
        value_BhND = block.attention.qkv(tokens).unflatten(2, (3, model.config.num_heads, -1))[:, :, 2].transpose(1, 2)
        mixed = (map_BhNN @ value_BhND).transpose(1, 2).flatten(2)
        torch.testing.assert_close(block.attention.out(mixed), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model(images), logits), "the model was left changed"
    assert not any(block.attention._forward_pre_hooks for block in model.blocks)


def test_distance_in_pixels_by_hand():
    """Two rows and one column of patches of 10 pixels, with a class token: heads that stay, leave, are torn, and look at it."""
    third, half = 1 / 3, 1 / 2
    stay = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    leave = [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    torn = [[third] * 3] * 3
    only_one_leaves = [[1, 0, 0], [half, 0, half], [half, 0, half]]  # half the attention goes where no distance is
    found = mean_distance(torch.tensor([[stay, leave, torn, only_one_leaves]]), (2, 1), 10)
    torch.testing.assert_close(found, torch.tensor([[0.0, 10.0, 5.0, 5.0]]))


def test_distance_across_a_grid_is_as_the_crow_flies():
    """Uniform attention over 2 x 2 patches of 3 pixels: to itself 0, to two neighbours 3, across 3 sqrt(2)."""
    uniform = torch.full((1, 1, 4, 4), 0.25)
    assert mean_distance(uniform, (2, 2), 3).item() == pytest.approx((3 + 3 + 3 * math.sqrt(2)) / 4)


def test_distance_is_measured_down_and_across():
    """All look at the last patch of 2 x 3."""
    to_the_last = torch.zeros(1, 1, 6, 6)
    to_the_last[..., 5] = 1
    by_hand = [math.hypot(1, 2), math.hypot(1, 1), 1, 2, 1, 0]
    assert mean_distance(to_the_last, (2, 3), 1).item() == pytest.approx(sum(by_hand) / 6)


def test_rollout_by_hand():
    """A class token and two patches, two blocks, two heads that differ."""
    first = torch.tensor([[[[0.5, 0.5, 0.0], [0, 1, 0], [0, 0, 1]], [[0.5, 0.0, 0.5], [0, 1, 0], [0, 0, 1]]]])
    second = torch.tensor([[[[0.0, 1.0, 0.0], [0, 0, 1], [0, 0, 1]], [[0.0, 1.0, 0.0], [0, 0, 1], [0, 0, 1]]]])
    # Mean over heads, plus identity, halved: rows (3/4, 1/8, 1/8), identity below; then (1/2, 1/2, 0), (0, 1/2, 1/2), ...
    # Their product, the second from the left, has the first row (3/8, 1/16 + 1/2, 1/16).
    found = rollout([first, second], (1, 2))
    torch.testing.assert_close(found, torch.tensor([[[9 / 16, 1 / 16]]]))


def test_rollout_without_a_class_token_is_the_mean_over_patches():
    by_hand = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])  # both look at the second: (1/2, 1/2) and (0, 1) with the identity
    torch.testing.assert_close(rollout([by_hand], (2, 1)), torch.tensor([[[0.25], [0.75]]]))


def test_rollout_takes_nothing_away():
    """Without a class token the patches together are the whole."""
    model = randomised(vit(pool="gap", depth=3))
    seen = rollout(attention_maps(model, random_images(model.config)), model.config.grid)
    torch.testing.assert_close(seen.sum(dim=(1, 2)), torch.ones(3))
