"""A sweep: runs of their own, one parent in MLflow, and the best of them."""

import json
import signal
import subprocess
import sys

import pytest
from launching import LAUNCH_TIMEOUT_S, Tiny, clean_environment, vitscale

from vitscale import recipe
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


def note_scores(sweep: Sweep, *scores: float) -> None:
    for cfg, score in zip(sweep.configs, scores, strict=True):
        (path := RunDir(cfg).path).mkdir(parents=True, exist_ok=True)
        (path / "status.json").write_text(json.dumps({"state": "finished", "metrics": {"eval/loss": score}}))


def test_what_is_not_finite_is_never_best(tiny: Tiny) -> None:
    sweep = Sweep(str(tiny.recipe), ["optim.lr=[0.01, 0.02, 0.03]", "seed=[0, 1]"])
    nan, infinite = float("nan"), float("inf")
    note_scores(sweep, 0.5, nan, 0.9, 0.7, -infinite, 0.1)
    assert [group for group, _ in sweep.ranking("eval/loss")] == ["tiny-lr0.02", "tiny-lr0.01", "tiny-lr0.03"]
    assert [line.split()[1:4] for line in sweep.lines("eval/loss")][2:] == [
        ["nan", "+-", "nan"],
        ["-inf", "+-", "nan"],
        ["tiny-lr0.02"],
    ]
    note_scores(sweep, *[nan] * 6)
    assert not any(line.startswith("best") for line in sweep.lines("eval/loss"))


def test_a_setting_that_lacks_a_seed_comes_after_those_with_all(tiny: Tiny) -> None:
    sweep = Sweep(str(tiny.recipe), ["optim.lr=[0.01, 0.02, 0.03]", "seed=[0, 1]", "publish={name: swept, alias: tuned}"])
    note_scores(sweep, 0.5, 0.7, 0.1, 0.2, 0.9, 0.8)
    for number in (2, 4):  # the first seeds of 0.02 and 0.03
        (RunDir(sweep.configs[number]).path / "status.json").write_text(json.dumps({"state": "failed"}))
    assert [line.split() for line in sweep.lines("eval/loss")][1:] == [
        ["tiny-lr0.01", "0.6000", "+-", "0.1414", "of", "2"],
        ["tiny-lr0.02", "0.2000", "of", "1,", "1", "missing"],
        ["tiny-lr0.03", "0.8000", "of", "1,", "1", "missing"],
        ["tiny-lr0.02-seed0", "failed"],
        ["tiny-lr0.03-seed0", "failed"],
        ["best:", "tiny-lr0.01"],
    ]
    (RunDir(sweep.configs[3]).path / "published.json").write_text(json.dumps({"last": {"version": "models:/swept/7"}}))
    assert sweep._model("tiny-lr0.02") == ("swept", "7")


def test_runs_of_another_recipe_are_not_taken_for_its_own(tiny: Tiny) -> None:
    words = ["optim.lr=[0.01, 0.02]"]
    for cfg in Sweep(str(tiny.recipe), words).configs:
        (path := RunDir(cfg).path).mkdir(parents=True)
        (path / "recipe.yaml").write_text(recipe.dump(cfg))
    Sweep(str(tiny.recipe), words)
    with pytest.raises(RecipeError, match=r"was started with another recipe: optim\.weight_decay"):
        Sweep(str(tiny.recipe), [*words, "optim.weight_decay=0.7"])


