"""`vitscale data order` and `simulate`: which keys are in a step, on which rank, and errors that say what to do."""

import json
import sys
import tarfile

import numpy as np
import pytest
from sharding import write_shards

from data_pipeline.order import Order
from data_pipeline.stream import Shards
from vitscale import cli

SIZES = {"a": [7, 1, 12, 5], "b": [3, 9]}
NUMBERS = ["--global-batch", 12, "--lanes", 6, "--shuffle-block", 4, "--seed", 3]
SCALE = ["--samples", "2e3", "--shards", 20, "--global-batch", 32]
KEYS = [f"{prefix}{i}" for prefix, sizes in SIZES.items() for i in range(sum(sizes))]  # by sample number


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listed")
    return [write_shards(folder, sizes, prefix) for prefix, sizes in SIZES.items()]


@pytest.fixture
def data(monkeypatch, capsys):
    """Run `vitscale data ...`: (exit status, lines of output, what stands in the error)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["vitscale", "data", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return done.value.code, out.splitlines(), err

    return run


def expected(steps, sources=2, seed=3, weights=None, repeated=1):
    """Keys of all slots of steps; batch 12, 6 lanes, blocks of 4."""
    sizes = [np.array(sizes) for sizes in list(SIZES.values())[:sources]]
    view = Order(sizes, 12, 6, 4, seed, weights, repeated).view(0, 6)
    return [[KEYS[sample] for sample in view.step(step).samples] for step in steps]


def numbers(manifests, steps, *more):
    locations = [manifest.location for manifest in manifests]
    return ["order", *locations, *NUMBERS, "--steps", steps, *more]


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_json_is_one_line_per_step_with_the_keys_of_each_rank(data, manifests, ranks):
    status, lines, _ = data(*numbers(manifests, "2:9", "--ranks", ranks, "--json"))
    found = [json.loads(line) for line in lines]
    size = 12 // ranks
    split = [[keys[i : i + size] for i in range(0, 12, size)] for keys in expected(range(2, 9))]
    assert (status, found) == (0, [{"step": step, "ranks": part} for step, part in zip(range(2, 9), split, strict=True)])


def test_lines_to_read_name_epoch_and_shard(data, manifests):
    _, lines, _ = data(*numbers(manifests[:1], "2:4", "--ranks", 2))
    words = [line.split("  ") for line in lines]
    assert [word[4] for word in words] == [key for step in expected([2, 3], sources=1) for key in step]
    assert [word[:2] for word in words] == [[f"step {s}", f"rank {r}"] for s in (2, 3) for r in (0, 1) for _ in range(6)]
    assert {word[2] for word in words} == {"epoch 0", "epoch 1"}  # 25 samples: the third batch spans two
    for *_, shard, key in words:
        with tarfile.open(shard) as tar:
            assert f"{key}.cls" in tar.getnames()


@pytest.mark.parametrize("repeated", [1, 3])
def test_a_recipe_says_the_same_and_numbers_go_before_it(data, manifests, write_recipe, repeated):
    recipe = f"""\
name: tiny
seed: 3
model: {{patch_size: 4, width: 8, depth: 2, num_heads: 2, mlp_dim: 16, image_size: 8, num_classes: 3}}
data:
  train:
    - {{manifest: {manifests[0].location}, weight: 2}}
    - {{manifest: {manifests[1].location}, weight: 1}}
  lanes: 6
  shuffle_block: 4
  repeated: {repeated}
train: {{global_batch: 12, total: {{epochs: 2}}}}
optim: {{lr: 1e-3}}
"""
    path = write_recipe(recipe)
    for seed, *given in ((3,), (0, "--seed", 0)):
        _, lines, _ = data("order", "--recipe", path, "--steps", "0:4", "--json", *given)
        assert [json.loads(line)["ranks"] for line in lines] == [
            [keys] for keys in expected(range(4), seed=seed, weights=[2, 1], repeated=repeated)
        ]


def test_defaults_are_those_of_a_recipe(data, manifests):
    _, lines, _ = data("order", manifests[0].location, "--global-batch", 5, "--steps", "0:9", "--json")
    view = Order([np.array(SIZES["a"])], 5, 5, 64, 0).view(0, 5)
    assert [json.loads(line)["ranks"][0] for line in lines] == [[KEYS[i] for i in view.step(s).samples] for s in range(9)]


@pytest.mark.parametrize("samples", [[0], [36, 0], [24, 25], [8, 3, 19], range(37)])
def test_samples_are_listed_by_number(manifests, samples):
    found = Shards(manifests).keys(samples)
    assert {sample: found[sample] for sample in samples} == {sample: KEYS[sample] for sample in samples}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lanes", 5], "5 lanes do not divide a global batch of 12"),
        (["--ranks", 5], "6 lanes cannot feed 5 ranks"),
        ([], "0 manifests; give one or more"),
        (["gone.json"], "gone.json"),
    ],
)
def test_what_does_not_fit_is_said_in_one_paragraph(data, manifests, words, said):
    if words == ["gone.json"]:
        words = ["order", "--recipe", "gone.json", "--steps", 0]
    else:
        words = numbers(manifests if words else [], "0", *words)
    status, lines, error = data(*words)
    assert (status, lines, error.count("\n")) == (1, [], 1)
    assert said in error


@pytest.mark.parametrize("words", [["--steps", "4:4"], ["--steps", "-1"], ["--steps", "a"], ["--seed", "-1"]])
def test_wrong_words_are_wrong_usage(data, manifests, words):
    status, lines, error = data("order", manifests[0].location, "--global-batch", 4, "--steps", 0, *words)
    assert (status, lines) == (2, [])
    assert error.startswith("usage: ")


def test_simulate_prints_json_or_a_table(data):
    status, lines, _ = data("simulate", *SCALE, "--ranks", 4, "--json")
    assert (status, len(lines)) == (0, 1)
    assert json.loads(lines[0])["samples_per_rank_and_step"] == 8
    _, lines, _ = data("simulate", *SCALE, "--ranks", 4)
    assert {"block_bytes 7,040,000", "window_mib 62.1"} <= {" ".join(line.split()) for line in lines}


def test_more_shards_than_samples(data):
    assert "--shards 20: more than the 2 samples" in data("simulate", "--samples", 2, "--shards", 20)[2]
