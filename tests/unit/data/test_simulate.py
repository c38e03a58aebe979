"""What `simulate` finds, beside counting by hand, and the memory that 400,000 shards may take."""

import numpy as np
import pytest

from data_pipeline.simulate import Scale, balance, simulate, start

SMALL = Scale(samples=20_007, shards=11, ranks=16, global_batch=64, lanes=64, shuffle_block=16)


def test_shards_are_equally_large():
    assert SMALL.sizes().tolist() == [1819] * 9 + [1818] * 2
    assert Scale(samples=10**12, shards=400_000).sizes().sum() == 10**12


def test_balance_is_what_counting_blocks_finds():
    order = SMALL.order(SMALL.sizes())
    border = 20_007 // 64
    begun = [
        [sum(order.block_at(lane, step).start == step for lane in range(r * 4, r * 4 + 4)) for step in range(border + 2)]
        for r in range(16)
    ]
    inside = np.array(begun)[:, border // 4 + 1 : border // 4 + 1 + border // 2]
    found = balance(SMALL, order)
    assert found["blocks_per_rank_and_step_mean"] == pytest.approx(inside.mean())
    assert found["blocks_per_rank_and_step_max"] == inside.max() <= 2
    assert found["blocks_where_an_epoch_begins_max"] == 4
    assert found["samples_per_rank_and_step"] == 4


def test_a_window_is_a_block_per_lane_and_the_steps_before_their_use():
    assert simulate(SMALL)["window_mib"] == pytest.approx(4 * (16 + 8 + 2) * 110_000 / 2**20)  # 8 steps ahead, 2 being decoded


@pytest.mark.parametrize("scale", [SMALL, Scale(5, 2, 4, 12, 4, 3), Scale(1, 1, 1, 1, 1, 1)], ids=str)
def test_all_of_it_for_any_shape(scale):
    found = simulate(scale)
    assert all(value >= 0 for value in found.values())
    assert found["resume_median_ms"] <= found["resume_max_ms"]


def test_400_000_shards_fit_in_300_mb():
    found = start(Scale())
    assert 40 < found["start_resident_mib"] <= found["start_peak_mib"] < 300e6 / 2**20
