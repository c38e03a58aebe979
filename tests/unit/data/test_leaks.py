"""`leaks` finds images that two data sets share, by their bytes, and nothing else."""

import json
import zlib

import numpy as np
import pytest
from sharding import jpeg, write_tar

from data_pipeline.errors import DataError
from data_pipeline.leaks import candidates, leaks
from data_pipeline.manifest import Manifest
from data_pipeline.shardlist import list_shards
from vitscale.cli import build_parser

# A difference that CRC-32 cannot see: its own polynomial, first bits first.
UNSEEN = bytes(int(f"{0x104C11DB7 << 7:040b}"[start : start + 8][::-1], 2) for start in range(0, 40, 8))


@pytest.fixture
def listed(tmp_path):
    """listed(name, {key: image}, ...) -> manifest of a shard for each dictionary; image i of a shard has label i."""

    def listed(name: str, *shards: dict[str, bytes]) -> Manifest:
        tars = []
        for number, images in enumerate(shards):
            members = [
                member
                for label, (key, image) in enumerate(images.items())
                for member in ((f"{key}.jpg", image), (f"{key}.cls", str(label).encode()))
            ]
            tars.append(write_tar(tmp_path / f"{name}{number}.tar", members))
        return list_shards(tars, tmp_path / f"{name}.json")

    return listed


def pairs(a: Manifest, b: Manifest) -> list[tuple[str, str, int]]:
    return [(leak.a.key, leak.b.key, leak.times) for leak in leaks(a, b)]


def test_shared_images_are_found_wherever_they_lie(listed):
    a = listed("a", {"a0": jpeg(0), "a1": jpeg(1)}, {"a2": jpeg(2), "a3": jpeg(1)})
    b = listed("b", {"b0": jpeg(9), "b1": jpeg(2)}, {"b2": jpeg(1), "b3": jpeg(8), "b4": jpeg(1)})
    assert pairs(a, b) == [("a1", "b2", 2), ("a2", "b1", 1), ("a3", "b2", 2)]
    assert pairs(b, a) == [("b1", "a2", 1), ("b2", "a1", 2), ("b4", "a1", 2)]
    (_, second, _) = leaks(a, b)
    assert second.a == (a.shard(1), "a2", 0)
    assert second.b == (b.shard(0), "b1", 1)


def test_equal_sums_are_no_proof(listed):
    image = jpeg(3)
    other = image[:40] + bytes(x ^ y for x, y in zip(image[40:45], UNSEEN, strict=True)) + image[45:]
    assert (len(other), zlib.crc32(other)) == (len(image), zlib.crc32(image)) and other != image
    a, b = listed("a", {"same": jpeg(4), "alike": image}), listed("b", {"other": other, "twin": jpeg(4)})
    assert pairs(a, b) == [("same", "twin", 1)]


def test_many_shards_and_long_runs(listed):
    """More than are read at once, with gaps, in another order: against a dictionary."""
    rng = np.random.default_rng(0)
    theirs = {f"b{number}": rng.bytes(20) for number in range(300)}
    ours = {f"a{number}": theirs[f"b{299 - number}"] if number % 7 else rng.bytes(20) for number in range(200)}
    keys = {content: key for key, content in theirs.items()}
    expected = [(key, keys[content], 1) for key, content in ours.items() if content in keys]
    a = listed("a", dict(list(ours.items())[:150]), dict(list(ours.items())[150:]))
    assert pairs(a, listed("b", theirs)) == expected
    assert len(expected) == 171


def test_candidates_against_sets():
    rng = np.random.default_rng(0)
    kind = [("size", "<u4"), ("crc32", "<u4")]
    a, b = (np.array([(size, crc) for size, crc in rng.integers(0, 12, (count, 2))], kind) for count in (60, 90))
    in_a, in_b = candidates(a, b)
    assert in_a.tolist() == [number for number, row in enumerate(a.tolist()) if row in set(b.tolist())]
    assert in_b.tolist() == [number for number, row in enumerate(b.tolist()) if row in set(a.tolist())]
    assert 0 < len(in_a) < 60


def test_a_damaged_image_is_an_error(listed, tmp_path):
    a, b = listed("a", {"one": jpeg(1)}), listed("b", {"two": jpeg(1)})
    shard = tmp_path / "b0.tar"
    shard.write_bytes(shard.read_bytes().replace(jpeg(1), jpeg(1)[:-1] + b"\0"))
    with pytest.raises(DataError, match=r"b0.tar: sample two: its bytes differ"):
        list(leaks(a, b))


def run(*words: str) -> int:
    args = build_parser().parse_args(["data", "leaks", *words])
    return args.command(args)


def test_the_command_says_how_it_went(listed, capsys):
    a, b = listed("a", {"a0": jpeg(0), "a1": jpeg(1)}), listed("b", {"b0": jpeg(1), "b1": jpeg(1)})
    c = listed("c", {"c0": jpeg(2)})
    assert run(a.location, c.location) == 0
    assert f"{a.location}: 0 of 2 images are in {c.location}, byte for byte" in capsys.readouterr().out
    assert run(a.location, b.location) == 1
    first, _ = capsys.readouterr().out.splitlines()
    assert first == f"{a.shard(0)}: sample a1 (label 1) = {b.shard(0)}: sample b0 (label 0) and 1 more"
    assert run(a.location, b.location, "--json") == 1
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["a"] == {"shard": a.shard(0), "key": "a1", "label": 1}
    assert first["b"] == {"shard": b.shard(0), "key": "b0", "label": 0}
    assert first["times_in_b"] == 2
    assert last == {"a": a.location, "b": b.location, "images": 2, "in_b": 1}
