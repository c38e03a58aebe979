"""The benchmark of one GPU runs through with small models, and says all that it should; the model reads the table it writes."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import clean_environment

from vitscale.model import attention

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = {"correct", "steps", "zero", "attention", "endtoend", "memory"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_every_part_measures_something_sound(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    sections = found["sections"]
    assert sections.keys() == PARTS | {"targets"} and len(sections["targets"]) >= 4
    assert {row["verdict"] for row in sections["correct"]} == {"ok"}
    rows = [row for part in sections.values() for row in part]
    assert not [row for row in rows if "failed" in row or "out of time" in row.get("note", "")]
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert len(numbers) > 40 and all(map(math.isfinite, numbers))
    rates = {row["entry"]: row["img/s"] for row in sections["steps"] if "img/s" in row}
    assert {"ours", "ours, gap", "ours, deterministic"} <= rates.keys() and min(rates.values()) > 0
    assert {row.get("entry") for row in sections["zero"]} == {"bare loop", *(f"stage {stage}" for stage in range(4))}
    markdown = (tmp_path / "gpu.md").read_text()
    assert all(f"### {part}\n" in markdown for part in PARTS) and found["setting"]["commit"] in markdown


@pytest.mark.slow
def test_what_does_not_fit_is_tried_smaller_and_made_anew(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_parts.clock import Setting
    from gpu_parts.models import TINY_CASES
    from gpu_parts.steps import Entry, search, turn

    room, broken = [40], []

    def make():
        def step(images, _labels):
            assert step not in broken, "a step that broke off is used again"
            if len(images) > room[0]:
                broken.append(step)
                raise torch.OutOfMemoryError

        return step

    setting, (case,) = Setting(torch.device("cpu"), tiny=False, seconds=60.0), TINY_CASES
    entry = Entry("fake", make)
    monkeypatch.setattr("gpu_parts.clock.median", lambda _seconds: 1.0)  # so that larger is faster
    search(entry, 8, case, setting, 60.0)
    assert entry.best == 32 and entry.note == "out of memory at 64"
    room[0] = 20  # the others take the rest
    action = turn(entry, case, setting)
    assert entry.best == 16 and entry.note == "out of memory at 32 beside the others"
    action()
    room[0] = 0
    assert turn(entry, case, setting) is None and not entry.rates


def test_the_table_it_writes_is_what_the_model_reads(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_parts.attention import write_table
    from gpu_parts.clock import Setting

    table = tmp_path / "attention.toml"
    other = '    {device = "another", dtype = "float32", head_width = 8, tokens = 5, any = "flash", deterministic = "math"},\n'
    table.write_text(attention.TABLE.read_text().replace("rows = [\n", "rows = [\n" + other))
    setting = Setting(torch.device("cpu"), tiny=True, seconds=1.0)
    for fastest in ("flash", "math"):  # the second time in place of the first
        modes = {"any": fastest, "deterministic": "flash"}
        rows = [{"head width": 64, "tokens": 197, "mode": mode, "fastest": name} for mode, name in modes.items()]
        write_table([*rows, {"head width": 64, "tokens": 256, "mode": "any", "fastest": "math"}], setting, table)
    look_up = [("cpu", 64, 197, "math"), ("cpu", 64, 256, None), ("another", 8, 5, "flash")]
    for device, width, tokens, expected in look_up:
        found = attention.fastest(device, torch.float32, width, tokens, table)
        assert found == (attention.KERNELS[expected] if expected else None)
    assert table.read_text().count('device = "cpu"') == 1 and table.read_text().startswith("# The fastest kernel")
