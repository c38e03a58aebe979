"""A job that reads is killed with -9 and goes on with another number of processes: every global step stays what it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sharding import write_shards

READER = Path(__file__).with_name("reader.py")
SIZES = [40, 1, 7, 90, 25, 2]
DAMAGED = [3, 77, 100]
STEPS = 60


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES, damaged=DAMAGED).location


def start(manifest: str, ranks: int, first: int, folder: Path) -> subprocess.Popen:
    """A job in a process group of its own, its ranks' lines going to the folder."""
    folder.mkdir()
    command = [sys.executable, READER, *map(str, [manifest, ranks, first, STEPS, folder])]
    return subprocess.Popen(command, start_new_session=True)


def steps(folder: Path, ranks: int) -> list[dict]:
    """The steps that every rank finished, the ranks' shares put together."""
    parts = []
    for rank in range(ranks):
        lines = (folder / f"{rank}.jsonl").read_text().splitlines(keepends=True)
        parts.append([json.loads(line) for line in lines if line.endswith("\n")])
    return [
        {
            "step": part[0]["step"],
            **{name: [value for share in part for value in share[name]] for name in ("keys", "slots", "skipped")},
        }
        for part in zip(*parts, strict=False)
    ]


@pytest.fixture(scope="module")
def undisturbed(manifest, tmp_path_factory) -> list[dict]:
    """All steps by one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert start(manifest, 1, 0, folder).wait() == 0
    return steps(folder, 1)


def test_killed_and_resumed_on_other_layouts_the_steps_are_the_same(manifest, undisturbed, tmp_path):
    found: list[dict] = []
    for number, ranks in enumerate((2, 3, 4)):
        folder = tmp_path / str(number)
        job = start(manifest, ranks, len(found), folder)
        wanted = len(found) + 8
        while len(steps_so_far := found + safely(folder, ranks)) < wanted:
            assert job.poll() is None
            time.sleep(0.02)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        found = found + steps(folder, ranks)
        assert len(found) >= len(steps_so_far)
    assert 24 <= len(found) <= STEPS
    folder = tmp_path / "rest"
    assert start(manifest, 6, len(found), folder).wait() == 0
    found += steps(folder, 6)
    assert found == undisturbed


def safely(folder: Path, ranks: int) -> list[dict]:
    return steps(folder, ranks) if all((folder / f"{rank}.jsonl").exists() for rank in range(ranks)) else []


def test_what_was_skipped_is_what_is_damaged(undisturbed):
    assert [step["step"] for step in undisturbed] == list(range(STEPS))
    assert {key for step in undisturbed for key in step["skipped"]} == {f"k{number}" for number in DAMAGED}
