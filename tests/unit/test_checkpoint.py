"""Which checkpoints are there, which count, and which are kept."""

import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from vitscale.checkpoint import find, latest
from vitscale.config import CheckpointConfig, RunConfig
from vitscale.errors import CheckpointError
from vitscale.retention import complete, prune
from vitscale.state import TrainState
from vitscale.sums import write_sums

RUN = {
    "name": "x",
    "model": {"patch_size": 8, "width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "image_size": 16, "num_classes": 10},
    "train": {"global_batch": 8, "total": {"steps": 9}},
    "optim": {"lr": 0.1},
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def make(step: int) -> Path:
        path = tmp_path / f"step_{step:08d}"
        (path / "engine").mkdir(parents=True)
        (path / "engine" / "rank_00000.safetensors").write_bytes(bytes(range(256)))
        (path / "state.json").write_text(TrainState(step=step, data="d" * 64).dump())
        write_sums(path)
        return path

    return make


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in complete(folder)]


@pytest.mark.parametrize(
    ("config", "keep_every", "kept"),
    [
        ({}, 0, [70, 80]),
        ({"keep": 3}, 0, [60, 70, 80]),
        ({}, 30, [30, 60, 70, 80]),
        ({}, 25, [30, 50, 70, 80]),  # the first at or after 25, 50 and 75
        ({"best": "eval/top1"}, 0, [50, 70, 80]),  # of two equals the later one
        ({"best": "eval/loss"}, 0, [20, 70, 80]),
        ({"best": "eval/top5"}, 0, [70, 80]),  # never measured
        ({"best": "eval/top1"}, 30, [30, 50, 60, 70, 80]),
    ],
)
def test_what_is_kept_of_all_and_of_a_growing_run(tmp_path, make, config, keep_every, kept):
    top1 = {20: 0.1, 40: 0.7, 50: 0.7, 70: 0.3, 80: float("nan")}
    scores = {f"step_{step:08d}": {"eval/top1": value, "eval/loss": value} for step, value in top1.items()}
    for step in range(10, 90, 10):
        make(step)
        prune(
            tmp_path, CheckpointConfig(**config), keep_every, {name: scores[name] for name in scores if int(name[5:]) <= step}
        )
    assert steps(tmp_path) == kept
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_a_score_that_is_only_known_after_the_next_start_counts(tmp_path, make):
    """A stop cut its evaluation short: the state that its checkpoint holds does not know it."""
    for step in (1, 2, 3, 4):
        make(step)
    prune(tmp_path, CheckpointConfig(best="eval/top1"), 0, {"step_00000001": {"eval/top1": 0.5}})
    assert steps(tmp_path) == [1, 3, 4]


def test_a_pruning_that_is_killed_leaves_no_half_checkpoint(tmp_path, make, monkeypatch):
    for step in (1, 2, 3):
        make(step)
    monkeypatch.setenv("VITSCALE_FAULT", "save.doomed")
    process = multiprocessing.get_context("fork").Process(target=prune, args=(tmp_path, CheckpointConfig(), 0, {}))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert steps(tmp_path) == [2, 3]
    assert len(list(tmp_path.iterdir())) == 3  # it was not yet deleted, and is no checkpoint any more


@pytest.mark.parametrize("file", ["engine/rank_00000.safetensors", "state.json", "SHA256SUMS"])
def test_a_flipped_bit_anywhere_is_found_and_the_one_before_is_used(tmp_path, make, capsys, file):
    make(1), make(2)
    damaged = tmp_path / "step_00000002" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert find(tmp_path, "d" * 64) == tmp_path / "step_00000001"
    assert "set aside as step_00000002.damaged, using the one before" in capsys.readouterr().err
    assert (tmp_path / "step_00000002.damaged").is_dir()


def test_none_is_left_when_all_are_damaged_or_deleted(tmp_path, make):
    assert latest(tmp_path) is None
    (make(1) / "state.json").unlink()
    shutil.rmtree(make(2))
    assert latest(tmp_path) is None


def test_what_killed_saves_left_is_invisible_and_goes(tmp_path, make):
    make(1)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / ".step_00000002.partial")
    shutil.copytree(tmp_path / "step_00000001", tmp_path / ".step_00000000.deleted")
    (make(3) / "SHA256SUMS").unlink()
    assert steps(tmp_path) == [1]
    assert find(tmp_path, "d" * 64) == tmp_path / "step_00000001"
    assert not list(tmp_path.glob(".step*"))


def test_what_cannot_be_removed_does_not_keep_a_run_from_starting(tmp_path, make):
    make(3)
    (tmp_path / ".step_00000009.partial").write_text("a file where a folder was")  # rmtree fails at it
    assert find(tmp_path, "d" * 64) == tmp_path / "step_00000003"


def test_other_data_are_refused(tmp_path, make):
    make(1)
    with pytest.raises(CheckpointError, match=r"digest dddddddddddd, data.train has eeeeeeeeeeee"):
        find(tmp_path, "e" * 64)


def test_the_best_needs_what_measures_it():
    data = {"train": {"manifest": "t"}}
    with pytest.raises(ValidationError, match=r"'eval/top1' is not measured without data.val"):
        RunConfig.model_validate({**RUN, "data": data, "checkpoint": {"best": "eval/top1"}})
    data["val"] = {"manifest": "v"}
    assert RunConfig.model_validate({**RUN, "data": data, "checkpoint": {"best": "eval/top1"}})
    with pytest.raises(ValidationError, match=r"'eval_ema/top1' is not measured without optim.ema_decay"):
        RunConfig.model_validate({**RUN, "data": data, "checkpoint": {"best": "eval_ema/top1"}})


def test_a_state_of_an_earlier_version_is_read():
    old = json.loads(TrainState(step=3).dump())
    del old["scores"]
    assert TrainState.parse(json.dumps(old)) == TrainState(step=3)
