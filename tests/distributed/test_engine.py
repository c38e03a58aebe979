"""Real gloo processes under DeepSpeed: resuming is exact, also on another layout; a bad gradient is applied nowhere."""

import json
import shutil
from pathlib import Path

import memories
import numpy as np
import pytest
from launching import Tiny, launch, make_tiny

from vitscale import memory, plan, recipe
from vitscale.config import grad_accum, micro_batch

WORKER = Path(__file__).with_name("worker.py")
LAYOUTS = [f"{stage}-{precision}" for stage in (1, 2, 3) for precision in ("fp32", "bf16")]


def find(cases: str, procs: int, tiny: Tiny, *overrides: str) -> dict:
    """What rank 0 of a worker found, by case."""
    out = tiny.recipe.with_suffix(".json")
    done = launch(WORKER, procs, cases, out, tiny.recipe, *overrides)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("whole"), digits_dir)


@pytest.fixture(scope="module")
def found(whole: Tiny) -> dict:
    """What two processes found in all cases; to start them takes longer than any case."""
    return find("alone,elastic,exact,options,layouts,optimizers,version,memories", 2, whole, "hardware.zero_stage=1")


def test_resume_is_bit_exact_at_every_stage_and_precision(found: dict) -> None:
    exact = found["exact"]
    assert sorted(exact) == sorted(LAYOUTS)
    for name, run in exact.items():
        assert run["same_bits"], name
        assert run["fingerprints"][0] == run["fingerprints"][1], name
        assert run["resumed_losses"] == run["losses"][3:], name
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 2e-2)):
        stages = np.array([exact[f"{stage}-{precision}"]["losses"] for stage in (1, 2, 3)])
        np.testing.assert_allclose(stages[1:], stages[:1].repeat(2, axis=0), rtol=tolerance)


def test_every_kind_of_parameter_trains_alike_at_every_stage(found: dict) -> None:
    assert sorted(found["options"]) == ["hybrid", "map"]
    for losses in found["options"].values():
        np.testing.assert_allclose(losses[1:], losses[:1] * 3, rtol=1e-5)
        assert len(set(losses[0])) > 5  # the first step has a learning rate of 0


@pytest.mark.slow
def test_no_layout_changes_the_losses(found: dict, tmp_path: Path, digits_dir: Path) -> None:
    """1, 2 and 4 processes, every stage, with and without accumulation: mixup and DropPath too are keyed by the sample."""
    layouts = {2: found["layouts"]}
    for procs in (1, 4):
        (folder := tmp_path / str(procs)).mkdir()
        layouts[procs] = find("layouts", procs, make_tiny(folder, digits_dir))["layouts"]
    references = {name.split("-")[0]: run for name, run in reversed(layouts[1]["runs"].items())}
    seen = set()
    for procs, layout in layouts.items():
        assert layout["engine"] == ["deepspeed.runtime.engine", procs]
        for name, run in layout["runs"].items():
            reference = references[name.split("-")[0]]
            assert len(run["losses"]) == 20 and len(set(run["losses"])) > 18
            np.testing.assert_allclose(run["losses"], reference["losses"], rtol=1e-5, err_msg=f"{name} on {procs}")
            assert run["norm"] == pytest.approx(reference["norm"], rel=1e-4)
            if run["average"]:
                np.testing.assert_allclose(run["average"], reference["average"], atol=1e-5)
            seen.add((procs, name, run["accum"]))
    for stage in range(4):
        assert {accum for _, name, accum in seen if name == f"adamw-{stage}"} == {1, 3}


def test_every_optimiser_takes_the_same_steps_at_every_stage(found: dict) -> None:
    for name, stages in found["optimizers"].items():
        for key in ("losses", "outputs"):
            values = [np.array(trial[key]) for trial in stages]
            for other in values[1:]:
                np.testing.assert_allclose(other, values[0], rtol=1e-5, atol=1e-6, err_msg=name)
        weights, average, again = np.array(stages[0]["outputs"])
        assert np.array_equal(weights, again)
        assert np.array_equal(weights, average) == (not name.startswith("averaged"))


