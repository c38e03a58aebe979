"""The scripts of slurm/ that are submitted by hand."""

import json
import re
import sys

import numpy as np
import pytest
from conftest import SLURM_DIR, Run, Slurm
from PIL import Image

pytestmark = pytest.mark.slurm

ONE_NODE = ("--gpus-per-node=0", "--cpus-per-task=1", "--nodes=1")
TWO_NODES = (*ONE_NODE[:2], "--nodes=2")


def wait_for_all(slurm: Slurm) -> None:
    slurm.wait(Run(slurm.folder, slurm.folder), lambda: not slurm("squeue", "--noheader"))


def test_fine_tuning_waits_for_its_pretraining(slurm: Slurm) -> None:
    """It could not start earlier: the model does not exist before."""
    pretrain = slurm.run("first", steps=30, publish="{name: slurm-vit, alias: pretrained}")
    finetune = slurm.run("second", steps=10, init="{from: models:/slurm-vit@pretrained}")
    log = f"--output={slurm.folder}/%x-%j.log"
    slurm(SLURM_DIR / "pretrain_finetune.sh", pretrain.recipe, finetune.recipe, *TWO_NODES, log)
    wait_for_all(slurm)
    assert finetune.status().get("state") == "finished", [path.read_text() for path in slurm.folder.glob("vitscale-*.log")]
    assert "kept" in (finetune.path / "transfer.txt").read_text()


def test_a_sweep_is_a_run_for_each_line(slurm: Slurm) -> None:
    run = slurm.run("swept", steps=4)
    lines = slurm.folder / "rates.txt"
    lines.write_text("optim.lr=0.002\noptim.lr=0.003 optim.weight_decay=0.2")
    log = f"--output={slurm.folder}/sweep-%a.log"
    slurm("sbatch", "--array=1-2", "--nodelist=node0", *ONE_NODE, log, SLURM_DIR / "sweep.sbatch", run.recipe, lines)
    wait_for_all(slurm)
    runs = [Run(run.recipe, slurm.folder / "runs" / f"swept-rates-{number}") for number in (1, 2)]
    assert [one.status().get("state") for one in runs] == ["finished", "finished"]
    assert ["lr: 0.003" in (one.path / "recipe.yaml").read_text() for one in runs] == [False, True]


def test_a_sweep_on_the_cluster_is_an_array(slurm: Slurm) -> None:
    """Each of its jobs is queued again by itself; the last one has the number of the array."""
    run = slurm.run("grid", steps=60)
    words = (sys.executable, "-m", "vitscale.cli", "sweep", run.recipe, "optim.lr=[0.002,0.003]")
    said = slurm(*words, "--cluster", slurm.cluster(1))
    array = re.search("-sweep-lr: array ([0-9]+)", said)[1]
    runs = [Run(run.recipe, slurm.folder / "runs" / f"grid-lr{lr}") for lr in ("0.002", "0.003")]
    slurm.wait(run, lambda: all(one.steps() for one in runs))
    slurm("scancel", "--batch", "--signal=USR1", array)
    for number, one in enumerate(runs):
        slurm.finish(one, f"{array}_{number}")
        assert "Restarts=1" in slurm("scontrol", "show", "job", f"{array}_{number}")
    table = slurm(*words, "--show").splitlines()
    assert sorted(line.split()[0] for line in table[1:3]) == ["grid-lr0.002", "grid-lr0.003"]
    assert table[3] == f"best: {table[1].split()[0]}"


def test_evaluation(slurm: Slurm, undisturbed: Run) -> None:
    log, checkpoint = slurm.folder / "eval.log", sorted(undisturbed.path.glob("checkpoints/step_" + "[0-9]" * 8))[-1]
    words = (SLURM_DIR / "eval.sbatch", checkpoint, "--data", slurm.data / "val.json")
    slurm("sbatch", "--wait", *ONE_NODE, f"--output={log}", *words)
    said = json.loads(log.read_text().splitlines()[-1])
    assert said["top1"] == pytest.approx(undisturbed.status()["metrics"]["eval/top1"], abs=1e-4)


def test_shards_are_built_by_an_array(slurm: Slurm) -> None:
    for number in range(24):
        path = slurm.folder / "images" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)).save(path)

    def build(out: str, *options: str) -> str:
        words = (slurm.folder / "images", "--out", slurm.folder / out, "--val-fraction", "0.25", "--shard-samples", "3")
        log = f"--output={slurm.folder}/build-%j.log"
        return slurm("sbatch", "--parsable", "--cpus-per-task=1", log, *options, SLURM_DIR / "build.sbatch", *words)

    parts = build("parts", "--array=0-2")
    build("parts", f"--dependency=afterok:{parts}")
    build("whole")
    wait_for_all(slurm)
    ours, theirs = ({path.name: path.read_bytes() for path in (slurm.folder / out).iterdir()} for out in ("parts", "whole"))
    assert len(theirs) > 18
    assert ours == theirs
