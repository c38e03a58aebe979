"""Evaluation at the size of ImageNet's validation set."""

import csv
import json
from pathlib import Path

import pytest
from launching import vitscale

RECIPE = Path(__file__).parents[2] / "recipes" / "proof" / "shapes.yaml"
IMAGES, SHARD = 50_000, 4_096  # the last shard is shorter


@pytest.mark.slow
def test_fifty_thousand_images_count_once_each_on_any_number_of_ranks(tmp_path: Path) -> None:
    data = tmp_path / "data"
    built = vitscale("data", "build", f"shapes:{IMAGES}", "--out", data, "--shard-samples", str(SHARD), "--val-fraction", "0")
    assert built.returncode == 0, built.stderr
    manifest = data / "train.json"
    source = (
        f"data.train={{manifest: {manifest}, samples: {IMAGES}}}",
        "data.val=null",
        "train.total.steps=30",
        "optim.schedule.warmup.steps=3",
    )
    trained = vitscale("train", RECIPE, "name=counted", f"runs={tmp_path}", *source)
    assert trained.returncode == 0, trained.stderr
    told = []
    for procs, batch in ((1, 250), (3, 97)):
        out = tmp_path / f"on-{procs}"
        words = ("--procs", str(procs), "--batch", str(batch), "--out", out)
        done = vitscale("eval", tmp_path / "counted" / "checkpoints" / "step_00000030", "--data", manifest, *words)
        assert done.returncode == 0, done.stderr
        with (out / "per_class.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["images"]) for row in rows] == [IMAGES // 16] * 16
        told.append((json.loads(done.stdout), sum(int(row["right"]) for row in rows)))
    for metrics, right in told:
        assert metrics["images"] == IMAGES
        assert metrics["top1"] == right / IMAGES
    assert told[0][0]["top1"] == pytest.approx(told[1][0]["top1"], abs=2 / IMAGES)  # where two classes are as likely
    assert told[0][0]["loss"] == pytest.approx(told[1][0]["loss"], rel=1e-5)