def test_a_gradient_that_is_not_finite_is_applied_on_no_rank(found: dict) -> None:
    for name, stages in found["optimizers"].items():
        for trial in stages:
            assert trial["unchanged"] == [True, True], name
            assert trial["goes_on"], name
            assert trial["updates"] == (0 if name.startswith("sgd") else 6), name


def test_no_step_waits_for_the_device(found: dict) -> None:
    for name, stages in found["optimizers"].items():
        for trial in stages:
            assert trial["waits"] == ["elsewhere"], name  # where the test itself asks for a value


def test_another_version_of_deepspeed_is_refused(found: dict) -> None:
    assert len(found["version"]["said"]) == 2
    for said, other in zip(found["version"]["said"], ("0.18.9", "0.20.0"), strict=True):
        assert said.startswith(f"deepspeed {other} is installed, vitscale needs deepspeed<0.20,>=0.19")


@pytest.mark.parametrize(("procs", "stage", "micro"), [(1, 3, 24), (3, 2, 4)])
def test_resume_on_another_layout_goes_on_to_rounding(
    tiny: Tiny, whole: Tiny, found: dict, procs: int, stage: int, micro: int
) -> None:
    shutil.copytree(whole.run_dir(), tiny.run_dir())
    shutil.rmtree(tiny.run_dir() / "checkpoints" / "step_00000007")
    layout = (f"hardware.zero_stage={stage}", f"hardware.micro_batch={micro}")
    first, other = found["elastic"], find("elastic", procs, tiny, *layout)["elastic"]
    assert (first["start"], other["start"]) == (0, 3)
    np.testing.assert_allclose(other["losses"], first["losses"][3:], rtol=1e-5)
    assert other["curve"] == pytest.approx(first["curve"], rel=1e-5)
    np.testing.assert_allclose(other["weights"], first["weights"], atol=2e-5)
    assert other["fingerprint"] == first["fingerprint"]
    assert other["eval"]["eval/images"] == first["eval"]["eval/images"] == 100
    assert other["eval"]["eval/top1"] == pytest.approx(first["eval"]["eval/top1"], abs=0.011)
    by_rank_of_each = [np.array(run["guesses"]) for run in (first, other)]
    for run, by_rank in zip((first, other), by_rank_of_each, strict=True):
        assert (by_rank == by_rank[0]).all()
        assert (by_rank[0].sum(), np.trace(by_rank[0])) == (100, round(100 * run["eval"]["eval/top1"]))
    assert (by_rank_of_each[0][0].sum(axis=1) == by_rank_of_each[1][0].sum(axis=1)).all()


def test_an_error_on_one_rank_ends_all(found: dict) -> None:
    assert found["alone"]["ended"] == ["rank 1 failed: ValueError: only here", "own error"]


@pytest.mark.parametrize("name", memories.SETTINGS)
def test_plans_know_the_memory_and_the_traffic_of_every_stage(found: dict, whole: Tiny, name: str) -> None:
    base = recipe.load(whole.recipe)
    activations = memory.activations(memories.changed(base, name, 0, 2))
    for stage, measured in enumerate(found["memories"][name]):
        cfg = memories.changed(base, name, stage, 2)
        accum = grad_accum(cfg, 2)
        planned = memory.memory(cfg, stage, 2, micro_batch(cfg, 2), accum, activations)
        assert planned.total == pytest.approx(measured["rest"] + measured["peak"], rel=0.1), stage
        if stage < 3:  # whose rest holds buffers too
            assert planned.states == pytest.approx(measured["rest"], rel=0.02), stage
        sent = dict(plan.collectives(cfg, stage, accum))
        summed = sent.get("all-reduce", 0) + sent.get("reduce-scatter", 0)  # gloo's reduce-scatter is an all-reduce
        assert measured["sent"]["all_reduce"] == pytest.approx(summed, rel=0.01), stage
        assert 2 * measured["sent"].get("all_gather", 0) == pytest.approx(sent.get("all-gather", 0), rel=0.01), stage
