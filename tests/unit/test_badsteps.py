"""Reports of steps that are not finite: how many are too many, and a disk that does not take them."""

import dataclasses
import json
import math
import resource

import numpy as np
import pytest

from data_pipeline.loader import blank
from data_pipeline.order import Slots
from data_pipeline.stream import Shards
from vitscale.badsteps import BadSteps
from vitscale.config import HardwareConfig
from vitscale.errors import DivergedError
from vitscale.readings import Settled
from vitscale.state import TrainState
from vitscale.world import World

GOOD = Settled(8, blank(2, 8), 1.0, 1.0)


@pytest.fixture
def bad_steps(shards, tmp_path):
    with World(HardwareConfig(device="cpu", deterministic=False), 0) as world:
        yield BadSteps(tmp_path / "bad_steps.jsonl", 3, Shards(shards["train"]), world, step=0)


def meet(bad_steps, state, step):
    """A step whose loss is not a number, on the first two samples."""
    slots = Slots(np.zeros(2, np.int64), np.arange(2))
    bad_steps.note(Settled(step, dataclasses.replace(blank(2, 8), slots=slots), math.nan, math.inf), state)


def test_only_those_of_the_last_thousand_steps_count(bad_steps):
    state = TrainState()
    for step in (1, 2, 1001, 1003):
        meet(bad_steps, state, step)
    with pytest.raises(DivergedError, match=r"3 of the last 1,000 steps .* the last is step 1,004"):
        meet(bad_steps, state, 1004)


def test_a_report_that_finds_no_room_follows(bad_steps, tmp_path, capsys):
    state = TrainState()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        meet(bad_steps, state, 7)
        bad_steps.note(GOOD, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert capsys.readouterr().out.count("bad_steps.jsonl: File too large; training goes on") == 1
    assert (tmp_path / "bad_steps.jsonl").stat().st_size == 20
    bad_steps.note(GOOD, state)
    assert state.bad_steps == [7]
    report = json.loads((tmp_path / "bad_steps.jsonl").read_text())
    assert report["ranks"][0]["loss"] == "nan" and len(report["ranks"][0]["samples"]) == 2
