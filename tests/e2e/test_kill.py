"""Whatever ends a training, nothing is left behind, and started again it ends as an undisturbed run, bit by bit."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import Tiny, clean_environment, make_tiny, processes_marked, processes_naming, vitscale

import vitscale as vitscale_package

STEPS = 90  # long enough to be met in the middle by every misfortune, one after the other
TRAIN = ("--procs", "2", f"train.total.steps={STEPS}")
DECODED = ("hardware.loader_threads=2", "hardware.loader_processes=2")
DEADLINE_S = 120
MEASURED = ("train/", "eval/", "eval_ema/")

# Where a run of two processes can be killed: fault points with the rank that dies there (none: both).
SAVING = ["begin", "snapshot", "fragments:1", "noted:0", "shares", "weights", "sums", "renamed", "doomed", "pruned"]
KILLS = [*(f"save.{point}" for point in SAVING), "eval.begin:1", "eval.end:0"]
AT_THE_END = ["publish.sent", "publish.uploaded", "publish.registered", "publish.named"]
OF_THE_COURIER = ["tracking.created", "tracking.sent"]  # where it alone dies: tests/unit/test_delivery.py
SHORT = 36  # a checkpoint at every third; each kill costs or makes one
LAYOUTS = [(stage, precision) for stage in (1, 2, 3) for precision in ("fp32", "bf16")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Tiny:
    tiny = make_tiny(tmp_path_factory.mktemp("undisturbed"), digits_dir)
    done = vitscale("train", tiny.recipe, *TRAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    return tiny


def start(tiny: Tiny, fault: str = "") -> subprocess.Popen:
    """Its images are decoded by processes; undisturbed they are by threads."""
    command = [sys.executable, "-m", "vitscale.cli", "train", str(tiny.recipe), *TRAIN, *DECODED]
    with log(tiny).open("w") as output:
        environ = {**clean_environment(), "VITSCALE_FAULT": fault, "MARK": f"of {tiny.recipe}"}
        return subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)


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


def left_behind(tiny: Tiny) -> list[int]:
    """Processes of the last start, those that decode among them."""
    return processes_marked(f"MARK=of {tiny.recipe}")


def assert_same_end(tiny: Tiny, undisturbed: Tiny) -> None:
    last = f"checkpoints/step_{STEPS:08d}"
    for name in ("weights.safetensors", "engine/rank_00000.safetensors", "engine/rank_00001.safetensors"):
        assert (tiny.run_dir() / last / name).read_bytes() == (undisturbed.run_dir() / last / name).read_bytes(), name
    assert history(tiny) == history(undisturbed)
    assert evaluations(tiny) == evaluations(undisturbed) != {}


def evaluations(tiny: Tiny) -> dict[str, bytes]:
    """What every evaluation has left; what is drawn of it comes later."""
    folder = tiny.run_dir() / "artifacts" / "eval"
    written = [*folder.rglob("*.csv"), *folder.rglob("predictions.png")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in written}


def history(tiny: Tiny, name: str = "tiny") -> list:
    """What was measured at which step, without what depends on the clock."""
    return [
        (line["step"], line["kind"], line.get("samples"), {k: v for k, v in line["metrics"].items() if k.startswith(MEASURED)})
        for line in sorted(tiny.metrics(name), key=lambda line: (line["step"], line["kind"]))
        if line["kind"] != "checkpoint"
    ]


def kill_launcher(tiny: Tiny, process: subprocess.Popen) -> int:
    process.kill()
    assert_killed(tiny, process)
    return checkpoints(tiny)[-1]


def die_in_save(tiny: Tiny, process: subprocess.Popen) -> int:
    """A worker, all but done with a checkpoint."""
    assert_killed(tiny, process)
    assert "error: process 0 was killed" in log(tiny).read_text()
    assert len(list(tiny.run_dir().glob("checkpoints/.step_*.partial/SHA256SUMS"))) == 1
    return checkpoints(tiny)[-1]


def assert_killed(tiny: Tiny, process: subprocess.Popen) -> None:
    """It failed without a traceback, and no process is left."""
    assert process.wait(DEADLINE_S) != 0
    deadline = time.monotonic() + 30  # the courier may take ten seconds to send what it has
    while left_behind(tiny) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left_behind(tiny) == []
    assert tiny.status()["state"] == "running"
    assert "Traceback" not in log(tiny).read_text()


def stop(tiny: Tiny, process: subprocess.Popen) -> int:
    """In good order, with a checkpoint of the last step. Other signals come to the same: tests/unit/test_command.py."""
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 0, log(tiny).read_text()
    assert left_behind(tiny) == []
    status = tiny.status()
    assert status["state"] == "stopped" and status["step"] < STEPS
    assert checkpoints(tiny)[-1] == status["step"]
    return status["step"]


def damage_checkpoint(tiny: Tiny, process: subprocess.Popen) -> int:
    """The launcher is killed, then a bit of the newest flips: the one before counts."""
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
    return stop(tiny, process)


MISFORTUNES: list[Callable[[Tiny, subprocess.Popen], int]] = [  # each returns the step at which the next start goes on
    start_twice,
    die_in_save,
    damage_checkpoint,
]


@pytest.mark.slow
def test_whatever_ends_it_the_next_start_goes_on_to_the_same_bits(tiny: Tiny, undisturbed: Tiny) -> None:
    step = 0
    for misfortune in MISFORTUNES:
        process = start(tiny, "save.sums:0:3" if misfortune is die_in_save else "")
        wait_for_checkpoints(tiny, process, after=step, count=2 if misfortune is damage_checkpoint else 1)
        assert step == 0 or f"continues at step {step} " in log(tiny).read_text()
        step = misfortune(tiny, process)
    last = vitscale("train", tiny.recipe, *TRAIN)
    assert last.returncode == 0, last.stdout + last.stderr
    assert f"continues at step {step} " in last.stdout
    assert "rank_00001.safetensors differs" in last.stderr
    assert_same_end(tiny, undisturbed)


def forked(plan: list, within_s: float = 0.0) -> list[list[list[int]]]:
    """Run a plan of forked.py: the ranks' exit codes of every start."""
    command = [sys.executable, Path(__file__).with_name("forked.py"), json.dumps(plan), str(within_s)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_fault_point_is_met() -> None:
    source = "".join(path.read_text() for path in Path(vitscale_package.__file__).parent.rglob("*.py"))
    named = {kill.partition(":")[0] for kill in (*KILLS, *AT_THE_END, *OF_THE_COURIER, "pull.file")}  # the last by test_pull.py
    assert set(re.findall(r'fault\.at\("(.+?)"\)', source)) == named


@pytest.mark.slow
def test_a_rank_that_dies_before_the_others_have_its_part_does_not_keep_them(tiny: Tiny) -> None:
    """In the last save, where no collective would notice, and without a launcher that ends the others."""
    overrides = ["hardware.hang_after_s=3", "train.total.steps=5", "checkpoint.every.steps=5", "eval.every=null"]
    ((died, went_on),) = forked([[str(tiny.recipe), overrides, ["save.fragments:1"]]], within_s=15)
    assert died == [1, -signal.SIGKILL]
    assert went_on == [0, 0] and checkpoints(tiny) == [5]
    assert re.search(r"error: rank 1 on .*: gives no sign of life for 3 s", log(tiny).read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), LAYOUTS)
