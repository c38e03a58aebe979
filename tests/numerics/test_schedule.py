"""Learning rates against values worked out by hand."""

import itertools
import math

import pytest

from vitscale.config import ScheduleConfig
from vitscale.schedule import SCHEDULES, learning_rate

ROOT_HALF = math.sqrt(0.5)
# 10 steps of warm-up to 1.0, then 100 steps to end_lr; (step, rate).
GOLDEN = {
    "cosine": [
        (0, 0.0),
        (1, 0.1),
        (9, 0.9),
        (10, 1.0),
        (35, (1 + ROOT_HALF) / 2),
        (60, 0.5),
        (85, (1 - ROOT_HALF) / 2),
        (110, 0.0),
    ],
    "linear": [(0, 0.0), (5, 0.5), (10, 1.0), (11, 0.99), (35, 0.75), (60, 0.5), (110, 0.0)],
    "constant": [(0, 0.0), (5, 0.5), (10, 1.0), (60, 1.0), (110, 1.0)],
}


def rate(name, step, peak=1.0, end=0.0, warmup=10, total=110):
    return learning_rate(step, peak, ScheduleConfig(name=name, end_lr=end), warmup, total)


def test_every_schedule_has_golden_values():
    assert set(GOLDEN) == set(SCHEDULES)


@pytest.mark.parametrize(("name", "step", "expected"), [(name, *point) for name, points in GOLDEN.items() for point in points])
def test_golden_values(name, step, expected):
    assert rate(name, step) == pytest.approx(expected, abs=1e-12)
    assert rate(name, step, peak=4e-3) == pytest.approx(expected * 4e-3, abs=1e-12)


@pytest.mark.parametrize(("name", "middle", "last"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)])
def test_the_end_is_end_lr(name, middle, last):
    assert rate(name, 60, end=0.1) == pytest.approx(middle)
    assert rate(name, 110, end=0.1) == pytest.approx(last)
    assert rate(name, 10, end=0.1) == pytest.approx(1.0)
    assert rate(name, 5, end=0.1) == pytest.approx(0.5)  # the warm-up starts from 0


def test_the_paper_s_linear_decay():
    """ViT-L/16 on ImageNet-21k: 1e-3 after 10,000 steps, 1e-5 at the end, halfway between at the middle."""
    steps = [0, 5_000, 10_000, 160_974, 311_948]
    rates = [rate("linear", step, peak=1e-3, end=1e-5, warmup=10_000, total=311_948) for step in steps]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5.05e-4, 1e-5])


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_step_jumps(name):
    rates = [rate(name, step, warmup=1000, total=5000) for step in range(5001)]
    assert max(abs(b - a) for a, b in itertools.pairwise(rates)) <= 1 / 1000 + 1e-12


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warmup_the_first_step_has_the_peak(name):
    assert rate(name, 0, warmup=0) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (10, 10), (20, 10), (0, 0)])
def test_runs_that_end_in_their_warmup_are_finite(name, warmup, total):
    assert all(0 <= rate(name, step, warmup=warmup, total=total) <= 1 for step in range(total + 2))
