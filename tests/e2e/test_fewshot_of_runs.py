"""Few-shot accuracy while a run trains, of weights and of their average, is what the command says of the checkpoint."""

import json

import pytest
from launching import Tiny, vitscale


@pytest.mark.slow
def test_in_training_and_afterwards(tiny: Tiny) -> None:
    data = tiny.recipe.read_text().split("manifest: ")[1].split("/train.json")[0]
    sets = f"eval.fewshot={{digits: {{train: {data}/train.json, test: {data}/val.json, max_train: 200}}}}"
    done = vitscale("train", tiny.recipe, "--procs", "2", sets, "optim.ema_decay=0.9", "hardware.zero_stage=3")
    assert done.returncode == 0, done.stderr
    metrics = tiny.status()["metrics"]
    words = ("--train", f"{data}/train.json", "--test", f"{data}/val.json", "--max-train", "200")
    told = vitscale("fewshot", tiny.run_dir() / "checkpoints" / "step_00000020", *words)
    found = json.loads(told.stdout)
    for name, value in found.items():
        assert metrics[f"eval/digits/{name}"] == pytest.approx(value, abs=0.011)  # an image of 100, whose scores are close
        assert f"eval_ema/digits/{name}" in metrics
    assert found["25shot"] > 0.5
