"""Whatever ends a training, nothing is left behind, and started again it ends as an undisturbed run, bit by bit."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from launching import Tiny, clean_environment, make_tiny, processes_naming, vitscale

STEPS = 120  # long enough to be met in the middle by every misfortune, one after the other
TRAIN = ("--procs", "2", f"train.total.steps={STEPS}")
DEADLINE_S = 120


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Tiny:
    tiny = make_tiny(tmp_path_factory.mktemp("undisturbed"), digits_dir)
    done = vitscale("train", tiny.recipe, *TRAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    return tiny


def start(tiny: Tiny) -> subprocess.Popen:
    command = [sys.executable, "-m", "vitscale.cli", "train", str(tiny.recipe), *TRAIN]
    with log(tiny).open("w") as output:
        return subprocess.Popen(command, env=clean_environment(), stdout=output, stderr=subprocess.STDOUT)


def log(tiny: Tiny) -> Path:
    """What the last start said."""
    return tiny.recipe.with_suffix(".log")


def checkpoints(tiny: Tiny) -> list[int]:
    """The steps of those that are complete."""
    return sorted(
        int(path.parent.name.removeprefix("step_")) for path in tiny.run_dir().glob("checkpoints/step_*[0-9]/SHA256SUMS")
    )


def wait_for_checkpoints(tiny: Tiny, process: subprocess.Popen, after: int, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len([step for step in checkpoints(tiny) if step > after]) < count:
        assert process.poll() is None and time.monotonic() < deadline, log(tiny).read_text()
        time.sleep(0.02)


def workers(tiny: Tiny) -> list[int]:
    """Processes that have this run's recipe on their command line."""
    return processes_naming(str(tiny.recipe))


def assert_same_end(tiny: Tiny, undisturbed: Tiny) -> None:
    last = f"checkpoints/step_{STEPS:08d}"
    for name in ("weights.safetensors", "engine/rank_00000.safetensors", "engine/rank_00001.safetensors"):
        assert (tiny.run_dir() / last / name).read_bytes() == (undisturbed.run_dir() / last / name).read_bytes(), name
    assert history(tiny) == history(undisturbed)


def history(tiny: Tiny) -> list:
    """What was measured at which step, without what depends on the clock."""
    return [
        (
            line["step"],
            line["kind"],
            line.get("samples"),
            {k: v for k, v in line["metrics"].items() if k.startswith(("train/", "eval/"))},
        )
        for line in sorted(tiny.metrics(), key=lambda line: (line["step"], line["kind"]))
        if line["kind"] != "checkpoint"
    ]


def kill_launcher(tiny: Tiny, process: subprocess.Popen) -> int:
    process.kill()
    assert_killed(tiny, process)
    return checkpoints(tiny)[-1]


def kill_worker(tiny: Tiny, process: subprocess.Popen) -> int:
    os.kill(max(workers(tiny)), signal.SIGKILL)
    assert_killed(tiny, process)
    assert re.search(r"error: process [01] was killed", log(tiny).read_text())
    return checkpoints(tiny)[-1]


def assert_killed(tiny: Tiny, process: subprocess.Popen) -> None:
    """It failed without a traceback, and no process is left."""
    assert process.wait(DEADLINE_S) != 0
    deadline = time.monotonic() + 10
    while workers(tiny) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers(tiny) == []
    assert tiny.status()["state"] == "running"
    assert "Traceback" not in log(tiny).read_text()


def stop(number: signal.Signals, tiny: Tiny, process: subprocess.Popen) -> int:
    """In good order, with a checkpoint of the last step."""
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0, log(tiny).read_text()
    assert workers(tiny) == []
    status = tiny.status()
    assert status["state"] == "stopped" and status["step"] < STEPS
    assert checkpoints(tiny)[-1] == status["step"]
    return status["step"]


def damage_checkpoint(tiny: Tiny, process: subprocess.Popen) -> int:
    """A bit of the newest: the one before counts."""
    kill_launcher(tiny, process)
    *_, before, newest = checkpoints(tiny)
    path = tiny.run_dir() / f"checkpoints/step_{newest:08d}/engine/rank_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    return before


def start_twice(tiny: Tiny, process: subprocess.Popen) -> int:
    """While the first stands still the second is refused; then the first goes on."""
    frozen = workers(tiny)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    second = vitscale("train", tiny.recipe, *TRAIN)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    assert second.returncode == 1
    assert "in use by process" in second.stderr and "Traceback" not in second.stderr
    return stop(signal.SIGTERM, tiny, process)


MISFORTUNES: list[Callable[[Tiny, subprocess.Popen], int]] = [  # each returns the step at which the next start goes on
    kill_launcher,
    start_twice,
    kill_worker,
    partial(stop, signal.SIGINT),
    partial(stop, signal.SIGUSR1),
    damage_checkpoint,
]


def test_whatever_ends_it_the_next_start_goes_on_to_the_same_bits(tiny: Tiny, undisturbed: Tiny) -> None:
    step = 0
    for misfortune in MISFORTUNES:
        process = start(tiny)
        wait_for_checkpoints(tiny, process, after=step, count=2 if misfortune is damage_checkpoint else 1)
        assert step == 0 or f"continues at step {step} " in log(tiny).read_text()
        step = misfortune(tiny, process)
    last = vitscale("train", tiny.recipe, *TRAIN)
    assert last.returncode == 0, last.stdout + last.stderr
    assert f"continues at step {step} " in last.stdout
    assert "rank_00001.safetensors differs" in last.stderr
    assert_same_end(tiny, undisturbed)
