"""Weights and boxes of mixed groups against the laws they are drawn from."""

import math

import numpy as np
import pytest
from scipy import stats

from data_pipeline.draw import Draw, Purpose
from data_pipeline.mixplan import mix_plan

SIZE, GROUP = 224, 4


def plan(mixup: float, cutmix: float, groups: int, step: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of each group, after checking that its slots agree."""
    weights, boxes = mix_plan(mixup, cutmix, SIZE, GROUP, seed, step, 0, GROUP * groups)
    assert (weights.dtype, boxes.dtype) == (np.float32, np.int32)
    weights, boxes = weights.reshape(groups, GROUP), boxes.reshape(groups, GROUP, 4)
    assert (weights == weights[:, :1]).all()
    assert (boxes == boxes[:, :1]).all()
    return weights[:, 0], boxes[:, 0]


def test_without_mixing_every_slot_keeps_its_own_image():
    weights, boxes = mix_plan(0.0, 0.0, SIZE, GROUP, 0, 3, 5, 7)
    assert weights.tolist() == [1.0] * 7
    assert boxes.tolist() == [[0] * 4] * 7


def test_mixup_alone_has_the_groups_first_beta_at_least_half():
    weights, boxes = plan(1.0, 0.0, 5000)
    betas = [Draw(0, Purpose.MIX, 5, group).beta(1.0) for group in range(5000)]
    assert weights.tolist() == np.array([max(beta, 1 - beta) for beta in betas], np.float32).tolist()
    assert not boxes.any()
    assert abs(weights.mean() - 0.75) < 4 * 0.25 / math.sqrt(3 * 5000)  # Beta(1, 1) folded: uniform in [1/2, 1]


def test_cutmix_weights_are_the_exact_share_outside_the_box():
    weights, boxes = plan(0.0, 1.0, 200)
    for weight, (y, x, h, w) in zip(weights.tolist(), boxes.tolist(), strict=True):
        pixels = np.ones((SIZE, SIZE))
        assert 0 <= y <= y + h <= SIZE
        assert 0 <= x <= x + w <= SIZE
        pixels[y : y + h, x : x + w] = 0
        assert weight == pytest.approx(pixels.mean(), abs=1e-7)


def test_cutmix_boxes_cover_what_uniform_shares_and_centres_give():
    """Of a side r about a uniform centre r - r^2/4 is inside; E of its square for uniform r^2 is 1/2 - 1/5 + 1/48."""
    weights, boxes = plan(0.0, 1.0, 6000)
    covered = 1 - weights.astype(np.float64)
    assert abs(covered.mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 4 * covered.std() / math.sqrt(6000) + 2 / SIZE
    y, x, h, w = boxes.T.astype(float)
    whole = (y > 0) & (x > 0) & (y + h < SIZE) & (x + w < SIZE)
    assert np.array_equal(h[whole], w[whole])
    assert abs(np.corrcoef(y + h / 2, x + w / 2)[0, 1]) < 0.06
    for centre in (y + h / 2, x + w / 2):
        assert abs(centre.mean() - SIZE / 2) < 4 * SIZE / math.sqrt(12 * 6000) + 1


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_cutmix_leaves_images_whole_as_often_as_its_beta_law_says(alpha):
    """A side below two pixels cuts nothing."""
    weights, _ = plan(0.0, alpha, 3000)
    share = stats.beta.cdf((2 / SIZE) ** 2, alpha, alpha)
    assert abs((weights == 1).mean() - share) < 4 * math.sqrt(share * (1 - share) / 3000)


def test_groups_are_mixed_one_way_or_the_other_alike():
    weights, boxes = plan(0.8, 1.0, 4000)
    cut = boxes.any(axis=1)
    assert abs(cut.mean() - 0.5) < 4 * 0.5 / math.sqrt(4000) + 0.02  # some boxes are empty
    assert weights[~cut].min() >= 0.5
    assert weights[cut].min() < 0.3


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_a_ranks_plan_is_its_part_of_the_steps(mixup, cutmix):
    weights, boxes = mix_plan(mixup, cutmix, SIZE, GROUP, 1, 9, 0, 32)
    for first in range(0, 32, 8):
        part_weights, part_boxes = mix_plan(mixup, cutmix, SIZE, GROUP, 1, 9, first, 8)
        assert np.array_equal(part_weights, weights[first : first + 8])
        assert np.array_equal(part_boxes, boxes[first : first + 8])
    assert not np.array_equal(mix_plan(mixup, cutmix, SIZE, GROUP, 1, 10, 0, 32)[0], weights)
    assert not np.array_equal(mix_plan(mixup, cutmix, SIZE, GROUP, 2, 9, 0, 32)[0], weights)
