"""Learning rates against values worked out by hand, and against the formulas of big_vision."""

import itertools
import math

import pytest

from vitscale import recipe
from vitscale.cadence import Cadence
from vitscale.schedule import SCHEDULES, Spans, learning_rate

ROOT_HALF = math.sqrt(0.5)
# 10 steps of warm-up to 1.0, then 100 steps to end_lr; rsqrt with a timescale of 25; (step, rate).
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
    "rsqrt": [(0, 0.0), (5, 0.5), (10, 1.0), (35, ROOT_HALF), (85, 0.5), (110, 1 / math.sqrt(5))],
    "constant": [(0, 0.0), (5, 0.5), (10, 1.0), (60, 1.0), (110, 1.0)],
}
# The same with a cool-down over the last 20 steps, which starts at 90.
COOLED = {
    "cosine": [(85, (1 - ROOT_HALF) / 2), (110, 0.0)],
    "linear": [(60, 0.5), (90, 0.2), (100, 0.05), (110, 0.0)],
    "rsqrt": [(85, 0.5), (105, 1 / math.sqrt(4.8) / 4), (110, 0.0)],
    "constant": [(5, 0.5), (90, 1.0), (91, 0.95), (100, 0.5), (109, 0.05), (110, 0.0)],
}


def rate(name, step, peak=1.0, end=0.0, **spans):
    return learning_rate(step, peak, end, name, Spans(**{"total": 110, "warmup": 10, "timescale": 25, **spans}))


def test_every_schedule_has_golden_values():
    assert set(GOLDEN) == set(COOLED) == set(SCHEDULES)


@pytest.mark.parametrize(("values", "cooldown"), [(GOLDEN, 0), (COOLED, 20)], ids=["plain", "cooled"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_golden_values(values, cooldown, name):
    for step, expected in values[name]:
        assert rate(name, step, cooldown=cooldown) == pytest.approx(expected, abs=1e-12)
        assert rate(name, step, peak=4e-3, cooldown=cooldown) == pytest.approx(expected * 4e-3, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "cooldown", "middle", "last"),
    [
        ("cosine", 0, 0.55, 0.1),
        ("linear", 0, 0.55, 0.1),
        ("rsqrt", 0, 0.1 + 0.9 / math.sqrt(3), 0.1 + 0.9 / math.sqrt(5)),
        ("constant", 0, 1.0, 1.0),
        ("rsqrt", 20, 0.1 + 0.9 / math.sqrt(3), 0.1),
        ("constant", 20, 1.0, 0.1),
    ],
)
def test_the_rate_falls_towards_end_lr(name, cooldown, middle, last):
    assert rate(name, 60, end=0.1, cooldown=cooldown) == pytest.approx(middle)
    assert rate(name, 110, end=0.1, cooldown=cooldown) == pytest.approx(last)
    assert rate(name, 10, end=0.1, cooldown=cooldown) == pytest.approx(1.0)
    assert rate(name, 5, end=0.1, cooldown=cooldown) == pytest.approx(0.5)  # the warm-up starts from 0


def big_vision(step, name, total, warmup, cooldown, timescale):
    """`create_learning_rate_schedule` of big_vision/utils.py, for a base rate of 1."""
    progress = min(max((step - warmup) / (total - warmup), 0.0), 1.0)
    shape = {
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "rsqrt": 1 / math.sqrt(1 + (step - warmup) / timescale) if step >= warmup else 1.0,
        "constant": 1.0,
    }[name]
    shape *= min(1.0, step / warmup) if warmup else 1.0
    return shape * (min(1.0, (total - step) / cooldown) if cooldown else 1.0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "cooldown"), [(0, 0), (10, 0), (0, 50), (100, 50), (150, 190)])
def test_every_step_is_that_of_big_vision(name, warmup, cooldown):
    """Also where a cool-down begins within the warm-up: the two are multiplied."""
    spans = {"total": 200, "warmup": warmup, "cooldown": cooldown, "timescale": 40}
    for step in range(201):
        assert rate(name, step, **spans) == pytest.approx(big_vision(step, name, **spans), abs=1e-12)


def test_the_paper_s_linear_decay():
    """ViT-L/16 on ImageNet-21k: 1e-3 after 10,000 steps, 1e-5 at the end, halfway between at the middle."""
    steps = [0, 5_000, 10_000, 160_974, 311_948]
    rates = [rate("linear", step, peak=1e-3, end=1e-5, warmup=10_000, total=311_948) for step in steps]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5.05e-4, 1e-5])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("cooldown", [0, 1000, 4500])
def test_no_step_jumps(name, cooldown):
    rates = [rate(name, step, warmup=1000, total=5000, timescale=1000, cooldown=cooldown) for step in range(5001)]
    assert max(abs(b - a) for a, b in itertools.pairwise(rates)) <= 1 / 500


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warmup_the_first_step_has_the_peak(name):
    assert rate(name, 0, warmup=0) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (10, 10), (20, 10), (0, 0)])
@pytest.mark.parametrize("cooldown", [0, 5, 30])
def test_runs_that_end_in_their_warmup_are_finite(name, warmup, total, cooldown):
    rates = [rate(name, step, warmup=warmup, total=total, cooldown=cooldown) for step in range(total + 2)]
    assert all(0 <= value <= 1 for value in rates)


RUN = """
name: spans
model: {name: vit-b16}
data: {train: {manifest: train.json}}
train: {global_batch: 50, total: {epochs: 4}}
optim: {lr: 2.0, schedule: {name: rsqrt, end_lr: 0.5, warmup: WARMUP, cooldown: COOLDOWN, timescale: TIMESCALE}}
"""


@pytest.mark.parametrize("unit", ["steps", "samples", "epochs"])
def test_any_unit_of_duration_gives_the_same_rates(tmp_path, unit):
    """1,000 images in batches of 50: 20 steps, 1,000 samples and 1 epoch are the same, and 4 epochs are 80 steps."""
    text = RUN
    for key, epochs in {"WARMUP": 0.5, "COOLDOWN": 1, "TIMESCALE": 2}.items():
        amount = {"steps": int(20 * epochs), "samples": int(1000 * epochs), "epochs": epochs}[unit]
        text = text.replace(key, f"{{{unit}: {amount}}}")
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    cfg = recipe.load(path)
    cadence = Cadence.of(cfg, num_samples=1000)
    assert cadence.schedule == Spans(total=80, warmup=10, cooldown=20, timescale=40)
    rates = [cadence.learning_rate(step, cfg.optim) for step in (0, 5, 10, 50, 70, 80)]
    root_third = 1 / math.sqrt(1 + 60 / 40)
    assert rates == pytest.approx([0, 1, 2, 0.5 + 1.5 * ROOT_HALF, 0.5 + 1.5 * root_third / 2, 0.5])
