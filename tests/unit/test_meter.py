"""Meter and phases on a clock that only moves when told."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vitscale.config import HardwareConfig
from vitscale.meter import Meter, measure_flops, peak_flops, peak_memory_gib
from vitscale.phases import GOODPUT, Phases, process_age_s
from vitscale.state import TrainState


class Clock:
    def __init__(self):
        self.now = 1000.0  # a start that is not 0, so that times are differences

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def phases(clock):
    return Phases(clock)


def slow(items, clock, seconds):
    for item in items:
        clock.sleep(seconds)
        yield item


def train(meter, clock, waits, seconds):
    """Steps of so many seconds, each after so long a wait for data."""
    for _ in meter.waiting(slow(range(waits), clock, seconds=1)):
        clock.sleep(seconds)
        meter.step()


def test_rate_and_data_wait(clock, phases):
    meter = Meter(100, 10, {}, phases)
    train(meter, clock, 4, 3)
    found = meter.report(steps_left=5)
    assert found["speed/images_per_s"] == 400 / 15  # the first wait belongs to the start
    assert found["speed/data_wait"] == 3 / 15
    assert found["speed/left_s"] == pytest.approx(5 * 15 / 4)


def test_waiting_passes_everything_on(phases):
    assert list(Meter(1, 1, {}, phases).waiting(iter("abc"))) == ["a", "b", "c"]


def test_a_report_covers_the_steps_since_the_last_without_what_is_no_training(clock, phases):
    meter, rates = Meter(100, 10, {}, phases), []
    for _ in meter.waiting(slow(range(2), clock, seconds=1)):
        clock.sleep(9)
        meter.step()
        rates.append(meter.report(0)["speed/images_per_s"])
        with phases.during("eval"):
            clock.sleep(1000)
    assert rates == [100 / 9, 100 / 10]
    assert meter.images_per_s() == 200 / 19  # the whole start
    assert (meter.seconds_left(19), meter.seconds_left(0)) == (pytest.approx(180.5), 0)


def test_step_times(clock, phases):
    meter = Meter(1, 1, {}, phases)
    for number, _ in enumerate(meter.waiting(range(101))):
        clock.sleep(number)
        meter.step()
    found = meter.report(0)
    assert [found[f"speed/step_s_{name}"] for name in ("p50", "p95", "p99", "max")] == [50, 95, 99, 100]
    assert meter.report(0)["speed/step_s_max"] == 0  # none since


def test_mfu_is_the_share_of_each_peak(clock, phases):
    meter = Meter(50, 8_000, {"speed/mfu": 1_000_000.0, "speed/mfu_measured": 500_000.0}, phases)
    train(meter, clock, 1, 2)
    found = meter.report(0)
    assert found["speed/mfu"] == pytest.approx(50 / 2 * 8_000 / 1_000_000)
    assert found["speed/mfu_measured"] == pytest.approx(2 * found["speed/mfu"])


def test_a_meter_asked_at_once_does_not_divide_by_zero(phases):
    assert Meter(1, 1, {}, phases).report(1)["speed/images_per_s"] == 0


def test_the_parts_add_up_to_the_time_since_the_process_began(clock):
    phases = Phases(clock, age_s=6)
    clock.sleep(4)
    meter = Meter(1, 1, {}, phases)
    train(meter, clock, 2, 20)
    with phases.during("eval"):
        clock.sleep(16)
    with pytest.raises(RuntimeError), phases.during("checkpoint"):
        clock.sleep(12)
        raise RuntimeError
    assert phases.goodput() == {
        "goodput/restart": 11 / 80,  # with the first wait
        "goodput/data": 1 / 80,
        "goodput/productive": 40 / 80,
        "goodput/eval": 16 / 80,
        "goodput/checkpoint": 12 / 80,
    }


def test_what_an_earlier_start_lost_and_the_time_in_between_count_as_restart(clock):
    seconds = {"start": 10.0, "data": 5.0, "train": 60.0, "eval": 15.0, "checkpoint": 10.0}
    state = TrainState(step=7, began=time.time() - 200, seconds=seconds)  # 100 s are accounted for
    phases = Phases(clock, age_s=8)
    phases.take_up(state)
    clock.sleep(50)
    phases.enter("train")
    clock.sleep(50)
    assert phases.step == 7
    assert phases.goodput() == pytest.approx(
        {
            "goodput/restart": (10 + 100 + 50) / 300,
            "goodput/data": 5 / 300,
            "goodput/productive": (60 + 50) / 300,
            "goodput/eval": 15 / 300,
            "goodput/checkpoint": 10 / 300,
        },
        rel=1e-3,
    )


def test_a_run_begins_with_its_process(clock):
    phases, state = Phases(clock, age_s=8), TrainState()
    phases.take_up(state)
    assert time.time() - state.began == pytest.approx(8, abs=0.5)
    assert phases.goodput()["goodput/restart"] == pytest.approx(1)
    assert set(GOODPUT.values()) == set(phases.seconds())


def test_the_age_of_this_process_moves_with_the_clock():
    age_s, before = process_age_s(), time.monotonic()
    assert age_s > 0.1  # it has imported torch
    time.sleep(0.05)
    assert process_age_s() - age_s == pytest.approx(time.monotonic() - before, abs=0.02)


@pytest.mark.parametrize(
    ("name", "precision", "stated", "devices", "peak"),
    [
        ("NVIDIA H200", "bf16", None, 8, 8 * 989e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", None, 1, 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", None, 2, 39e12),
        ("NVIDIA H200", "bf16", 500.0, 2, 1000e12),
        ("", "bf16", 0.5, 2, 1e12),
        ("some other device", "bf16", None, 4, None),
    ],
)
def test_the_peak_is_stated_or_known_or_unknown(name, precision, stated, devices, peak):
    assert peak_flops(name, HardwareConfig(precision=precision, peak_tflops=stated), devices) == peak


def test_the_measured_peak_is_of_the_size_of_what_numpy_reaches():
    left = np.ones((512, 512), np.float32)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - begin)
    assert 1 / 100 < measure_flops(torch.device("cpu"), torch.float32) / (2 * 512**3 / min(times)) < 100


def test_the_peak_of_memory_is_what_the_kernel_says():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_memory_gib() == pytest.approx(int(lines["VmHWM"].split()[0]) / 2**20, rel=0.01)
