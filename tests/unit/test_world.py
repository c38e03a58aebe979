"""The device that a recipe asks for, and the ways to a stop, on one real process."""

import os
import signal
import threading
import time

import pytest
import torch

from vitscale.config import HardwareConfig
from vitscale.errors import LaunchError
from vitscale.health import Watch, deadline
from vitscale.rundir import RunDir
from vitscale.world import STOP_SIGNALS, World, choose_device


def test_auto_takes_what_is_there() -> None:
    assert choose_device(HardwareConfig(device="auto")) == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_said_so() -> None:
    with pytest.raises(LaunchError, match=r"hardware\.device: cuda"):
        choose_device(HardwareConfig(device="cuda"))


@pytest.fixture
def world():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with World(HardwareConfig(device="cpu", deterministic=False), 0) as world:
        yield world
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(config):
    run = RunDir(config())
    run.claim()
    yield run
    run.release()


def forever():
    """Items of which the second never comes."""
    yield 1
    threading.Event().wait()


def test_without_a_stop_every_item_comes(world) -> None:
    assert list(world.until_stop("abc")) == ["a", "b", "c"]
    assert not world.stopping


def test_a_second_signal_does_not_cut_the_cleaning_up_short(world) -> None:
    cleaned = []

    def items():
        try:
            threading.Event().wait()
            yield 1
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            cleaned.append("up")

    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    assert list(world.or_none(items(), 3)) == []
    assert cleaned == ["up"]


def test_a_signal_ends_the_wait_for_an_item(world) -> None:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    assert list(world.until_stop(forever())) == [1]
    assert world.stopping
    assert list(world.until_stop("abc")) == []  # and all that comes after it, an evaluation say


def test_a_signal_between_two_items_waits_for_none(world) -> None:
    found = []
    for item in world.until_stop(forever()):
        found.append(item)
        os.kill(os.getpid(), signal.SIGTERM)
    assert found == [1] and world.stopping


def test_training_alone_stops_at_once(world) -> None:
    assert list(world.or_none("abc", 2)) == ["a", "b"]
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    assert list(world.or_none(forever(), 5)) == [1]
    assert world.stopping and list(world.or_none("abc", 3)) == []


def test_training_with_others_goes_on_without_data_until_they_know(world) -> None:
    world.size = 2
    found = []
    for item in world.or_none(forever(), 5):
        found.append(item)
        os.kill(os.getpid(), signal.SIGUSR1)
        world.stopping = len(found) == 3  # a step that was lost has told all
    assert found == [1, None, None]


def test_the_file_stop_ends_the_wait(world, run) -> None:
    with Watch(world, run, hang_after_s=2):
        threading.Timer(0.2, run.stop.touch).start()
        assert list(world.until_stop(forever())) == [1]
    assert world.stopping


def test_the_file_stop_is_seen_before_the_first_item(world, run) -> None:
    run.stop.touch()
    with Watch(world, run, hang_after_s=2):
        assert list(world.until_stop(forever())) == []
    assert world.stop_reason == "stop file"


def test_a_file_system_that_answers_with_an_error_is_no_stop(world, run, monkeypatch) -> None:
    monkeypatch.setattr(run, "stop", run.path / (300 * "x"))
    with Watch(world, run, hang_after_s=2) as watch:
        time.sleep(0.8)
        assert watch._thread.is_alive()
    assert not world.stop_requested


def test_a_deadline_that_is_no_time_is_said_so() -> None:
    assert (deadline(""), deadline("17")) == (float("inf"), 17.0)
    with pytest.raises(LaunchError, match="VITSCALE_DEADLINE: found 'tomorrow', it takes seconds since 1970"):
        deadline("tomorrow")


@pytest.mark.parametrize(("seconds_left", "step_s", "stops"), [(50, 0, True), (100, 0, False), (100, 10, True), (-5, 0, True)])
def test_the_deadline_leaves_time_for_two_saves_and_the_steps_of_a_stop(
    world, run, monkeypatch, seconds_left, step_s, stops
) -> None:
    monkeypatch.setenv("VITSCALE_DEADLINE", str(time.time() + seconds_left))
    world.save_s, world.phases.step_s = 40.0, step_s
    with Watch(world, run, hang_after_s=2):
        time.sleep(0.8)
    assert world.stop_requested is stops
