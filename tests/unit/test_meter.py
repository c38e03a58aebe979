"""The meter on a clock that only moves when told."""

import pytest

from vitscale.meter import Meter, peak_flops


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


def slow(items, clock, seconds):
    for item in items:
        clock.sleep(seconds)
        yield item


def meter_on(clock, batch=100, flops=10, peak=None):
    return Meter(batch, flops, peak, clock)


def test_rate_and_data_wait(clock):
    meter = meter_on(clock)
    for _ in meter.waiting(slow(range(4), clock, seconds=1)):
        clock.sleep(3)
        meter.step()
    assert meter.report() == {"speed/images_per_s": 400 / 16, "speed/data_wait": 4 / 16}


def test_waiting_passes_everything_on(clock):
    assert list(meter_on(clock).waiting(iter("abc"))) == ["a", "b", "c"]


def test_a_report_covers_the_steps_since_the_last(clock):
    meter = meter_on(clock)
    for seconds in (10, 2):
        for _ in meter.waiting(slow(range(1), clock, seconds / 2)):
            clock.sleep(seconds / 2)
            meter.step()
        assert meter.report() == {"speed/images_per_s": 100 / seconds, "speed/data_wait": 0.5}
    assert meter.images_per_s() == 200 / 12  # the whole start


def test_mfu_is_the_share_of_the_stated_peak(clock):
    meter = meter_on(clock, batch=50, flops=8_000, peak=1_000_000.0)
    clock.sleep(2)
    meter.step()
    assert meter.report()["speed/mfu"] == pytest.approx(50 / 2 * 8_000 / 1_000_000)


def test_without_a_peak_there_is_no_mfu(clock):
    assert "speed/mfu" not in meter_on(clock).report()


def test_a_pause_counts_nowhere(clock):
    meter = meter_on(clock)
    clock.sleep(4)
    meter.step()
    with meter.pause():
        clock.sleep(1000)
    assert meter.images_per_s() == 25
    assert meter.report()["speed/images_per_s"] == 25
    clock.sleep(2)
    meter.step()
    with meter.pause():
        clock.sleep(500)
    assert meter.report()["speed/images_per_s"] == 50
    assert meter.images_per_s() == 200 / 6


def test_a_pause_that_fails_counts_nowhere_either(clock):
    meter = meter_on(clock)
    clock.sleep(1)
    meter.step()
    with pytest.raises(RuntimeError), meter.pause():
        clock.sleep(9)
        raise RuntimeError
    assert meter.images_per_s() == 100


def test_seconds_left_follow_from_the_rate(clock):
    meter = meter_on(clock)
    clock.sleep(8)
    meter.step()
    meter.step()
    assert meter.seconds_left(5) == pytest.approx(20)
    assert meter.seconds_left(0) == 0


def test_a_meter_asked_at_once_does_not_divide_by_zero(clock):
    meter = meter_on(clock)
    assert (meter.images_per_s(), meter.report()["speed/images_per_s"]) == (0, 0)


@pytest.mark.parametrize(
    ("name", "stated", "devices", "peak"),
    [
        ("NVIDIA H200", None, 8, 8 * 989e12),
        ("NVIDIA A100-SXM4-80GB", None, 1, 312e12),
        ("NVIDIA H200", 500.0, 2, 1000e12),
        ("", 0.5, 2, 1e12),
        ("some other device", None, 4, None),
    ],
)
def test_the_peak_is_stated_or_known_or_unknown(name, stated, devices, peak):
    assert peak_flops(name, stated, devices) == peak