def test_only_what_is_finished_is_compared(tiny: Tiny) -> None:
    sweep = Sweep(str(tiny.recipe), ["optim.lr=[0.01, 0.02]"])
    note_scores(sweep, 0.5, 0.1)
    path = RunDir(sweep.configs[1]).path / "status.json"
    path.write_text(path.read_text().replace("finished", "running"))
    assert sweep.ranking("eval/loss") == [("tiny-lr0.01", [0.5])]
    assert [line.split() for line in sweep.lines("eval/loss")][1:] == [["tiny-lr0.01", "0.5000"], ["tiny-lr0.02", "running"]]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["optim.lr=[0.01, 0.010, 0.02]"], "tiny-lr0.01 is there 2 times"),
        (["optim.lr=[0.1, 0.2]", "optim.lr=[0.3, 0.4]"], "optim.lr is there 2 times"),
        (["optim.lr=0.1", "optim.lr=[0.3, 0.4]"], "optim.lr is there 2 times"),
        (["tracking.experiment=['a/b', 'ab']"], "tiny-experimentab is there 2 times"),
    ],
)
def test_no_two_trials_are_one(tiny: Tiny, words: list[str], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        Sweep(str(tiny.recipe), words)


def test_names_take_any_value(tiny: Tiny) -> None:
    publish = "publish={name: swept, alias: tuned}"
    sweep = Sweep(str(tiny.recipe), ["optim.lr=[1e+30, 0.5]", "tracking.experiment=['R50+ViT', 'a b']", publish])
    assert [trial.name for trial in sweep.trials][::3] == ["tiny-lr1e30-experimentR50ViT", "tiny-lr0.5-experimentab"]
    assert [cfg.publish.alias for cfg in sweep.configs if cfg.publish][-1] == "tuned-lr0_5-experimentab"


@pytest.mark.slow
def test_a_sweep_here(tiny: Tiny) -> None:
    """One run diverges: the others are made and compared, and the best has the recipe's alias."""
    fixed = ("train.total.steps=8", "optim.schedule.warmup.steps=2", "train.max_bad_steps=1", "optim.clip_norm=0")
    publish = "publish={name: swept, alias: tuned}"
    words = ("sweep", tiny.recipe, "optim.lr=[1e30,1e-7,1e-2]", *fixed, publish, "--metric", "eval/loss")
    done = vitscale(*words)
    assert done.returncode == 1 and "train.max_bad_steps" in done.stderr
    table = done.stdout[done.stdout.rindex("eval/loss") :].splitlines()
    losses = [float(tiny.status(name)["metrics"]["eval/loss"]) for name in ("tiny-lr0.01", "tiny-lr1e-07")]
    assert losses[0] < losses[1]
    assert [line.split() for line in table[1:]] == [
        ["tiny-lr0.01", f"{losses[0]:.4f}"],
        ["tiny-lr1e-07", f"{losses[1]:.4f}"],
        ["tiny-lr1e30", "failed"],
        ["best:", "tiny-lr0.01"],
    ]
    client = connect(tracking_uri(None, tiny.runs))
    parent = client.get_run((tiny.runs / "tiny-sweep-lr" / "mlflow_run_id").read_text())
    assert parent.data.tags["sweep.best"] == "tiny-lr0.01" and parent.info.status == "FINISHED"
    for name in ("tiny-lr1e-07", "tiny-lr0.01"):
        run = client.get_run((tiny.run_dir(name) / "mlflow_run_id").read_text())
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    best = client.get_model_version_by_alias("swept", "tuned")
    assert best.run_id == run.info.run_id
    assert best.version == client.get_model_version_by_alias("swept", "tuned-lr0_01").version
    assert vitscale(*words, "--show").stdout.splitlines()[1:] == table[1:]


@pytest.mark.slow
def test_one_signal_ends_it(tiny: Tiny) -> None:
    command = [sys.executable, "-m", "vitscale.cli", "sweep", str(tiny.recipe), "seed=[0,1]", "train.total.steps=5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment()) as sweep:
        assert sweep.stdout
        while "step" not in (line := sweep.stdout.readline()):
            assert line, "it ended before its first step"
        sweep.send_signal(signal.SIGINT)
        rest = sweep.communicate(timeout=LAUNCH_TIMEOUT_S)[0]
    assert sweep.returncode == 1
    assert tiny.status("tiny-seed0")["state"] == "stopped"
    assert "tiny-seed1  not started" in rest and not tiny.run_dir("tiny-seed1").exists()
