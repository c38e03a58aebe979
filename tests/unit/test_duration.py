"""Durations: published step counts, rounding, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vitscale.duration import Duration

MINIVAL_TRAIN = 1_268_355  # train[:99%] of ImageNet-1k


@pytest.mark.parametrize(("epochs", "batch", "steps"), [(90, 1024, 111_477), (300, 4096, 92_897)])
def test_epochs_give_the_published_step_counts(epochs, batch, steps):
    assert Duration(epochs=epochs).to_steps(batch, MINIVAL_TRAIN) == steps


def test_steps_stay_and_samples_are_divided_by_the_batch():
    assert Duration(steps=7).to_steps(global_batch=1000, num_samples=3) == 7
    assert Duration(samples=1000).to_steps(global_batch=64, num_samples=3) == 16  # 15.6
    assert Duration(samples=1000).to_steps(global_batch=4096, num_samples=3) == 0


@given(st.integers(1, 1000), st.integers(1, 10**5), st.integers(1, 10**7))
def test_epochs_are_off_by_at_most_half_a_batch(epochs, batch, num_samples):
    steps = Duration(epochs=epochs).to_steps(batch, num_samples)
    assert abs(steps * batch - epochs * num_samples) * 2 <= batch


@pytest.mark.parametrize("epochs", [0.5, 1.5])
def test_parts_of_an_epoch_are_allowed(epochs):
    assert Duration(epochs=epochs).to_steps(10, 100) == epochs * 10


@pytest.mark.parametrize(
    ("given", "named"),
    [({}, "none given"), ({"steps": 1, "epochs": 2}, "steps, epochs given"), ({"steps": -1}, "greater than")],
)
def test_anything_but_one_unit_is_refused(given, named):
    with pytest.raises(ValidationError, match=named):
        Duration(**given)


def test_zero_steps_are_a_duration():
    assert Duration(steps=0).to_steps(8, 8) == 0
