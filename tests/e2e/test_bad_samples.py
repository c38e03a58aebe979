"""A training over two sources, one of them damaged, goes on with other images, says which, and does the same after a kill."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import Tiny, clean_environment, make_tiny, vitscale

from data_pipeline.manifest import read_manifest
from data_pipeline.stream import Shards

DAMAGED = (5, 6, 120, 300)
DEADLINE_S = 120


@pytest.fixture(scope="module")
def damaged(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The digits with some images scribbled over without a new index, and their keys."""
    folder = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(digits_dir, folder)
    shards = Shards(read_manifest(str(folder / "train.json")))
    raw = {sample: shards.read(sample) for sample in DAMAGED}
    for sample, (_, image, _) in raw.items():
        shard = Path(shards.place(sample).url)
        content = shard.read_bytes()
        at = content.index(image) + len(image) // 2
        shard.write_bytes(content[:at] + b"scribble" + content[at + 8 :])
    return folder, {key for key, _, _ in raw.values()}


@pytest.fixture
def overrides(damaged: tuple[Path, set[str]], digits_dir: Path) -> list[str]:
    sources = ((damaged[0], 2.0), (digits_dir, 1.0))
    listed = ", ".join(f"{{manifest: {folder}/train.json, weight: {weight}}}" for folder, weight in sources)
    return [
        f"data.train=[{listed}]",
        "data.bad_samples={policy: replace, max_fraction: 0.05}",
        "checkpoint.every.steps=4",
        "train.total.steps=30",
    ]


def ledger(tiny: Tiny) -> list[dict]:
    lines = [json.loads(line) for line in (tiny.run_dir() / "data_ledger.jsonl").read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["step"], line["key"]))


def curve(tiny: Tiny) -> list[tuple]:
    lines = [line for line in tiny.metrics() if line["kind"] == "train"]
    return [(line["step"], line["samples"], line["metrics"]["data/skipped"]) for line in lines]


@pytest.mark.slow
def test_it_says_what_it_replaced_and_a_kill_and_another_layout_change_nothing(
    tmp_path: Path, digits_dir: Path, damaged: tuple[Path, set[str]], overrides: list[str]
) -> None:
    (tmp_path / "undisturbed").mkdir()
    undisturbed = make_tiny(tmp_path / "undisturbed", digits_dir)
    done = vitscale("train", undisturbed.recipe, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    found = ledger(undisturbed)
    assert {line["key"] for line in found} == damaged[1]
    assert all("CRC-32" in line["reason"] and line["shard"].startswith(str(damaged[0])) for line in found)
    assert curve(undisturbed)[-1][2] == len(found) > len(damaged[1])

    tiny = make_tiny(tmp_path, digits_dir)
    command = [sys.executable, "-m", "vitscale.cli", "train", str(tiny.recipe), "--procs", "2", *overrides]
    with subprocess.Popen(command, env=clean_environment(), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + DEADLINE_S
        while not list((tiny.run_dir() / "checkpoints").glob("step_*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    again = vitscale("train", tiny.recipe, "--procs", "3", *overrides)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "continues at step" in again.stdout
    assert ledger(tiny) == found
    assert curve(tiny) == curve(undisturbed)


@pytest.mark.slow
def test_too_many_stop_the_run(tiny: Tiny, overrides: list[str]) -> None:
    done = vitscale("train", tiny.recipe, *overrides, "data.bad_samples.max_fraction=1e-4")
    assert done.returncode == 1
    assert "data.bad_samples.max_fraction: 2 of" in done.stderr or "data.bad_samples.max_fraction: 3 of" in done.stderr
    assert ledger(tiny)
