"""Stops and hangs of real gloo processes, wherever these happen to be."""

import json
import re
from pathlib import Path

import pytest
from launching import Tiny, launch, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("stopping"), digits_dir)


@pytest.fixture(scope="module")
def done(tiny: Tiny) -> tuple[dict, str]:
    """What the processes found, and the last words of their launcher."""
    out = tiny.recipe.with_suffix(".json")
    ended = launch(Path(__file__).with_name("stopping.py"), 2, out, tiny.recipe)
    assert ended.returncode != 0 and out.exists(), ended.stderr[-4000:]
    return json.loads(out.read_text()), ended.stderr


def test_an_evaluation_that_a_stop_cuts_short_is_dropped_and_made_up_for(done: tuple[dict, str]) -> None:
    written = ["confusion.csv", "per_class.csv", "predictions.png"]
    assert done[0]["evaluating"] == {"dropped": [True, True], "made_up": True, "written": written}


def test_a_signal_to_one_rank_ends_the_wait_of_all(done: tuple[dict, str]) -> None:
    assert done[0]["waiting"] == [[1], [1]]


def test_a_step_that_one_rank_has_no_data_for_is_undone_by_all(done: tuple[dict, str]) -> None:
    losing = done[0]["losing"]
    assert losing["stood"] == [[False, True, 3, 3 * 48, [], "step_00000003"]] * 2
    assert losing["same"] and losing["hashes"]


def test_when_no_rank_gets_on_all_end_and_say_where_they_stood(done: tuple[dict, str], tiny: Tiny) -> None:
    alarm = r"phase data \(process \d+\): does not get on, nor does any other, for 2 s \(hardware.hang_after_s\)"
    assert re.search(alarm, done[1])
    stacks = sorted((tiny.run_dir() / "hang").iterdir())
    assert [path.name for path in stacks] == ["rank_00000.txt", "rank_00001.txt"]
    assert all("stopping.py" in path.read_text() for path in stacks)
    assert tiny.status()["state"] == "failed"


def test_when_rank_0_stands_still_the_others_end_and_one_says_so(tmp_path: Path, digits_dir: Path) -> None:
    ended = launch(Path(__file__).with_name("frozen.py"), 3, make_tiny(tmp_path, digits_dir).recipe)
    assert ended.returncode != 0
    assert ended.stderr.count("error: rank 0 on") == 1, ended.stderr
    assert "gives no sign of life for 1 s" in ended.stderr
