"""`vitscale figures` and `vitscale eval --out`, as a user meets them."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny_models import ON_RESNET, bit, randomised, vit

from vitscale import recipe
from vitscale.figures.runs import of_directory, pretraining_exaflops
from vitscale.modelinfo import ModelInfo
from vitscale.sums import write_sums

NAMES = ("filters", "pos_embed", "attention_distance", "attention_rollout")
CROP = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "eval_crop": 1.0}


@pytest.fixture
def model(tmp_path):
    """Write a model directory of random weights and return its path."""

    def write(config, classes=()):
        folder = tmp_path / "model"
        folder.mkdir()
        save_file(randomised(config).state_dict(), folder / "weights.safetensors")
        info = ModelInfo(model=config, classes=list(classes), **CROP)
        (folder / "model.json").write_text(info.dump())
        write_sums(folder)
        return folder

    return write


@pytest.fixture
def images(tmp_path):
    """Two image files of other sizes than the model's."""
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path, shape in zip(paths, ((30, 20, 3), (16, 40, 3)), strict=True):
        Image.fromarray(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)).save(path)
    return paths


def texts(path):
    """What stands in an SVG of matplotlib: it draws letters as curves and notes the text beside them."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    return {(item.text or "").strip() for item in ElementTree.parse(path, parser).iter(ElementTree.Comment)}


def test_every_picture_is_drawn_in_both_formats_and_says_what_it_shows(vitscale_here, model, images, tmp_path):
    words = ("figures", model(vit(image_size=12)), "--image", *images, "--image-size", 24, "--out")
    done = vitscale_here(*words, "once")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"once/{name}.png" for name in NAMES]
    for name in NAMES:
        with Image.open(tmp_path / "once" / f"{name}.png") as picture:
            assert min(picture.size) > 200 and len(picture.getcolors(2**24)) > 10
    said = {name: texts(tmp_path / "once" / f"{name}.svg") for name in NAMES}
    assert {"Input patch column", "Cosine similarity", "12 pixels", "24 pixels, resized"} <= said["pos_embed"]
    assert {"Mean attention distance (pixels)", "Network depth (block)"} <= said["attention_distance"]
    assert "Dot: one of 3 heads, mean over 2 images that are 24 pixels wide." in said["attention_distance"]
    assert "RGB filters of the initial linear embedding" in said["filters"]
    assert vitscale_here(*words, "again").returncode == 0
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (vit(pos_embed="relative"), {"pos_embed": "with model.pos_embed: relative no position has a vector of its own"}),
        (vit(**ON_RESNET), {}),
        (bit(1, 1, 1, 1), dict.fromkeys(NAMES[1:], "a BiT has no patches, positions or attention")),
    ],
    ids=["relative", "hybrid", "bit"],
)
def test_what_a_model_does_not_have_is_said(vitscale_here, model, images, tmp_path, config, missing):
    done = vitscale_here("figures", model(config), "--image", images[0], "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    expected = [f"{name}: not drawn: {missing[name]}" if name in missing else f"out/{name}.png" for name in NAMES]
    assert done.stdout.splitlines() == expected
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {*NAMES} - {*missing}


def test_attention_needs_images_and_a_manifest_has_some(vitscale_here, model, shards):
    folder = model(vit())
    without = vitscale_here("figures", folder, "--out", "out").stdout
    assert without.count("not drawn: give images with --image or --data") == 2
    assert "not drawn" not in vitscale_here("figures", folder, "--data", shards["val"].location, "--out", "out").stdout


@pytest.fixture
def run_dir(config, tmp_path):
    """Write what a run of 8 images per step leaves; a torn last line is being written."""

    def write(name, steps, top1, run_id, origin_id=None):
        folder = tmp_path / name
        (folder / "init").mkdir(parents=True)
        init = [] if origin_id is None else ["init.from=elsewhere"]
        (folder / "recipe.yaml").write_text(recipe.dump(config(f"name={name}", *init)))
        lines = [{"step": step, "metrics": {"train/loss": 1 / step, "eval/top1": top1}} for step in range(1, steps + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
        if run_id:
            (folder / "mlflow_run_id").write_text(run_id)
        if origin_id is not None:
            (folder / "init" / "origin.json").write_text(json.dumps({"run_id": origin_id or None}))
        return folder

    return write


def test_compute_is_that_of_the_first_run_of_the_line(run_dir):
    """`tiny` has 5 tokens of width 8 in 2 blocks, 48 numbers per patch of which there are 4, and 3 classes."""
    forward = 2 * ((4 * 8 * 8 + 2 * 8 * 16) * 5 + 2 * 5 * 5 * 8) + 4 * 48 * 8 + 8 * 3
    per_image = 6 * forward - 2 * 4 * 48 * 8
    folders = [
        run_dir("pretrained", 5, 0.5, "id0"),
        run_dir("again", 2, 0.6, "id1", "id0"),
        run_dir("finetuned", 1, 0.7, "id2", "id1"),
        run_dir("unsent", 3, 0.5, ""),
        run_dir("from-a-file", 1, 0.8, "", ""),
        run_dir("of-another", 1, 0.8, "id3", "id9"),
    ]
    runs = [of_directory(folder) for folder in folders]
    found = [pretraining_exaflops(run, runs) for run in runs]
    expected = [per_image * 8 * steps / 1e18 for steps in (5, 5, 5, 3)]
    assert found[:4] == pytest.approx(expected, rel=1e-12) and found[4:] == [None, None]


def test_runs_of_one_name_are_all_drawn_and_the_unknown_is_said(vitscale_here, run_dir, tmp_path):
    first, second = run_dir("same", 5, 0.5, "a"), run_dir("twin", 4, 0.6, "b")
    (second / "recipe.yaml").write_text((first / "recipe.yaml").read_text())
    done = vitscale_here("figures", "--runs", first, second, run_dir("lost", 2, 0.5, "c", "d"), "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    why = "compute: without lost: it has no eval/top1, or the run that it started from is not given"
    assert done.stdout.splitlines() == ["out/curves.png", why, "out/compute.png"]
    said = texts(tmp_path / "out" / "compute.svg")
    assert {"Total pre-training compute (exaFLOPs)", "Top-1 accuracy (%)", "same"} <= said and "lost" not in said
    svg = (tmp_path / "out" / "compute.svg").read_text()
    assert svg.count("<!-- same -->") == 2
    assert {"same", "lost", "Images seen", "train/loss", "eval/top1"} <= texts(tmp_path / "out" / "curves.svg")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give a model, or runs with --runs"),
        (("model", "--image", "nothing.png"), "nothing.png: not a readable image"),
        (("model", "--image-size", "13"), "image_size 13 is not a multiple of patch_size 4; use 12 or 16"),
        (("model", "--data", "nothing.json"), "nothing.json: no manifest to read"),
        (("elsewhere",), "elsewhere: neither a checkpoint directory nor a file of weights"),
        (("--runs", "model"), "model: not a run directory (no metrics.jsonl in it)"),
        (("--runs", "runs:/0123"), "runs:/0123: not found in MLflow"),
        (("--runs", "experiments:/none"), "no experiment has this name"),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, tuple) else "",
)
def test_what_cannot_be_drawn_is_an_error_and_leaves_nothing(vitscale_here, model, tmp_path, words, said):
    model(vit())
    done = vitscale_here("figures", *words, "--out", "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_eval_writes_accuracy_by_class_where_it_is_told(vitscale_here, model, shards, tmp_path):
    folder = model(vit(num_classes=3), ["cat", "dog", "owl"])
    done = vitscale_here("eval", folder, "--data", shards["train"].location, "--out", "found")
    assert done.returncode == 0, done.stderr
    expected = {"per_class.csv", "confusion.csv", "confusion.png", "confusion.svg", "predictions.png"}
    assert {path.name for path in (tmp_path / "found").iterdir()} == expected
    _, *rows = (line.split(",") for line in (tmp_path / "found" / "per_class.csv").read_text().splitlines())
    assert [row[0] for row in rows] == ["cat", "dog", "owl"]
    metrics = json.loads(done.stdout)
    assert sum(int(row[1]) for row in rows) == metrics["images"] == 20
    assert sum(int(row[2]) for row in rows) == 20 * metrics["top1"]
