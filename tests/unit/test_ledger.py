"""The ledger of replaced images: written for all ranks, cut back when a run goes on from an earlier step, limited."""

import dataclasses
import json
import resource

import pytest

from data_pipeline.bad_samples import Skip
from data_pipeline.config import BadSamplesConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import blank
from vitscale.config import HardwareConfig
from vitscale.ledger import Ledger
from vitscale.readings import Settled
from vitscale.state import TrainState
from vitscale.world import World


def skip(number: int) -> Skip:
    return Skip(0, f"k{number}", "train-000.tar", "not a readable image", f"k{number + 1}")


def made(step: int, *skips: Skip) -> Settled:
    """A step in which these were skipped."""
    return Settled(step, dataclasses.replace(blank(2, 8), skips=skips), 1.0, 1.0)


@pytest.fixture(scope="module")
def world():
    with World(HardwareConfig(device="cpu", deterministic=False), 0) as world:
        yield world


REPLACE = BadSamplesConfig(policy="replace", max_fraction=0.01)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_skipped_is_written_once_with_its_step(world, tmp_path):
    ledger, state = Ledger(tmp_path / "ledger.jsonl", REPLACE, world, 0), TrainState(step=2, samples=64)
    ledger.note(made(1, skip(1)))
    ledger.note(made(2, skip(2), skip(3)))
    for _ in range(2):
        ledger.settle(state)
    found = lines(tmp_path / "ledger.jsonl")
    assert [(line["step"], line["key"], line["replaced_by"]) for line in found] == [
        (1, "k1", "k2"),
        (2, "k2", "k3"),
        (2, "k3", "k4"),
    ]
    assert set(found[0]) == {"step", "epoch", "key", "shard", "reason", "replaced_by"}
    assert state.skipped == 3


def test_without_skips_there_is_no_file(world, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", REPLACE, world, 0)
    ledger.settle(TrainState())
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_run_that_goes_on_forgets_what_comes_again(world, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", REPLACE, world, 0)
    for step in (1, 2, 3, 4):
        ledger.note(made(step, skip(step)))
    ledger.settle(TrainState(step=4, samples=128))
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"step": 5, "ep')  # killed while writing
    Ledger(tmp_path / "ledger.jsonl", REPLACE, world, 2)
    assert [line["step"] for line in lines(tmp_path / "ledger.jsonl")] == [1, 2]


def test_too_many_stop_the_run_after_they_are_written(world, tmp_path):
    ledger, state = Ledger(tmp_path / "ledger.jsonl", REPLACE, world, 0), TrainState(step=400, samples=12_800)
    ledger.note(made(400, *map(skip, range(128))))
    ledger.settle(state)
    ledger.note(made(401, skip(1000)))
    with pytest.raises(DataError, match=r"max_fraction: 129 of 12,800 images .* 1.000% are allowed"):
        ledger.settle(state)
    assert len(lines(tmp_path / "ledger.jsonl")) == 129


def test_what_a_full_disk_does_not_take_follows(world, tmp_path, capsys):
    """The limit on the size of a file fails within a line, as a full disk does."""
    ledger, state = Ledger(tmp_path / "ledger.jsonl", REPLACE, world, 0), TrainState(step=1, samples=64)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        ledger.note(made(1, skip(1), skip(2)))
        ledger.settle(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "ledger.jsonl: File too large; training goes on" in capsys.readouterr().out
    assert (tmp_path / "ledger.jsonl").stat().st_size == 200
    ledger.note(made(2, skip(3)))
    ledger.settle(state)
    assert [line["key"] for line in lines(tmp_path / "ledger.jsonl")] == ["k1", "k2", "k3"]
    assert state.skipped == 3