def test_killed_at_every_point_and_at_random_it_ends_in_the_same_bits(tiny: Tiny, stage: int, precision: str) -> None:
    """At every point at each stage: at every other one in fp32, at those between in bf16."""
    overrides = [f"hardware.zero_stage={stage}", f"hardware.precision={precision}", f"train.total.steps={SHORT}"]
    overrides += ["checkpoint.every.steps=3", "eval.every.steps=4", "optim.ema_decay=0.9"]
    overrides += ["publish={name: net, alias: best}"] if (stage, precision) == LAYOUTS[0] else []
    chance = random.Random(f"{stage} {precision}")
    kills = [*KILLS[(stage + (precision == "bf16")) % 2 :: 2], *(chance.uniform(0, 0.3) for _ in range(2))]
    chance.shuffle(kills)
    kills += AT_THE_END if (stage, precision) == LAYOUTS[0] else []
    plan = [[str(tiny.recipe), [*overrides, "name=undisturbed"], []], [str(tiny.recipe), [*overrides, "name=killed"], kills]]
    undisturbed, killed = forked(plan)
    assert undisturbed == [[0, 0]] and killed[-1] == [0, 0]
    assert all(-signal.SIGKILL in codes for codes in killed[:-1])
    ends = [tiny.run_dir(name) / f"checkpoints/step_{SHORT:08d}" for name in ("undisturbed", "killed")]
    contents = [{str(path.relative_to(end)): path.read_bytes() for path in end.rglob("*") if path.is_file()} for end in ends]
    states = [json.loads(content.pop("state.json")) for content in contents]
    for content, state in zip(contents, states, strict=True):
        del content["recipe.yaml"], content["SHA256SUMS"], state["began"], state["seconds"]  # the run's name; what time it took
    assert len(contents[0]) == 5  # two ranks, weights, average, model.json
    assert contents[0] == contents[1] and states[0] == states[1]
    assert history(tiny, "undisturbed") == history(tiny, "killed")
