"""`stats` counts what is there: against data sets whose numbers are known."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from sharding import write_tar

from data_pipeline.errors import DataError
from data_pipeline.shardlist import list_shards
from data_pipeline.stats import stats
from vitscale.cli import build_parser


def image(width: int, height: int, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def mixed(tmp_path):
    """Five images in two shards: labels 0 0 1 0 3 of four classes, one damaged, one JPEG turned by its EXIF."""
    turned = Image.Exif()
    turned[0x0112] = 6
    images = [
        image(30, 20, "JPEG", restart_marker_blocks=1),
        image(60, 20, "PNG"),
        image(10, 40, "WEBP"),
        b"damaged",
        image(50, 10, "JPEG", exif=turned),
    ]
    members = []
    for number, (content, label) in enumerate(zip(images, (0, 0, 1, 0, 3), strict=True)):
        members += [(f"{number}.png", content), (f"{number}.cls", str(label).encode())]
    tars = [write_tar(tmp_path / "0.tar", members[:8]), write_tar(tmp_path / "1.tar", members[8:])]
    return list_shards(tars, tmp_path / "set.json", ["ant", "bee", "cat", "dog"]), images


def test_everything_is_counted(mixed):
    manifest, images = mixed
    found = stats(manifest, 100, seed=0)
    sizes = [len(image) for image in images]
    assert (found["images"], found["shards"], found["without_label"]) == (5, 2, 0)
    assert found["bytes"] == sum(found["bytes_per_shard"][end] for end in ("min", "max"))
    assert [found["images_per_shard"][name] for name in ("min", "median", "max")] == [1, 2.5, 4]
    assert [found["bytes_per_image"][name] for name in ("min", "median", "max")] == [min(sizes), np.median(sizes), max(sizes)]
    assert [row["images"] for row in found["histogram"]] == [3, 1, 0, 1]
    assert [row["class"] for row in found["histogram"]] == ["ant", "bee", "cat", "dog"]


def test_sizes_and_formats_are_those_of_the_images(mixed):
    sampled = stats(mixed[0], 100, seed=0)
    assert (sampled["sampled"], sampled["damaged"]) == (5, 1)
    assert sampled["formats"] == {"jpg": 2, "png": 1, "webp": 1}
    assert sampled["restart_markers"] == 1 / 4
    assert [sampled["width"][name] for name in ("min", "median", "max")] == [10, 20, 60]
    assert [sampled["height"][name] for name in ("min", "median", "max")] == [20, 30, 50]
    assert sampled["aspect"]["max"] == 3


def test_a_sample_is_drawn_without_repetition_and_by_the_seed(tmp_path):
    images = [(f"{number}.png", image(number + 1, 1, "PNG")) for number in range(40)]
    manifest = list_shards([write_tar(tmp_path / "0.tar", images)], tmp_path / "set.json", rule="none")
    widths = [stats(manifest, 39, seed)["width"] for seed in (0, 0, 1, 2, 3)]
    assert widths[0] == widths[1]
    assert all(round(width["median"] * 2) in range(40, 44) for width in widths)  # only one of 1..40 may lack
    assert len({tuple(width.values()) for width in widths}) > 1
    found = stats(manifest, 3, seed=0)
    assert (found["sampled"], found["without_label"], found["histogram"]) == (3, 40, [])


def test_columns_are_those_of_the_tars(mixed):
    manifest, images = mixed
    columns = manifest.columns("label", "size")
    assert columns["size"].tolist() == [len(image) for image in images]
    assert columns["label"].tolist() == [0, 0, 1, 0, 3]


def test_an_index_of_another_length_is_an_error(mixed):
    manifest, _ = mixed
    manifest.samples[:] = manifest.samples[::-1]
    with pytest.raises(DataError, match=r"0.idx: 4 samples, but .*set.json says 1; write both anew"):
        stats(manifest, 1, seed=0)


def run(*words: str) -> int:
    args = build_parser().parse_args(["data", "stats", *words])
    return args.command(args)


def test_the_command_prints_a_table_or_json(mixed, capsys):
    manifest, _ = mixed
    assert run(manifest.location) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["manifest", manifest.location], ["images", "5"], ["shards", "2"]]
    assert "images_per_shard min 1 p5 1.15 median 2.5 p95 3.85 max 4" in map(" ".join, lines)
    assert [line for line in lines if line[0] in ("sampled", "damaged")] == [["sampled", "5"], ["damaged", "1"]]
    assert [line for line in lines if line[0] in ("formats", "restart_markers")] == [
        ["formats", "jpg", "2", "png", "1", "webp", "1"],
        ["restart_markers", "0.25"],
    ]
    assert lines[-4:] == [["3", "ant", "#" * 40], ["1", "bee", "#" * 13], ["1", "dog", "#" * 13], ["0", "cat"]]
    assert run(manifest.location, "--json", "--sample", "2") == 0
    assert json.loads(capsys.readouterr().out) == stats(manifest, 2, seed=0)
