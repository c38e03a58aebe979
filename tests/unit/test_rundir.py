"""A run directory has one owner and one recipe."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from vitscale import recipe, rundir
from vitscale.errors import RecipeError
from vitscale.rundir import RunDir, replace_text

OWNER = """
import sys
from vitscale import recipe
from vitscale.rundir import RunDir
run = RunDir(recipe.load(sys.argv[1], sys.argv[2:]))
run.claim()
print("mine", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start_owner(write_recipe, tmp_path):
    """Start another process that owns the run directory of the small recipe."""
    started = []

    def start():
        command = [sys.executable, "-c", OWNER, str(write_recipe()), f"runs={tmp_path / 'runs'}"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "mine\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_other_processes_are_refused_and_told_who_owns_it(config, start_owner):
    owner = start_owner()
    for _ in range(2):
        with pytest.raises(RecipeError, match=rf"in use by process {owner.pid} on .*name="):
            RunDir(config()).claim()


def test_asking_whether_it_is_free_does_not_take_it(config, start_owner):
    RunDir(config()).check_free()
    owner = start_owner()
    with pytest.raises(RecipeError, match=f"process {owner.pid} "):
        RunDir(config()).check_free()
    owner.kill()
    owner.wait()
    RunDir(config()).check_free()
    start_owner()


def test_a_killed_owner_leaves_the_directory_free(config, start_owner):
    killed = start_owner()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    owner = start_owner()
    said = json.loads((RunDir(config()).path / "owner").read_text())
    assert (said["pid"], said["host"]) == (owner.pid, socket.gethostname())
    assert said["since"] == pytest.approx(time.time(), abs=60)


def elsewhere(run, seen):
    """What an owner on another machine, whose lock is not seen here, has last written."""
    run.path.mkdir(parents=True, exist_ok=True)
    said = {"pid": 7, "host": "elsewhere", "since": 0.0, "seen": seen, "every_s": 1.0}
    replace_text(run.path / "owner", json.dumps(said))


@pytest.mark.parametrize("signs_every_s", [0.2, 2.0])  # of one a second that it promises; two may be missed
def test_an_owner_on_another_machine_is_refused_while_it_gives_signs_of_life(config, signs_every_s):
    run, stop = RunDir(config()), threading.Event()

    def live():
        while not stop.wait(signs_every_s):
            elsewhere(run, time.time() - 5)  # its clock is behind

    elsewhere(run, time.time())
    owner = threading.Thread(target=live)
    owner.start()
    try:
        with pytest.raises(RecipeError, match=r"in use by process 7 on elsewhere since .*last seen"):
            run.claim()
    finally:
        stop.set()
        owner.join()


def test_an_owner_gives_signs_of_life_from_claim_to_release_whatever_it_does(config, monkeypatch):
    monkeypatch.setattr(rundir, "OWNER_EVERY_S", 0.1)
    run = RunDir(config())
    run.claim()
    signs = set()
    for _ in range(20):
        signs.add((run.path / "owner").read_text())
        time.sleep(0.03)
    assert len(signs - {""}) > 5
    run.release()
    time.sleep(0.1)
    assert (run.path / "owner").read_text() == ""


@pytest.mark.parametrize(
    ("age_s", "within_s"), [(3600, 2.0), (0, 10.0), (-3600, 10.0)]
)  # it is given 3 s, if its clock does not tell
def test_a_silent_owner_on_another_machine_is_taken_over_loudly_whatever_its_clock_says(config, capsys, age_s, within_s):
    run = RunDir(config())
    elsewhere(run, time.time() - age_s)
    begin = time.monotonic()
    run.claim()
    assert time.monotonic() - begin < within_s
    assert "taken over from process 7 on elsewhere" in capsys.readouterr().err
    assert json.loads((run.path / "owner").read_text())["host"] == socket.gethostname()
    run.release()
    RunDir(config()).check_free()


def test_a_request_to_stop_is_not_for_the_next_owner(config):
    run = RunDir(config())
    run.path.mkdir(parents=True)
    run.stop.touch()
    os.utime(run.stop, (0, 0))
    run.claim()
    assert not run.stop.exists()
    run.release()


def test_a_request_to_stop_while_it_starts_is(config):
    run = RunDir(config())
    run.path.mkdir(parents=True)
    run.stop.touch()
    run.claim()
    assert run.stop.exists()
    run.release()


def test_a_request_to_stop_is_for_the_launch_it_follows(config, monkeypatch):
    run = RunDir(config())
    run.path.mkdir(parents=True)
    run.stop.touch()
    os.utime(run.stop, (1_000, 1_000))  # long before this process began, but not before its launcher did
    monkeypatch.setenv("VITSCALE_LAUNCHED", "1000")
    run.claim()
    assert run.stop.exists()
    run.release()
    monkeypatch.setenv("VITSCALE_LAUNCHED", "1001")
    run.claim()
    assert not run.stop.exists()
    run.release()


@pytest.fixture
def nobody():
    """Another user for this process, who may not write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    yield
    if root:
        os.setresuid(0, 0, 0)


def test_a_directory_that_cannot_be_written_to(config, request):
    run = RunDir(config())
    run.path.mkdir(parents=True)
    for parent in run.path.parents[:3]:
        parent.chmod(0o755)
    run.path.chmod(0o555)
    request.getfixturevalue("nobody")
    with pytest.raises(RecipeError, match=rf"{run.path}: cannot be written to \(Permission denied\).*runs="):
        run.claim()


def test_a_folder_that_is_a_file_or_not_ours_is_said_so(config, tmp_path, request):
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=rf"{tmp_path}/file/tiny: cannot be made, {tmp_path}/file is no folder .*runs="):
        RunDir(config(f"runs={tmp_path}/file")).check_free()
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o555)
    run = RunDir(config())
    request.getfixturevalue("nobody")
    with pytest.raises(RecipeError, match=f"cannot be made, {tmp_path} is no folder to write to"):
        run.check_free()


def started(config, *overrides):
    """A run directory in which a run with these overrides was started."""
    cfg = config(*overrides)
    run = RunDir(cfg)
    run.path.mkdir(parents=True)
    run.recipe.write_text(recipe.dump(cfg))
    return run


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.global_batch=16", "train.global_batch was 8, is 16"),
        ("optim.lr=2e-3", "optim.lr was 0.001, is 0.002"),
        ("seed=1", "seed was 0, is 1"),
        ("data.augment.flip=false", "data.augment.flip was True, is False"),
        ("data.bad_samples.policy=replace", "data.bad_samples.policy was fail, is replace"),
        (
            "data.train=[{manifest: a, weight: 1.0}, {manifest: b, weight: 2.0}]",
            "data.train (weights) was [None], is [1.0, 2.0]",
        ),
        ("init.from=models:/b@c", "init.from was models:/a@b, is models:/b@c"),
        ("train.total.epochs=3", "train.total.epochs was 2"),
    ],
)
def test_another_recipe_is_refused_with_both_values(config, override, said):
    run = started(config, "init.from=models:/a@b")
    with pytest.raises(RecipeError) as caught:
        run.check(config("init.from=models:/a@b", override))
    assert said in str(caught.value)
    assert str(run.recipe) in str(caught.value)


def test_all_differences_are_named(config):
    with pytest.raises(RecipeError, match=r"seed was 0, is 1; .*optim.lr was 0.001, is 0.1"):
        started(config).check(config("seed=1", "optim.lr=0.1"))


@pytest.mark.parametrize(
    "override",
    [
        "hardware={zero_stage: 3, micro_batch: 1, precision: fp32}",
        "eval.every.steps=1",
        "checkpoint={every: {steps: 3}, keep: 5}",
        "tracking.uri=http://elsewhere",
        "publish={name: a, alias: b}",
        "data.train.manifest=moved/train.json",
        "data.train.samples=20",
        "data.bad_samples={max_fraction: 0.5, max_run: 99}",
    ],
)
def test_what_does_not_change_the_result_may_change(config, override):
    started(config).check(config(override))


@pytest.mark.parametrize("name", ["cosine", "linear", "rsqrt", "constant"])
def test_only_what_does_not_depend_on_its_length_may_be_prolonged(config, name):
    schedule = f"optim.schedule.name={name}"
    run, longer = started(config, schedule), config(schedule, "train.total.epochs=3")
    if name in ("rsqrt", "constant"):
        run.check(longer)
    else:
        with pytest.raises(RecipeError, match=r"train.total.epochs was 2"):
            run.check(longer)


def test_an_empty_directory_takes_any_recipe(config):
    RunDir(config()).check(config("seed=5"))


def test_status_is_kept_and_added_to(config):
    run = started(config)
    assert run.status == {}
    run.write_status("running", step=3)
    run.write_status("finished", model=None)
    assert run.status == {"state": "finished", "step": 3, "model": None}
    run.write_status("failed", error="why")
    assert run.status["error"] == "why"
    run.write_status("running")
    assert run.status == {"state": "running", "step": 3, "model": None, "ended": "why"}


def test_the_next_start_knows_how_the_one_before_ended(config):
    run = started(config)
    ends = []
    for end in ("stopped", "finished", "running", "starting"):  # the last two were killed
        for state in ("starting", "running", end)[: 1 if end == "starting" else 3]:
            run.write_status(state)
        run.write_status("starting")
        run.write_status("running")
        ends.append(run.status["ended"])
    assert ends == ["stopped", "finished", "killed", "killed"]


def test_a_reader_sees_the_old_or_the_new_text_never_a_part(tmp_path):
    path, texts = tmp_path / "file", [letter * 300_000 for letter in "ab"]
    replace_text(path, texts[0])
    stop, torn = threading.Event(), []

    def read():
        while not stop.is_set():
            if (found := path.read_text()) not in texts:
                torn.append(len(found))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        replace_text(path, texts[turn % 2])
    stop.set()
    reader.join()
    assert torn == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_text(tmp_path):
    path = tmp_path / "file"
    replace_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "new \ud800")
    assert path.read_text() == "old"


def test_a_status_that_is_damaged_does_not_stop_the_run(config):
    run = RunDir(config())
    run.write_status("stopped", step=3)
    (run.path / "status.json").write_text("")
    assert run.status == {}
    run.write_status("running")
    assert run.status == {"state": "running"}
