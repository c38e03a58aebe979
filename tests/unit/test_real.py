"""`vitscale eval --real`: the first guess of every image looked up in its list, whatever the order and number of processes."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny_models import randomised, vit

from data_pipeline.build import build
from data_pipeline.collection import Collection, Item
from data_pipeline.errors import DataError
from data_pipeline.manifest import read_manifest
from data_pipeline.stream import Shards
from vitscale.modelinfo import ModelInfo
from vitscale.pretrained import load_pretrained
from vitscale.real import read_real
from vitscale.sums import write_sums

NUM_IMAGES, MODEL = 23, vit()
KEY = "ILSVRC2012_val_{:08d}"


def picture(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8))


def shards_of(folder, keys):
    """In shuffled order, of images 1 to 23."""
    images = []
    for number, key in enumerate(keys, 1):
        picture(number).save(file := io.BytesIO(), "PNG")
        images.append(Item(key, "png", number % 5, file.getvalue()))
    return build(Collection(images, []), folder, 0.0, [9, 5], seed=1)["train"].location


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.json").write_text(ModelInfo(model=MODEL, classes=[], eval_crop=1.0).dump())
    save_file(randomised(MODEL).state_dict(), folder / "weights.safetensors")
    write_sums(folder)
    return folder


def test_other_classes_are_refused(vitscale_here, model, tmp_path):
    """Of a model and a set to evaluate on, and of the two sets of few-shot accuracy."""
    info = json.loads((model / "model.json").read_text())
    for names in (list("abcde"), list("abced")):
        (folder := tmp_path / "".join(names)).mkdir()
        shutil.copy(model / "weights.safetensors", folder)
        (folder / "model.json").write_text(json.dumps({**info, "classes": names}))
        write_sums(folder)
    picture(1).save(file := io.BytesIO(), "PNG")
    sets = [
        build(Collection([Item("a", "png", 0, file.getvalue())], list(names)), tmp_path / f"of-{names}", 0.0, [9], seed=1)
        for names in ("abcde", "abced")
    ]
    locations = [found["train"].location for found in sets]
    assert vitscale_here("eval", tmp_path / "abced", "--data", locations[1], "--procs", 1).returncode == 0
    for words in (
        ("eval", tmp_path / "abcde", "--data", locations[1]),
        ("fewshot", model, "--train", locations[0], "--test", locations[1]),
    ):
        refused = vitscale_here(*words, "--procs", 1)
        assert refused.returncode == 1 and "its classes are not those of" in refused.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shards_of(tmp_path_factory.mktemp("val"), [KEY.format(number) for number in range(1, NUM_IMAGES + 1)])


@pytest.fixture(scope="module")
def guesses(model):
    """The first guess for image 1, 2, ..., one by one."""
    loaded = load_pretrained(str(model), "")
    pictures = [picture(number) for number in range(1, NUM_IMAGES + 1)]
    return [top[0].label for top in loaded.predict(pictures, 1)]


@pytest.fixture(scope="module")
def real(tmp_path_factory, guesses):
    """Lists of none to three labels, of more images than the shards have; and the share that is right."""
    rng = np.random.default_rng(7)
    lists = [rng.choice(5, count, replace=False).tolist() for count in rng.integers(0, 4, 40)]
    path = tmp_path_factory.mktemp("real") / "real.json"
    path.write_text(json.dumps(lists))
    right = [guess in labels for guess, labels in zip(guesses, lists, strict=False) if labels]
    assert 0 < sum(right) < len(right) < NUM_IMAGES and len(set(guesses)) > 1
    return path, sum(right) / len(right)


@pytest.mark.parametrize("batch", [4, 23])
def test_the_share_of_images_whose_guess_is_one_of_their_labels(vitscale_here, model, data, real, batch):
    done = vitscale_here("eval", model, "--data", data, "--real", real[0], "--batch", batch, "--procs", 1)
    found = json.loads(done.stdout)
    assert (found["real"], found["images"]) == (real[1], NUM_IMAGES)
    assert [*found] == ["top1", "top5", "loss", "images", "real"]


def test_two_processes_count_the_same(model, data, real):
    words = ["eval", model, "--data", data, "--real", real[0], "--batch", "5", "--procs", "2"]  # 23 = 2 (5 + 5) + 3
    done = subprocess.run([sys.executable, "-m", "vitscale.cli", *map(str, words)], capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    assert (json.loads(line)["real"], json.loads(line)["images"]) == (real[1], NUM_IMAGES)


def test_without_the_file_nothing_is_said_of_it(vitscale_here, model, data):
    assert "real" not in json.loads(vitscale_here("eval", model, "--data", data, "--procs", 1).stdout)


def test_names_in_front_of_the_images_own_do_not_matter(vitscale_here, model, real, tmp_path):
    """Class folders and Hugging Face's names."""
    keys = [f"n01440764_{KEY.format(number)}_n01440764" for number in range(1, NUM_IMAGES + 1)]
    done = vitscale_here("eval", model, "--data", shards_of(tmp_path / "s", keys), "--real", real[0], "--procs", 1)
    assert json.loads(done.stdout)["real"] == real[1]


@pytest.mark.parametrize("key", ["photo7", KEY.format(0), KEY.format(41), "ILSVRC2012_val_7"])
def test_an_image_without_such_a_key_is_named(real, tmp_path, key):
    location = shards_of(tmp_path, [KEY.format(number) for number in range(1, 6)] + [key])
    with pytest.raises(DataError, match=f"sample {key}: no key of an image among the 40 of --real"):
        read_real(str(real[0]), Shards(read_manifest(location)), num_classes=5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", ": not a list of labels for each image"),
        ('{"a": 1}', ": not a list of labels for each image"),
        ("[]", ": not a list of labels for each image"),
        ('[[1], ["a"]]', r"\[1\]\[0\]: not a list of labels for each image"),
        ("[[1], [1.7]]", r"\[1\]\[0\]: not a list of labels for each image"),
        ("[[true]]", r"\[0\]\[0\]: not a list of labels for each image"),
        ("[1]", r"\[0\]: not a list of labels for each image"),
        ("[[1], [-1]]", r"\[1\]\[0\]: not a list of labels for each image"),
        ("[[1], [5]]", ": label 5, but the model has 5 classes"),
        (json.dumps([[]] * NUM_IMAGES), f": no labels for any of these {NUM_IMAGES} images"),
        (json.dumps([[]] * NUM_IMAGES + [[1]]), f": no labels for any of these {NUM_IMAGES} images"),
    ],
)
def test_a_file_that_is_no_such_list(data, tmp_path, content, said):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(DataError, match=rf"real\.json{said}"):
        read_real(str(tmp_path / "real.json"), Shards(read_manifest(data)), num_classes=5)
