"""Training steps on the device: to the bit, without waiting, compiled as eager. On a CPU the same, where nothing waits."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import clean_environment

WORKER = Path(__file__).with_name("worker.py")
STAGES = ["0", "1", "2", "3"]
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")


def find(case: str, device: torch.device, folder: Path) -> dict:
    command = [sys.executable, str(WORKER), case, str(folder / "found.json"), device.type]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_every_stage_is_exact_and_applies_no_bad_gradient(device, tmp_path):
    found = find("steps", device, tmp_path)
    assert sorted(found) == STAGES
    for stage, run in found.items():
        assert run["same"], f"two engines differ at stage {stage}"
        assert run["exact"], f"a resumed one differs at stage {stage}"
        assert run["unchanged"], f"a gradient that is not finite was applied at stage {stage}"
        np.testing.assert_allclose(run["losses"], found["0"]["losses"], rtol=2e-2 if device.type == "cuda" else 1e-5)
    assert len(set(found["0"]["losses"])) > 3


@pytest.mark.slow
@needs_compiler
def test_no_step_waits_for_the_device(device, tmp_path):
    found = find("waiting", device, tmp_path)
    assert len(found) == 2 * len(STAGES)
    assert all(math.isfinite(loss) for loss in found.values())


@pytest.mark.slow
@needs_compiler
def test_compiled_steps_equal_eager_ones_at_every_stage(device, tmp_path):
    """Two graphs: of all blocks, and of what prepares the pixels."""
    for stage, run in find("compiled", device, tmp_path).items():
        np.testing.assert_allclose(run["compiled"], run["eager"], rtol=2e-2 if device.type == "cuda" else 1e-4)
        assert run["graphs"] == 2 and not run["breaks"], f"stage {stage}: {run['graphs']} graphs"
