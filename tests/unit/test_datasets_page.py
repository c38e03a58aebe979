"""docs/datasets.md: its commands exist, its tables of labels are right, and recipes/data says the same."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.io import savemat

from data_pipeline import build
from vitscale import cli, recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/datasets.md").read_text()
COMMANDS = re.findall(r"^vitscale (.*)$", PAGE, re.MULTILINE)
PARENTS = sorted((ROOT / "recipes/data").glob("*.yaml"))


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_can_be_given(command, monkeypatch):
    """Words that no command knows end with SystemExit."""
    monkeypatch.chdir(ROOT)
    args = cli.parse(cli.build_parser(), shlex.split(command))
    if command.startswith("train"):
        assert recipe.load(args.recipe, args.overrides).data.val.samples == 10_000


def test_commands_were_found():
    assert sum(command.startswith("data build") for command in COMMANDS) >= 11


HELD_OUT = [
    ("ILSVRC2012_img_train", 1_281_167, 12_812),
    ("fall11_whole", 14_197_122, 51_200),
    ("winter21_whole", 13_153_500, 51_200),
]


@pytest.mark.parametrize(("archive", "images", "expected"), HELD_OUT)
def test_its_fractions_hold_out_what_the_recipes_say(archive, images, expected):
    (fraction,) = re.findall(rf"^vitscale data build {archive}\.tar .*--val-fraction ([\d.]+)", PAGE, re.MULTILINE)
    assert build.held_out(images, float(fraction)) == expected


@pytest.mark.parametrize("path", PARENTS, ids=lambda path: path.stem)
def test_a_parent_completes_a_recipe_and_builds_as_the_page_says(path, tmp_path):
    parents = [ROOT / "recipes" / part for part in ("base.yaml", "optim/vit-finetune.yaml")] + [path]
    rest = {"name": "x", "model": {"name": "vit-b16"}, "train": {"total": {"steps": 1000}}, "optim": {"lr": 0.01}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"extends": [str(parent) for parent in parents], **rest}))
    cfg = recipe.load(tmp_path / "x.yaml")
    said = re.search(r"^# Build: vitscale (.*?)(, and .*|, with .*)?$", path.read_text(), re.MULTILINE)
    if path.stem == "large":
        assert not said
        return
    assert any(command.removesuffix(" --shard-bytes 1GB") == said[1].removesuffix(" --shard-bytes 1GB") for command in COMMANDS)
    out = shlex.split(said[1])[shlex.split(said[1]).index("--out") + 1]
    assert out in {str(Path(source.manifest).parent) for source in (*cfg.data.train, cfg.data.val)}
    (row,) = (line for line in PAGE.splitlines() if line.startswith("|") and re.search(rf"`{path.stem}`", line))
    numbers = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\b", row)}
    train, val = cfg.data.train[0].samples, cfg.data.val.samples
    if path.stem == "vtab":  # nineteen tasks with test sets of their own
        assert train in numbers
        return
    assert train + val in numbers if path.stem.startswith("in21k") else val in numbers
    assert path.stem in ("in1k-v2", "in21k", "in21k-winter21") or train in numbers
    assert path.stem == "in21k" or cfg.model.num_classes in numbers


def in_table(path):
    with path.open(newline="") as file:
        return [(row["path"], int(row["label"])) for row in csv.DictReader(file)]


def test_the_table_of_pets(tmp_path):
    (line,) = re.findall(r"^for split in .*$", PAGE, re.MULTILINE)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/trainval.txt").write_text("Abyssinian_100 1 1 1\nyorkshire_terrier_9 37 2 25\n")
    (tmp_path / "annotations/test.txt").write_text("Abyssinian_201 1 1 1\n")
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    assert in_table(tmp_path / "train.csv") == [("images/Abyssinian_100.jpg", 0), ("images/yorkshire_terrier_9.jpg", 36)]
    assert in_table(tmp_path / "test.csv") == [("images/Abyssinian_201.jpg", 0)]


def test_the_table_of_flowers(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 5]], np.uint8)})
    savemat(tmp_path / "setid.mat", {"trnid": np.array([[3]]), "valid": np.array([[1]]), "tstid": np.array([[2, 4]])})
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert in_table(tmp_path / "train.csv") == [("jpg/image_00003.jpg", 101), ("jpg/image_00001.jpg", 76)]
    assert in_table(tmp_path / "test.csv") == [("jpg/image_00002.jpg", 0), ("jpg/image_00004.jpg", 4)]
