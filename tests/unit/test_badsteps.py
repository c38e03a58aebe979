"""Reports of steps that are not finite: how many are too many, and a disk that does not take them."""

import json
import math
import resource

import numpy as np
import pytest
import torch

from data_pipeline.loader import Batch
from data_pipeline.order import Slots
from data_pipeline.stream import Shards
from vitscale.badsteps import BadStep, BadSteps
from vitscale.config import HardwareConfig
from vitscale.errors import DivergedError
from vitscale.state import TrainState
from vitscale.world import World


@pytest.fixture
def bad_steps(shards, tmp_path):
    with World(HardwareConfig(device="cpu", deterministic=False), 0) as world:
        yield BadSteps(tmp_path / "bad_steps.jsonl", 3, Shards(shards["train"]), world, step=0)


def meet(bad_steps, state, step):
    """A step whose loss is not a number, on the first two samples."""
    nothing = torch.zeros(2)
    slots = Slots(np.zeros(2, np.int64), np.arange(2))
    bad_steps.note(step, Batch(*[nothing] * 8, slots))
    state.bad_steps = [*state.bad_steps, step]
    bad_steps.settle([BadStep(step, math.nan, math.inf, math.nan)], state)


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
        bad_steps.settle([], state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert capsys.readouterr().out.count("bad_steps.jsonl: File too large; training goes on") == 1
    assert (tmp_path / "bad_steps.jsonl").stat().st_size == 20
    bad_steps.settle([], state)
    report = json.loads((tmp_path / "bad_steps.jsonl").read_text())
    assert report["ranks"][0]["loss"] == "nan" and len(report["ranks"][0]["samples"]) == 2
