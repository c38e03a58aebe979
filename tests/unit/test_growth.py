"""What a run does at each step and log point does not depend on how many it has made."""

import json
import math

import numpy as np
import pytest
import torch
from work import bytecodes

from data_pipeline.loader import Batch
from data_pipeline.order import Order, Slots
from data_pipeline.stream import Shards
from vitscale.badsteps import BadSteps
from vitscale.history import History
from vitscale.readings import Settled
from vitscale.state import TrainState
from vitscale.world import World

FEW, MANY = 5, 500
METRICS = {"eval/top1": 0.5, "eval/top5": 0.75, "eval/loss": 1.25}


def test_the_measure_sees_work():
    few, many = (bytecodes(lambda n=n: json.dumps({"scores": [METRICS] * n}, indent=1)) for n in (FEW, MANY))
    assert many > 50 * few > 5000


def test_a_log_point_costs_the_same_after_many(tmp_path):
    def add(points):
        path = tmp_path / f"{points}.jsonl"
        lines = [{"step": step, "kind": "train", "time_ms": 0, "metrics": METRICS} for step in range(points)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        history = History(path)
        return bytecodes(lambda: history.add(MANY, "train", METRICS))

    assert add(FEW) == add(MANY)


@pytest.fixture
def world(config):
    with World(config("hardware.device=cpu", "hardware.deterministic=false").hardware, seed=0) as world:
        yield world


def test_a_bad_step_costs_the_same_after_many(world, shards, tmp_path):
    def note(before):
        bad_steps = BadSteps(tmp_path / f"{before}.jsonl", 2 * MANY, Shards(shards["train"]), world, step=0)
        batch = Batch(*[torch.zeros(2)] * 8, Slots(np.zeros(2, np.int64), np.arange(2)))
        state = TrainState(bad_steps=list(range(before)))
        return bytecodes(lambda: bad_steps.note(Settled(10 * MANY, batch, math.nan, math.nan), state))

    note(FEW)  # opens what is opened once
    assert note(FEW) == pytest.approx(note(MANY), abs=100)


def test_a_step_of_the_order_costs_the_same_with_many_shards():
    def step(shards):
        view = Order([np.full(shards, 100)], 16, 16, 8, seed=0).view(0, 16)
        view.step(0)
        return sum(bytecodes(lambda n=n: view.step(n)) for n in range(1, 9))

    assert step(20) == step(20_000)
