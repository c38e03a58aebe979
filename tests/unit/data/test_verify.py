"""`check` names every kind of damage with its shard and key, goes on behind it, and is silent about a whole data set."""

import dataclasses
import io
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import http_server
from sharding import jpeg, write_tar

from data_pipeline.index import decode_index, encode_index
from data_pipeline.manifest import Manifest, read_manifest, write_manifest
from data_pipeline.shardlist import list_shards
from data_pipeline.verify import check
from vitscale.cli import build_parser


def members(keys, label=lambda number: number % 3, image=jpeg):
    """An image and a label for each key."""
    pairs = [((f"{key}.jpg", image(number)), (f"{key}.cls", str(label(number)).encode())) for number, key in enumerate(keys)]
    return [member for pair in pairs for member in pair]


@pytest.fixture
def whole(tmp_path) -> Manifest:
    """Three shards of 3, 1 and 4 images with keys a0, a1, ..."""
    keys = iter([f"a{number}" for number in range(8)])
    tars = [
        write_tar(tmp_path / f"{number}.tar", members([next(keys) for _ in range(size)]))
        for number, size in enumerate((3, 1, 4))
    ]
    return list_shards(tars, tmp_path / "set.json", ["ant", "bee", "cat"])


def problems(manifest: Manifest, workers: int = 1, **checks) -> list[str]:
    """As lines, the folder of the manifest left out."""
    folder = manifest.location.rpartition("/")[0] + "/"
    found = check(manifest, workers, **checks)
    return [str(problem).replace(folder, "") for report in found for problem in report.problems]


def change(path: str, old: bytes, new: bytes) -> None:
    content = Path(path).read_bytes()
    assert content.count(old) == 1
    Path(path).write_bytes(content.replace(old, new))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_data_set_has_no_problems(whole, workers):
    assert problems(whole, workers) == problems(whole, workers, quick=True) == []


def test_a_flipped_byte_of_an_image_is_named(whole):
    image = jpeg(1)
    change(whole.shard(2), image, image[:-40] + bytes([image[-40] ^ 1]) + image[-39:])
    shard, sample = problems(whole)
    assert shard.startswith("2.tar: is not as its manifest says: sha256 ")
    assert sample == "2.tar: sample a5: its bytes differ from the index (CRC-32)"


def test_a_changed_label_is_named(whole):
    content = bytearray(Path(whole.shard(0)).read_bytes())
    content[content.index(b"a1.cls") + 512] = ord("0")
    Path(whole.shard(0)).write_bytes(content)
    (line,) = problems(whole)
    assert "0.tar: is not as its manifest says: sha256 " in line


def test_a_changed_key_is_named(whole):
    content = Path(whole.shard(0)).read_bytes().replace(b"a1.", b"a7.")
    header = content.index(b"a7.jpg")
    for start in (header, content.index(b"a7.cls")):  # the tar stays sound: each header's sum is that of its bytes
        block = bytearray(content[start : start + 512])
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        content = content[:start] + block + content[start + 512 :]
    Path(whole.shard(0)).write_bytes(content)
    line = problems(whole)[1]
    assert line.startswith("0.tar: sample a7: its index says Entry(key='a1', ") and "the tar Entry(key='a7', " in line


@pytest.mark.parametrize("kept", [512 * 3, 512 * 9, 512 * 9 + 100, 512 * 14])
def test_a_truncated_shard_is_named_with_what_it_lost(whole, kept):
    content = Path(whole.shard(2)).read_bytes()
    Path(whole.shard(2)).write_bytes(content[:kept])
    found = problems(whole)
    assert f"2.tar: is not as its manifest says: bytes {kept} for {len(content)}, sha256" in found[0]
    assert "2.tar: " in found[1] and ("truncated" in found[1] or "not a readable tar" in found[1])
    lost = [key for key in ("a4", "a5", "a6", "a7") if content.index(f"{key}.cls".encode()) > kept]
    assert len([line for line in found if f"sample {lost[0]}: its image lies behind the end" in line]) == 1
    assert len(found) == 3


