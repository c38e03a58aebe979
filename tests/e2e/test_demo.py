"""The whole demo: its targets, its report, a second run, and a run that is killed half-way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import clean_environment, processes_naming

pytestmark = pytest.mark.slow
RUNS = ("digits-pretrain", "digits-finetune", "digits-finetune-reinit")
DEADLINE_S = 900


def start(runs: Path, log: Path) -> subprocess.Popen:
    with log.open("w") as output:
        command = [sys.executable, "-m", "vitscale.cli", "demo", "--runs", str(runs)]
        return subprocess.Popen(command, env=clean_environment(), stdout=output, stderr=subprocess.STDOUT)


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo that ran through; its output lies beside."""
    folder = tmp_path_factory.mktemp("demo")
    assert start(folder / "runs", folder / "log").wait(DEADLINE_S) == 0, (folder / "log").read_text()
    return folder


def test_it_reaches_its_targets_and_ends_with_one_json_object(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "log").read_text().splitlines()[-1])
    assert list(summary) == ["pretrain_top1", "finetune_top1", "model", "runs", "seconds"]
    assert summary["pretrain_top1"] >= 0.985
    assert summary["finetune_top1"] >= 0.985
    assert summary["model"] == "models:/digits-vit@champion"
    assert summary["runs"] == [(undisturbed / "runs" / name / "mlflow_run_id").read_text() for name in RUNS]


def test_interpolating_the_position_embedding_buys_accuracy(undisturbed: Path) -> None:
    status = [json.loads((undisturbed / "runs" / name / "status.json").read_text()) for name in RUNS]
    assert status[1]["metrics"]["eval/top1"] > status[2]["metrics"]["eval/top1"]
    assert status[2]["model"] is None


def test_a_second_run_has_nothing_to_do_and_says_so(undisturbed: Path) -> None:
    before = {name: last_checkpoint(undisturbed / "runs" / name).stat().st_mtime_ns for name in RUNS}
    assert start(undisturbed / "runs", undisturbed / "again").wait(DEADLINE_S) == 0
    output = (undisturbed / "again").read_text()
    assert output.count("already finished") == 3
    assert json.loads(output.splitlines()[-1])["runs"] == json.loads((undisturbed / "log").read_text().splitlines()[-1])["runs"]
    assert before == {name: last_checkpoint(undisturbed / "runs" / name).stat().st_mtime_ns for name in RUNS}


def test_killed_in_the_middle_of_each_training_it_goes_on_to_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    """The third is only begun: it is a fine-tuning like the second."""
    runs, log = tmp_path / "runs", tmp_path / "log"
    for name in RUNS:
        process = start(runs, log)
        deadline = time.monotonic() + DEADLINE_S
        while not list((runs / name / "checkpoints").glob("step_*")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        while processes_naming(str(runs)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert "continues at step" in log.read_text()
    for name in RUNS[:2]:
        mine, theirs = (last_checkpoint(folder / name) for folder in (runs, undisturbed / "runs"))
        assert mine.name == theirs.name
        for file in ("weights.safetensors", "engine/rank_00000.safetensors", "engine/rank_00001.safetensors"):
            assert (mine / file).read_bytes() == (theirs / file).read_bytes(), (name, file)
