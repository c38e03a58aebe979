"""Real gloo processes under DeepSpeed: resuming is exact, also on another layout; a bad gradient is applied nowhere."""

import json
from pathlib import Path

import numpy as np
import pytest
from launching import Tiny, launch

WORKER = Path(__file__).with_name("worker.py")
LAYOUTS = [f"{stage}-{precision}" for stage in (1, 2, 3) for precision in ("fp32", "bf16")]


def find(case: str, procs: int, tiny: Tiny, tmp_path: Path, *overrides: str) -> dict:
    """What rank 0 of a worker found."""
    out = tmp_path / f"{case}.json"
    done = launch(WORKER, procs, case, out, tiny.recipe, *overrides)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def test_resume_is_bit_exact_at_every_stage_and_precision(tiny: Tiny, tmp_path: Path) -> None:
    found = find("exact", 2, tiny, tmp_path)
    assert sorted(found) == sorted(LAYOUTS)
    for name, run in found.items():
        assert run["same_bits"], name
        assert run["fingerprints"][0] == run["fingerprints"][1], name
        assert run["resumed_losses"] == run["losses"][3:], name
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 2e-2)):
        stages = np.array([found[f"{stage}-{precision}"]["losses"] for stage in (1, 2, 3)])
        np.testing.assert_allclose(stages[1:], stages[:1].repeat(2, axis=0), rtol=tolerance)


def test_a_gradient_that_is_not_finite_is_applied_on_no_rank(tiny: Tiny, tmp_path: Path) -> None:
    found = find("guard", 2, tiny, tmp_path)
    assert sorted(found) == sorted(LAYOUTS)
    for name, run in found.items():
        assert run["unchanged"], name
        assert run["moves_again"] and run["finite"], name
        assert run["updates"] == [2.0, 3.0], name


@pytest.mark.parametrize(("procs", "stage", "micro"), [(1, 3, 24), (4, 2, 4)])
def test_resume_on_another_layout_goes_on_to_rounding(tiny: Tiny, tmp_path: Path, procs: int, stage: int, micro: int) -> None:
    whole = find("elastic", 2, tiny, tmp_path, "hardware.zero_stage=1")
    last = tiny.run_dir() / "checkpoints" / "step_00000007"
    last.rename(tmp_path / "last")
    other = find("elastic", procs, tiny, tmp_path, f"hardware.zero_stage={stage}", f"hardware.micro_batch={micro}")
    assert (whole["start"], other["start"]) == (0, 3)
    np.testing.assert_allclose(other["losses"], whole["losses"][3:], rtol=1e-5)
    np.testing.assert_allclose(other["weights"], whole["weights"], atol=2e-5)
    assert other["fingerprint"] == whole["fingerprint"]
    assert other["eval"]["eval/images"] == whole["eval"]["eval/images"] == 100
    assert other["eval"]["eval/top1"] == pytest.approx(whole["eval"]["eval/top1"], abs=0.011)


def test_an_error_on_one_rank_ends_all(tiny: Tiny, tmp_path: Path) -> None:
    assert find("alone", 2, tiny, tmp_path)["ended"] == ["rank 1 failed: ValueError: only here", "own error"]
