"""Processes that stand still, numbers that are not finite, requests to stop: seen by all, said clearly, and nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import Tiny, clean_environment, processes_naming, vitscale

from data_pipeline.manifest import read_manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards
from vitscale import recipe
from vitscale.history import read_log

HANG_S = 4.0
LONG = ("--procs", "2", "train.total.steps=100000", f"hardware.hang_after_s={HANG_S}", "eval.every=null", "checkpoint.keep=3")
DEADLINE_S = 120


def start(tiny: Tiny) -> subprocess.Popen:
    command = [sys.executable, "-m", "vitscale.cli", "train", str(tiny.recipe), *LONG]
    with tiny.recipe.with_suffix(".log").open("w") as output:
        return subprocess.Popen(command, env=clean_environment(), stdout=output, stderr=subprocess.STDOUT)


def said(tiny: Tiny) -> str:
    return tiny.recipe.with_suffix(".log").read_text()


def newest(tiny: Tiny) -> Path:
    return max(tiny.run_dir().glob("checkpoints/step_*[0-9]"), default=Path("none"))


def wait_for_checkpoint_after(tiny: Tiny, process: subprocess.Popen, before: Path) -> Path:
    deadline = time.monotonic() + DEADLINE_S
    while newest(tiny) in (before, Path("none")):
        assert process.poll() is None and time.monotonic() < deadline, said(tiny)
        time.sleep(0.02)
    return newest(tiny)


def rank_of(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((variable for variable in variables if variable.startswith("RANK=")), "")


@pytest.mark.slow
def test_a_frozen_process_ends_all_soon_and_one_that_is_only_slow_does_not(tiny: Tiny) -> None:
    process = start(tiny)
    first = wait_for_checkpoint_after(tiny, process, Path("none"))
    frozen = next(pid for pid in processes_naming(str(tiny.recipe)) if rank_of(pid) == "RANK=1")
    os.kill(frozen, signal.SIGSTOP)
    time.sleep(HANG_S / 4)
    os.kill(frozen, signal.SIGCONT)
    wait_for_checkpoint_after(tiny, process, first)

    os.kill(frozen, signal.SIGSTOP)
    begin = time.monotonic()
    assert process.wait(DEADLINE_S) != 0
    assert time.monotonic() - begin < 5 * HANG_S
    alarm = re.search(
        r"error: rank 1 on \S+, step [\d,]+, phase \w+ \(process (\d+)\): gives no sign of life for 4 s", said(tiny)
    )
    assert alarm and int(alarm[1]) == frozen, said(tiny)
    assert "vitscale/train.py" in said(tiny)[alarm.end() :]  # where it stood
    assert "Traceback" not in said(tiny)
    assert "thread" in (tiny.run_dir() / "hang" / "rank_00000.txt").read_text().lower()
    status = tiny.status()
    assert status["state"] == "failed" and "rank 1" in status["error"]
    assert processes_naming(str(tiny.recipe)) == []

    lost = newest(tiny)
    shutil.rmtree(lost)
    before = newest(tiny)
    assert before < lost
    again = start(tiny)
    wait_for_checkpoint_after(tiny, again, before)
    assert f"continues at step {int(before.name[5:]):,} " in said(tiny)
    assert f"warning: {lost.parent}: step {int(lost.name[5:]):,} was saved there, and is gone; it goes on from" in said(tiny)
    (tiny.run_dir() / "stop").touch()
    assert again.wait(DEADLINE_S) == 0, said(tiny)
    assert tiny.status()["state"] == "stopped"
    assert_time_is_accounted_for(tiny, newest(tiny))


def assert_time_is_accounted_for(tiny: Tiny, checkpoint: Path) -> None:
    """Of both starts and what lay between them, by the clock of the metrics and that of the file system."""
    state = json.loads((checkpoint / "state.json").read_text())
    first = next(line for line in tiny.metrics() if line["kind"] == "train")
    assert state["began"] < first["time_ms"] / 1000
    wall = (checkpoint / "state.json").stat().st_mtime - state["began"]
    assert sum(state["seconds"].values()) == pytest.approx(wall, abs=1.5)  # it is written when what was before it is safe
    for line in tiny.metrics():
        if line["kind"] == "train":
            parts = {name: value for name, value in line["metrics"].items() if name.startswith("goodput/")}
            assert len(parts) == 5 and sum(parts.values()) == pytest.approx(1, abs=0.01)


def test_steps_that_are_not_finite_name_their_images_and_stop_the_run(tiny: Tiny, digits_dir: Path) -> None:
    words = ("optim.lr=1e30", "optim.schedule.warmup.steps=0", "optim.clip_norm=0", "train.max_bad_steps=3")
    done = vitscale("train", tiny.recipe, "--procs", "2", *words)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "train.max_bad_steps: 3 of the last 1,000 steps" in done.stderr
    assert tiny.status()["state"] == "failed" and "max_bad_steps" in tiny.status()["error"]
    assert newest(tiny) == Path("none")

    reports = read_log(tiny.run_dir() / "bad_steps.jsonl")
    assert [report["step"] for report in reports] == [2, 3, 4]
    manifest, cfg = read_manifest(str(digits_dir / "train.json")), recipe.load(tiny.recipe, [])
    order = Order([manifest.samples], cfg.train.global_batch, cfg.lanes, cfg.data.shuffle_block, cfg.seed, None)
    for report in reports:
        assert [share["rank"] for share in report["ranks"]] == [0, 1]
        assert {report["loss"], report["grad_norm"]} & {"nan", "inf"}
        slots = order.view(0, cfg.lanes).step(report["step"] - 1)
        planned = [Shards(manifest).key(sample) for sample in slots.samples.tolist()]
        assert [key for share in report["ranks"] for key in share["samples"]] == planned


def stop_at_start(tiny: Tiny, number: signal.Signals, after: str, *command: str) -> subprocess.Popen:
    """Start it and send the signal some time after it said this."""
    words = [sys.executable, "-m", *command, str(tiny.recipe)]
    process = subprocess.Popen(words, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout and after in process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(number)
    return process


@pytest.mark.parametrize(
    ("number", "after", "command"),
    [
        (signal.SIGTERM, "starting 1 process", ["vitscale.cli", "train"]),
        (signal.SIGUSR1, "loading torch", ["vitscale.train"]),
    ],
)
def test_a_stop_before_torch_is_there_is_one_in_good_order(
    tiny: Tiny, number: signal.Signals, after: str, command: list[str]
) -> None:
    process = stop_at_start(tiny, number, after, *command)
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    assert tiny.status() == {"state": "stopped", "reason": "signal"}
    assert not (tiny.run_dir() / "checkpoints").exists()
