"""Shards are the same from one process or several, after a kill and a full disk; what was finished is not done again."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import build
from data_pipeline.encode import Encoding
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from data_pipeline.pool import in_processes
from data_pipeline.sources import folder

ENCODING = Encoding(longest=300)


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory, encode: Callable) -> Path:
    """24 images that take a while: 600 x 600 pixels of noise."""
    root = tmp_path_factory.mktemp("noise")
    for number in range(24):
        path = root / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(np.random.default_rng(number).integers(0, 256, (600, 600, 3), np.uint8), "JPEG"))
    return root


def make(noise: Path, out: Path, workers: int = 1) -> dict[str, Manifest]:
    return build(folder(noise), out, 0.25, [2], 5, encoding=ENCODING, workers=workers)


COMMAND = ("--val-fraction", "0.25", "--shard-samples", "2", "--seed", "5", "--longest", "300", "--workers", "2")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, noise: Path) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    make(noise, out)
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def test_a_killed_build_of_two_processes_goes_on_and_gives_the_bytes_of_one(noise, undisturbed, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vitscale.cli", "data", "build", str(noise), "--out", str(out), *COMMAND]
    process = subprocess.Popen(command)
    wait_for(lambda: list(out.glob("train-*.done")) or process.poll() is not None)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert workers
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not (out / "train.json").exists()
    finished = {path.with_suffix(".tar"): path.with_suffix(".tar").stat().st_mtime_ns for path in out.glob("train-*.done")}
    (out / "train-00099.77.partial").write_bytes(b"half")
    for note in list(finished)[1:2]:
        note.with_suffix(".idx").unlink()  # not finished after all
        del finished[note]
    make(noise, out, workers=2)
    (spool,) = out.glob(".spool-*")
    spool.rmdir()
    assert files(out) == undisturbed
    assert finished == {path: path.stat().st_mtime_ns for path in finished}


def test_parts_at_the_same_time_then_the_whole_give_the_same_bytes(noise, undisturbed, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vitscale.cli", "data", "build", str(noise), "--out", str(out), *COMMAND[:-1], "1"]
    parts = [subprocess.Popen([*command, "--part", f"{number}/3"]) for number in range(3)]
    assert [process.wait() for process in parts] == [0, 0, 0]
    assert len(list(out.glob("*.tar"))) == len([name for name in undisturbed if name.endswith(".tar")])
    assert not (out / "train.json").exists()
    subprocess.run(command, check=True)
    assert files(out) == undisturbed


@pytest.mark.parametrize("text", ["3/3", "-1/2", "1", "a/b"])
def test_a_part_that_is_none(noise, tmp_path, text):
    command = [sys.executable, "-m", "vitscale.cli", "data", "build", str(noise), "--out", str(tmp_path), f"--part={text}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "argument --part" in done.stderr


def test_a_build_killed_as_it_tidied_leaves_no_notes(noise, undisturbed, tmp_path):
    for name, content in undisturbed.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "val-00002.done").write_text("{}")
    make(noise, tmp_path)
    assert files(tmp_path) == undisturbed


def test_a_worker_that_dies_is_reported():
    with pytest.raises(DataError, match=r"one of 2 worker processes died.*fewer --workers"):
        list(in_processes(os._exit, [1, 1], 2, "tasks"))


def test_results_come_in_order_and_an_error_of_a_worker_is_raised():
    results = in_processes(int, ["3", "1", "2", "x", "4"], 2, "tasks")
    assert [next(results) for _ in range(3)] == [3, 1, 2]
    with pytest.raises(ValueError, match="'x'"):
        next(results)
    assert list(in_processes(int, [], 2, "tasks")) == []


def test_a_full_disk_leaves_nothing_half_written(noise, undisturbed, tmp_path):
    """A limit on the size of files, which the kernel enforces in the same way as a full disk."""
    out, limit = tmp_path / "out", 60_000
    command = [sys.executable, "-m", "vitscale.cli", "data", "build", str(noise), "--out", str(out), *COMMAND[:-1], "1"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "-00000.tar: cannot be written (File too large); make room and run the same command again" in done.stderr
    assert sorted(files(out)) == ["build.json"]
    make(noise, out)
    assert files(out) == undisturbed