def test_a_lost_end_of_the_archive_is_named(whole):
    content = Path(whole.shard(2)).read_bytes()
    Path(whole.shard(2)).write_bytes(content.rstrip(b"\0").ljust(-(-len(content.rstrip(b"\0")) // 512) * 512, b"\0"))
    size, structure = problems(whole)
    assert "2.tar: is not as its manifest says: bytes" in size
    assert "2.tar: no end-of-archive blocks" in structure


def test_undecodable_images_are_named_and_quick_sees_what_headers_say(tmp_path):
    good = jpeg(0)
    images = [good, good[:-60], b"no image", b"\x89PNG\r\n\x1a\n", b""]
    manifest = list_shards([write_tar(tmp_path / "0.tar", members("abcde", image=images.__getitem__))], tmp_path / "set.json")
    assert [line.split()[2] for line in problems(manifest)] == ["b:", "c:", "d:", "e:"]
    assert [line.split()[2] for line in problems(manifest, quick=True)] == ["c:", "d:", "e:"]


def test_a_decompression_bomb_is_named_and_not_unpacked(tmp_path):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    manifest = list_shards(
        [write_tar(tmp_path / "0.tar", [("a.png", file.getvalue()), ("a.cls", b"0")])], tmp_path / "set.json"
    )
    for quick in (False, True):
        (line,) = problems(manifest, quick=quick)
        assert "0.tar: sample a: not a readable image (" in line


def test_keys_that_come_again_are_named(tmp_path):
    tars = [
        write_tar(tmp_path / f"{number}.tar", members(keys)) for number, keys in enumerate((["x", "y"], ["z", "x"], ["y", "x"]))
    ]
    found = problems(list_shards(tars, tmp_path / "set.json"))
    assert sorted(found) == [
        "1.tar: sample x: the key came before, in 0.tar",
        "2.tar: sample x: the key came before, in 1.tar",
        "2.tar: sample y: the key came before, in 0.tar",
    ]


def test_an_index_of_an_older_shard_is_named(whole, tmp_path):
    """The images lie at the same places, so that no checksum of theirs fails: only the labels are those of an older shard."""
    keep = tmp_path / "old.idx"
    shutil.copy(whole.index(0), keep)
    write_tar(tmp_path / "0.tar", members(["a0", "a1", "a2"], label=lambda number: 2 - number))
    manifest = list_shards([whole.shard(number) for number in range(3)], tmp_path / "set.json", ["ant", "bee", "cat"])
    assert problems(manifest) == []
    shutil.copy(keep, manifest.index(0))
    (line,) = problems(manifest)
    assert line.startswith("0.tar: is not as its manifest says: index_crc32 ")


def test_an_index_that_points_elsewhere_is_named_though_the_manifest_knows_it(whole):
    shifted = [entry._replace(lead=entry.lead + 512) for entry in decode_index(Path(whole.index(2)).read_bytes(), "2.idx")]
    Path(whole.index(2)).write_bytes(encode_index(shifted))
    whole.index_crc32[2] = zlib.crc32(Path(whole.index(2)).read_bytes())
    (line,) = problems(whole)
    assert line.startswith("2.tar: sample a4: its index says Entry(key='a4', ")
    assert line.endswith("; and 3 samples more")


def test_every_flipped_byte_of_an_index_is_found(whole):
    index = Path(whole.index(0))
    content = index.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        index.write_bytes(damaged)
        assert problems(whole, quick=True), f"byte {place}"
        assert all(line.startswith("0.tar: ") for line in problems(whole, quick=True))
    index.write_bytes(content)
    assert problems(whole) == []


@pytest.mark.parametrize("damaged", ["shard", "index"])
def test_any_damage_is_a_problem_and_no_exception(whole, damaged):
    """Cut short, scribbled over, pieces lost, pieces added."""
    path = Path(getattr(whole, damaged)(0))
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for number in range(120):
        start, end = sorted(rng.integers(0, len(content), 2).tolist())
        scribbled = bytearray(content)
        scribbled[start] ^= int(rng.integers(1, 256))
        added = content[:start] + rng.bytes(end - start + 1) + content[start:]
        path.write_bytes([content[:start], scribbled, content[:start] + content[end + 1 :], added][number % 4])
        assert problems(whole), (number, start, end)


def test_what_is_missing_is_named_and_the_rest_is_checked(whole):
    Path(whole.shard(0)).unlink()
    Path(whole.index(1)).unlink()
    change(whole.shard(2), jpeg(3), jpeg(3)[:-20] + b"\0" * 20)
    found = problems(whole)
    assert [line.partition(":")[0] for line in found] == ["0.tar", "1.tar", "2.tar", "2.tar"]
    assert "no such shard" in found[0] and "1.idx" in found[1] and "sample a7" in found[3]


def test_labels_that_are_no_class_are_named(whole):
    (first, second) = problems(whole, num_classes=2)
    assert first == "0.tar: sample a2: label 2 (-1 = none) is not within 0..1"
    assert second.startswith("2.tar: sample a6: label 2")
    write_manifest(dataclasses.replace(whole, classes=["ant"]))
    assert problems(read_manifest(whole.location))[0].endswith("is not within 0..0; and 1 samples more")


def test_labels_are_those_of_the_index_by_whatever_rule(tmp_path):
    tar = write_tar(tmp_path / "0.tar", [("a.jpg", jpeg(0)), ("a.json", b'{"kind": "bee"}')])
    manifest = list_shards([tar], tmp_path / "set.json", ["ant", "bee"], "json:kind")
    assert problems(manifest) == []
    assert problems(manifest, num_classes=1) == ["0.tar: sample a: label 1 (-1 = none) is not within 0..0"]


def test_a_set_without_labels_is_whole_unless_classes_are_asked_for(tmp_path):
    manifest = list_shards([write_tar(tmp_path / "0.tar", [("a.jpg", jpeg(0))])], tmp_path / "set.json", rule="none")
    assert problems(manifest) == []
    assert problems(manifest, num_classes=3) == ["0.tar: sample a: label -1 (-1 = none) is not within 0..2"]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("samples", [3, 2, 3], "samples 1 for 2"),
        ("bytes", [1, 1, 1], "bytes 10240 for 1"),
        ("sha256", ["0", "0", "0"], "sha256 "),
        ("index_bytes", [1, 1, 1], "index_bytes "),
        ("label_max", [1, 0, 2], "label_max 2 for 1"),
    ],
)
def test_a_manifest_that_says_otherwise_is_named(whole, column, value, said):
    array = value if column == "sha256" else np.array(value)
    found = problems(dataclasses.replace(whole, **{column: array}))
    assert any(line.partition(": ")[2].startswith(f"is not as its manifest says: {said}") for line in found)


def test_remote_shards_are_checked_as_local_ones(whole):
    change(whole.shard(2), jpeg(1), jpeg(1)[:-20] + b"\0" * 20)
    folder = Path(whole.location).parent
    with http_server(folder) as url:
        remote = read_manifest(f"{url}/set.json")
        assert problems(remote, workers=2) == problems(whole)


def verify(*words: str) -> int:
    args = build_parser().parse_args(["data", "verify", *words, "--workers", "1"])
    return args.command(args)


def test_the_command_says_how_it_went(whole, capsys):
    assert verify(whole.location) == 0
    assert capsys.readouterr() == (f"{whole.location}: 8 images in 3 shards, 0 problems\n", "")
    assert verify(whole.location, whole.location, "--num-classes", "2") == 1
    out, err = capsys.readouterr()
    line = f"{whole.location}: 8 images in 3 shards, 2 problems"
    assert (out.splitlines()[::3], err) == ([f"{whole.shard(0)}: sample a2: label 2 (-1 = none) is not within 0..1"] * 2, "")
    assert out.splitlines()[2::3] == [line] * 2
    assert verify(whole.location, "--num-classes", "2", "--json") == 1
    first, _, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["shard"], first["key"]) == (whole.shard(0), "a2")
    assert last == {"manifest": whole.location, "images": 8, "shards": 3, "problems": 2}
