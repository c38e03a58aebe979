"""Counting right guesses, against numpy that sorts and counts one by one."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.loader import Batch
from data_pipeline.order import Slots
from vitscale.tally import NUM_ERRORS, NUM_SHOWN, Tally, count, summarise

KINDS = (torch.float32, torch.int64, torch.float32)  # of logits, labels and weights


def reference(logits, labels, weights):
    """(top-1, top-5, loss, images) by ranking every class in float64."""
    rank = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(axis=1)  # classes that beat the true one
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return np.array([((rank < 1) * weights).sum(), ((rank < 5) * weights).sum(), (loss * weights).sum(), weights.sum()])


@pytest.mark.parametrize("num_classes", [2, 5, 6, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_equal_numpys(num_classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.linspace(-4, 4, num_classes * 64).reshape(64, num_classes), axis=1)  # no ties
    labels = rng.integers(num_classes, size=64)
    labels[::2] = logits[::2].argmax(axis=1)
    weights = rng.integers(0, 2, size=64).astype(np.float64)
    found = count(*(torch.from_numpy(values).to(kind) for values, kind in zip((logits, labels, weights), KINDS, strict=True)))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, reference(logits, labels, weights), rtol=1e-6)


def test_padding_counts_nowhere():
    logits, labels = torch.eye(3), torch.tensor([0, 1, 2])
    alone = count(logits[:1], labels[:1], torch.ones(1))
    padded = count(logits, labels, torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(alone, padded)
    assert padded.tolist()[3] == 1


def test_five_guesses_are_right_where_one_is_not():
    logits = torch.arange(8.0).repeat(8, 1)  # class 7 first, then 6, ...
    found = [count(logits[:1], torch.tensor([label]), torch.ones(1))[:2].tolist() for label in range(8)]
    assert found == [[0, 0]] * 3 + [[0, 1]] * 4 + [[1, 1]]


def test_sums_become_means_over_images():
    summary = summarise(torch.tensor([3.0, 6.0, 1.5, 12.0], dtype=torch.float64))
    assert summary == {"top1": 0.25, "top5": 0.5, "loss": 0.125, "images": 12}


def batches(labels, weights, size=25, side=8):
    """Evaluation batches of grey images whose brightness is the label."""
    images = torch.as_tensor(labels)[:, None, None, None].expand(-1, side, side, 3).to(torch.uint8)
    zeros = torch.zeros(len(labels))
    whole = Batch(
        images,
        torch.as_tensor(labels),
        zeros,
        zeros,
        zeros,
        zeros,
        zeros,
        torch.as_tensor(weights).float(),
        Slots(labels, labels),
    )
    return whole.split(size)


def tallied(num_classes, num_images=100, seed=0):
    """A tally, and the true labels, guesses and weights in it."""
    rng = np.random.default_rng(seed)
    labels, guesses = rng.integers(num_classes, size=(2, num_images))
    guesses[::3] = labels[::3]
    weights = (np.arange(num_images) < num_images - 7).astype(int)
    tally = Tally(num_classes, torch.device("cpu"))
    for batch, part in zip(batches(labels, weights), torch.as_tensor(guesses).split(25), strict=True):
        tally.add(batch, torch.nn.functional.one_hot(part, num_classes) * 9.0)
    return tally, labels, guesses, weights


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("num_classes", [2, 7, 100])
def test_confusions_are_counted_image_by_image(num_classes, tmp_path):
    tally, labels, guesses, weights = tallied(num_classes)
    expected = np.zeros((num_classes, num_classes), int)
    np.add.at(expected, (labels, guesses), weights)
    names = [f"class, {number}" for number in range(num_classes)]
    tally.write(tmp_path, names)
    header, *table = rows(tmp_path / "confusion.csv")
    assert header[1:] == [row[0] for row in table] == names
    assert [[int(cell) for cell in row[1:]] for row in table] == expected.tolist()


@pytest.mark.parametrize("num_classes", [7, 100, 101, 1000, 1001])
def test_accuracy_by_class(num_classes, tmp_path):
    tally, labels, guesses, weights = tallied(num_classes)
    tally.write(tmp_path, [])
    header, *table = rows(tmp_path / "per_class.csv")
    assert header == ["class", "images", "right", "accuracy"]
    for number, (name, images, right, accuracy) in enumerate(table):
        mine = weights * (labels == number)
        expected = mine.sum(), (mine * (guesses == number)).sum()
        assert (name, int(images), int(right)) == (str(number), *expected)
        assert float(accuracy or -1) == pytest.approx(expected[1] / expected[0] if expected[0] else -1)
    assert sum(int(row[2]) for row in table) == tally.metrics["top1"] * tally.metrics["images"]


def test_of_many_classes_the_commonest_errors_are_listed(tmp_path):
    tally, labels, guesses, weights = tallied(101, num_images=5000)
    tally.write(tmp_path, [])
    wrong = {}
    for true, guess in zip(labels[weights > 0].tolist(), guesses[weights > 0].tolist(), strict=True):
        wrong[str(true), str(guess)] = wrong.get((str(true), str(guess)), 0) + (true != guess)
    header, *table = rows(tmp_path / "confusions.csv")
    assert header == ["true", "predicted", "images"]
    assert len(table) == NUM_ERRORS
    assert [int(row[2]) for row in table] == sorted(wrong.values(), reverse=True)[:NUM_ERRORS]
    assert all(wrong[true, guess] == int(images) for true, guess, images in table)


def test_files_by_number_of_classes(tmp_path):
    for num_classes, found in ((100, ["confusion.csv"]), (1000, ["confusions.csv"]), (1001, [])):
        tallied(num_classes)[0].write(tmp_path / str(num_classes), [])
        names = sorted(path.name for path in (tmp_path / str(num_classes)).iterdir())
        assert names == sorted([*found, "per_class.csv", "predictions.png"])


def test_predictions_show_the_first_images(tmp_path):
    tally, labels, *_ = tallied(200)
    tally.write(tmp_path, [])
    with Image.open(tmp_path / "predictions.png") as sheet:
        shown = [sheet.getpixel((12 + 140 * column + 64, 12 + 172 * row + 64)) for row in range(4) for column in range(4)]
    assert [pixel[0] for pixel in shown] == labels[:NUM_SHOWN].tolist()
