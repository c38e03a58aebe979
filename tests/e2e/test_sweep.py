"""A sweep: runs of their own, one parent in MLflow, and the best of them."""

import json

import pytest
from launching import Tiny, vitscale

from vitscale.errors import RecipeError
from vitscale.rundir import RunDir
from vitscale.sweep import Sweep
from vitscale.tracking import connect, tracking_uri


def test_all_combinations_and_their_names(tiny: Tiny) -> None:
    sweep = Sweep(str(tiny.recipe), ["optim.lr=[0.01, 0.03]", "train.total=[{steps: 5}, {steps: 9}]", "seed=3"])
    assert sweep.name == "tiny-sweep-lr-total"
    assert [trial.name for trial in sweep.trials] == [
        "tiny-lr0.01-totalsteps5",
        "tiny-lr0.01-totalsteps9",
        "tiny-lr0.03-totalsteps5",
        "tiny-lr0.03-totalsteps9",
    ]
    assert [(cfg.optim.lr, cfg.train.total.steps, cfg.seed) for cfg in sweep.configs] == [
        (0.01, 5, 3),
        (0.01, 9, 3),
        (0.03, 5, 3),
        (0.03, 9, 3),
    ]


def test_a_value_that_is_itself_a_list_and_bad_words(tiny: Tiny) -> None:
    sweep = Sweep(str(tiny.recipe), ["optim.betas=[[0.9, 0.95], [0.9, 0.999]]"])
    assert [cfg.optim.betas for cfg in sweep.configs] == [(0.9, 0.95), (0.9, 0.999)]
    with pytest.raises(RecipeError, match="several values"):
        Sweep(str(tiny.recipe), ["optim.lr=0.1"])
    with pytest.raises(RecipeError, match=r"optim\.lr"):
        Sweep(str(tiny.recipe), ["optim.lr=[0.1, fast]"])


def test_seeds_are_put_together(tiny: Tiny) -> None:
    sweep = Sweep(str(tiny.recipe), ["optim.lr=[0.01, 0.03]", "seed=[0, 1, 2]"])
    for cfg, score in zip(sweep.configs, (0.5, 0.6, 0.7, 0.9, 0.9, 0.9), strict=True):
        (path := RunDir(cfg).path).mkdir(parents=True)
        (path / "status.json").write_text(json.dumps({"state": "finished", "metrics": {"eval/top1": score}}))
    assert [line.split() for line in sweep.lines("eval/top1")] == [
        ["eval/top1"],
        ["tiny-lr0.03", "0.9000", "+-", "0.0000", "of", "3"],
        ["tiny-lr0.01", "0.6000", "+-", "0.1000", "of", "3"],
        ["best:", "tiny-lr0.03"],
    ]


def test_a_sweep_here(tiny: Tiny) -> None:
    shorter = ("train.total.steps=8", "optim.schedule.warmup.steps=2", "--metric", "eval/loss")
    words = ("sweep", tiny.recipe, "optim.lr=[1e-7,1e-2]", *shorter)
    done = vitscale(*words)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("eval/loss") :].splitlines()
    losses = [float(tiny.status(name)["metrics"]["eval/loss"]) for name in ("tiny-lr0.01", "tiny-lr1e-07")]
    assert losses[0] < losses[1]
    assert [line.split() for line in table[1:3]] == [["tiny-lr0.01", f"{losses[0]:.4f}"], ["tiny-lr1e-07", f"{losses[1]:.4f}"]]
    assert table[3] == "best: tiny-lr0.01"
    client = connect(tracking_uri(None, tiny.runs))
    parent = client.get_run((tiny.runs / "tiny-sweep-lr" / "mlflow_run_id").read_text())
    assert parent.data.tags["sweep.best"] == "tiny-lr0.01" and parent.info.status == "FINISHED"
    for name in ("tiny-lr1e-07", "tiny-lr0.01"):
        run = client.get_run((tiny.run_dir(name) / "mlflow_run_id").read_text())
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert vitscale(*words, "--show").stdout.splitlines()[1:] == table[1:]
