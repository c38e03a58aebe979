"""Kill a training in the middle, start it again: nothing is left behind, and it ends as an undisturbed run, bit by bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import Tiny, clean_environment, make_tiny, processes_naming, vitscale

LONG = "train.total.steps=120"  # long enough to be met in the middle
DEADLINE_S = 120


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Tiny:
    tiny = make_tiny(tmp_path_factory.mktemp("undisturbed"), digits_dir)
    done = vitscale("train", tiny.recipe, "--procs", "2", LONG)
    assert done.returncode == 0, done.stdout + done.stderr
    return tiny


def start(tiny: Tiny, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "vitscale.cli", "train", str(tiny.recipe), "--procs", "2", LONG, *more]
    with log(tiny).open("a") as output:
        return subprocess.Popen(command, env=clean_environment(), stdout=output, stderr=subprocess.STDOUT)


def log(tiny: Tiny) -> Path:
    return tiny.recipe.with_suffix(".log")


def wait_for_checkpoint(tiny: Tiny, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not list((tiny.run_dir() / "checkpoints").glob("step_*")):
        assert process.poll() is None and time.monotonic() < deadline, log(tiny).read_text()
        time.sleep(0.05)


def workers(tiny: Tiny) -> list[int]:
    """Processes that have this run's recipe on their command line."""
    return processes_naming(str(tiny.recipe))


def assert_same_end(tiny: Tiny, undisturbed: Tiny) -> None:
    last = "checkpoints/step_00000120"
    for name in ("weights.safetensors", "engine/rank_00000.safetensors", "engine/rank_00001.safetensors"):
        assert (tiny.run_dir() / last / name).read_bytes() == (undisturbed.run_dir() / last / name).read_bytes(), name
    assert history(tiny) == history(undisturbed)


def history(tiny: Tiny) -> list:
    """What happened at which step, without what depends on the clock."""
    return [
        (line["step"], line["kind"], line.get("samples"), {k: v for k, v in line["metrics"].items() if "speed/" not in k})
        for line in sorted(tiny.metrics(), key=lambda line: (line["step"], line["kind"]))
    ]


@pytest.mark.parametrize("victim", ["launcher", "one worker"])
def test_kill_9_and_start_again_ends_with_the_same_bits(tiny: Tiny, undisturbed: Tiny, victim: str) -> None:
    process = start(tiny)
    wait_for_checkpoint(tiny, process)
    target = process.pid if victim == "launcher" else max(workers(tiny))
    os.kill(target, signal.SIGKILL)
    assert process.wait(DEADLINE_S) != 0
    deadline = time.monotonic() + 10
    while workers(tiny) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers(tiny) == []
    assert tiny.status()["state"] == "running"
    said = log(tiny).read_text()
    assert "Traceback" not in said
    assert victim == "launcher" or re.search(r"error: process [01] was killed", said)
    again = vitscale("train", tiny.recipe, "--procs", "2", LONG)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "continues at step" in again.stdout
    assert_same_end(tiny, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_in_good_order_and_the_next_start_goes_on(tiny: Tiny, undisturbed: Tiny, number: int) -> None:
    process = start(tiny)
    wait_for_checkpoint(tiny, process)
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0, log(tiny).read_text()
    status = tiny.status()
    assert status["state"] == "stopped" and 0 < status["step"] < 120
    assert (tiny.run_dir() / f"checkpoints/step_{status['step']:08d}/SHA256SUMS").is_file()
    again = vitscale("train", tiny.recipe, "--procs", "2", LONG)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"continues at step {status['step']} " in again.stdout
    assert_same_end(tiny, undisturbed)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(tiny: Tiny, undisturbed: Tiny) -> None:
    process = start(tiny)
    deadline = time.monotonic() + DEADLINE_S
    while len(found := sorted((tiny.run_dir() / "checkpoints").glob("step_*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    while workers(tiny):
        time.sleep(0.1)
    found = sorted(path for path in (tiny.run_dir() / "checkpoints").glob("step_*") if (path / "SHA256SUMS").is_file())
    flip_a_bit(found[-1] / "engine" / "rank_00001.safetensors")
    again = vitscale("train", tiny.recipe, "--procs", "2", LONG)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "rank_00001.safetensors differs" in again.stderr
    assert f"continues at step {int(found[-2].name.removeprefix('step_'))} " in again.stdout
    assert_same_end(tiny, undisturbed)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def test_two_starts_of_one_run_do_not_write_together(tiny: Tiny) -> None:
    process = start(tiny, "train.total.steps=3000")
    wait_for_checkpoint(tiny, process)
    second = vitscale("train", tiny.recipe, "--procs", "2", "train.total.steps=3000")
    assert second.returncode == 1
    assert "in use by process" in second.stderr and "Traceback" not in second.stderr
    process.terminate()
    assert process.wait(DEADLINE_S) == 0, log(tiny).read_text()
    assert json.loads((tiny.run_dir() / "status.json").read_text())["state"] == "stopped"
