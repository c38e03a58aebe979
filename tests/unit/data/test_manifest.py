"""A manifest says what the files say, and every disagreement is an error that names the path."""

import dataclasses
import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from serving import http_server
from sharding import write_shards

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, index_beside, read_manifest, write_manifest
from data_pipeline.shardlist import list_shards
from data_pipeline.stream import Shards, where


def rewrite(manifest: Manifest, **columns: list) -> None:
    """Replace columns of the file."""
    content = json.loads(Path(manifest.location).read_text())
    content["shards"].update(columns)
    Path(manifest.location).write_text(json.dumps(content))


def num_members(shard: Path) -> int:
    with tarfile.open(shard) as tar:
        return len(tar.getnames())


def test_columns_are_those_of_the_files(train):
    content = json.loads(Path(train.location).read_text())
    files = [Path(train.location).parent / url for url in content["shards"]["urls"]]
    assert content["format"] == "vitscale-manifest-3"
    assert content["shards"]["bytes"] == [file.stat().st_size for file in files]
    assert content["shards"]["sha256"] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert content["shards"]["samples"] == [num_members(file) // 2 for file in files] == [7, 1, 4, 4, 4, 4, 1]


def test_reading_gives_what_the_file_says(train):
    content = json.loads(Path(train.location).read_text())
    found = read_manifest(train.location)
    assert found.urls == content["shards"]["urls"]
    assert found.samples.tolist() == content["shards"]["samples"]
    assert found.bytes.tolist() == content["shards"]["bytes"]
    assert found.sha256 == content["shards"]["sha256"]
    assert found.classes == ["ant", "bee", "cat"]
    assert found.num_samples == 25
    found.check()


def test_digest_names_the_content_and_not_the_place(train, copied):
    lines = "".join(f"{sha} {crc:08x}\n" for sha, crc in zip(train.sha256, train.index_crc32, strict=True))
    assert train.digest == copied.digest == hashlib.sha256(lines.encode()).hexdigest()
    reordered = dataclasses.replace(train, sha256=train.sha256[::-1], index_crc32=train.index_crc32[::-1])
    assert reordered.digest != train.digest


def test_a_moved_data_set_is_whole(copied):
    folder = Path(copied.location).parent
    moved = folder.rename(folder.parent / "moved")
    read_manifest(str(moved / "train.json")).check()


def test_shards_elsewhere_are_listed_by_their_absolute_path(copied, tmp_path):
    shards = [copied.shard(number) for number in range(2)]
    (tmp_path / "lists").mkdir()
    listed = list_shards(shards, tmp_path / "lists" / "mine.json")
    assert listed.urls == shards
    assert [read_manifest(str(tmp_path / "lists" / "mine.json")).shard(number) for number in range(2)] == shards


def test_writing_leaves_nothing_else_behind(train, tmp_path):
    write_manifest(dataclasses.replace(train, location=str(tmp_path / "only.json")))
    assert [path.name for path in tmp_path.iterdir()] == ["only.json"]


def test_a_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}/none.json: no manifest to read .*No such file"):
        read_manifest(str(tmp_path / "none.json"))


def test_a_folder_is_no_manifest(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        read_manifest(str(tmp_path))


NUMBERS = ("samples", "bytes", "index_bytes", "index_crc32", "label_min", "label_max")
ONE = {"sha256": ["x"], **{name: [1] for name in NUMBERS}}
SHARD = {"urls": ["a.tar"], **ONE}
FORMAT = "vitscale-manifest-3"


def document(**changes: object) -> dict:
    return {"format": FORMAT, "classes": [], "shards": {**SHARD, **changes}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        {"format": "webdataset", "classes": [], "shards": SHARD},
        {"format": FORMAT, "shards": SHARD},
        {"format": FORMAT, "classes": []},
        {"format": FORMAT, "classes": [], "shards": [1]},
        {"format": FORMAT, "classes": [], "shards": {"urls": ["a.tar"]}},
        document(samples=[1, 2]),
        document(samples=["many"]),
        document(samples=[None]),
        document(samples=[10**30]),
        document(label_max=[10**30]),
        document(samples=1),
        document(bytes=None),
        document(urls=[], **{name: [] for name in ONE}),
        b"\xff\xfe\x00",
    ],
    ids=str,
)
def test_another_json_is_no_manifest(tmp_path, content):
    path = tmp_path / "train.json"
    path.write_bytes(
        content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    with pytest.raises(DataError, match=rf"{path}: .*write it (with|anew)"):
        read_manifest(str(path))


def assert_check_names(manifest: Manifest, *words: object) -> None:
    with pytest.raises(DataError) as caught:
        read_manifest(manifest.location).check()
    assert all(str(word) in str(caught.value) for word in (manifest.location, "`vitscale data index`", *words))
    assert str(caught.value).count("copy") <= 1  # advice is given once


def test_a_missing_shard_is_an_error(copied):
    Path(copied.shard(2)).unlink()
    assert_check_names(copied, copied.shard(2), "No such file")


def test_a_shard_of_another_size_is_an_error(copied):
    size = Path(copied.shard(2)).stat().st_size
    with Path(copied.shard(2)).open("ab") as file:
        file.write(b"\0")
    assert_check_names(copied, copied.shard(2), size, size + 1)


def test_a_missing_index_is_an_error(copied):
    Path(copied.index(0)).unlink()
    assert_check_names(copied, copied.index(0), "No such file")


def test_the_index_of_a_shard_of_another_length_is_an_error(copied):
    shutil.copy(copied.index(1), copied.index(0))
    rewrite(copied, index_bytes=[copied.index_bytes[1].item(), *copied.index_bytes.tolist()[1:]])
    assert_check_names(copied, copied.index(0), "samples 1 for 7")


def test_an_index_of_another_size_is_an_error(copied):
    with Path(copied.index(4)).open("ab") as file:
        file.write(b"more")
    assert_check_names(copied, copied.index(4), copied.index_bytes[4], copied.index_bytes[4] + 4)


def test_wrong_numbers_of_samples_are_an_error(copied):
    rewrite(copied, samples=[8, *copied.samples.tolist()[1:]])
    assert_check_names(copied, copied.index(0), 7, 8)


def test_a_damaged_index_is_an_error(copied):
    Path(copied.index(3)).write_bytes(b"VSINDEX0" * (copied.index_bytes[3] // 8) + b"x" * (copied.index_bytes[3] % 8))
    with pytest.raises(DataError, match=re.escape(copied.index(3)) + ": not an index of this version"):
        copied.check()


def test_an_index_that_was_written_anew_with_other_labels_is_an_error(write_tar, tmp_path):
    members = [(f"{n}.{kind}", content) for n in range(3) for kind, content in (("jpg", b""), ("json", b'{"a": 0, "b": 1}'))]
    shard = write_tar("shard.tar", members)
    first = list_shards([shard], tmp_path / "a.json", rule="json:a")
    first.check()
    second = list_shards([shard], tmp_path / "b.json", rule="json:b")
    second.check()
    with pytest.raises(DataError, match=r"a.json: .*shard.idx is not the one that it lists \(index_crc32 .*--label"):
        first.check()


@pytest.mark.parametrize("num_classes", [2, 4])
def test_another_number_of_classes_is_an_error(train, num_classes):
    with pytest.raises(DataError, match=rf"{train.location}: 3 classes, but model.num_classes is {num_classes}"):
        train.check_labels(num_classes)


@pytest.mark.parametrize("label", [-1, 3, 10])
def test_labels_out_of_range_are_an_error(write_tar, tmp_path, label):
    members = [("a.jpg", b""), ("a.cls", b"0"), ("b.jpg", b""), ("b.cls", str(label).encode())]
    listed = list_shards([write_tar("shard.tar", members)], tmp_path / "list.json")
    with pytest.raises(DataError, match=rf"{tmp_path}/shard.tar: labels .*{label}.*model.num_classes 3 .*0..2"):
        listed.check_labels(3)


def test_labels_in_range_pass(train):
    train.check_labels(3)


def test_shards_without_samples_are_not_listed(write_tar, tmp_path):
    with pytest.raises(DataError, match=r"empty.tar: no samples"):
        list_shards([write_tar("empty.tar", [])], tmp_path / "list.json")
    assert not (tmp_path / "list.json").exists()


def test_samples_are_counted_in_64_bits(tmp_path):
    two = document(urls=["a", "b"], **{**{name: values * 2 for name, values in ONE.items()}, "samples": [2**40, 2**41]})
    (tmp_path / "big.json").write_text(json.dumps(two))
    manifest = read_manifest(str(tmp_path / "big.json"))
    assert manifest.samples.dtype == np.int64
    assert manifest.num_samples == 2**40 + 2**41


def test_classes_in_another_order_are_another_set(train):
    train.check_classes(train.classes, "the model")
    train.check_classes([], "a set without names")
    with pytest.raises(DataError, match="not those of the model"):
        train.check_classes(list(reversed(train.classes)), "the model")


def test_remote_shards_are_looked_at_by_sample(tmp_path):
    manifest = write_shards(tmp_path, [1] * 200)
    with http_server(tmp_path) as url:
        remote = read_manifest(f"{url}/k.json")
        assert remote.shard(3) == f"{url}/k-003.tar"
        remote.check()
        Path(manifest.shard(199)).unlink()  # the first, the last and some between are asked for
        with pytest.raises(DataError, match=r"k-199.tar: does not exist on the server"):
            remote.check()


def test_errors_hold_no_credentials_of_urls(tmp_path):
    write_shards(tmp_path, [3])
    (tmp_path / "broken.json").write_text("{")
    with http_server(tmp_path) as server:
        url = server.replace("://", "://me:secret@")
        remote = read_manifest(f"{url}/k.json?sign=secret")
        columns = {name: getattr(remote, name) + 1 for name in ("samples", "bytes", "index_bytes", "index_crc32")}
        checks = [dataclasses.replace(remote, **{name: changed}).check for name, changed in columns.items()]
        checks += [lambda name=name: read_manifest(f"{url}/{name}?sign=secret") for name in ("none.json", "broken.json")]
        for check in (*checks, lambda: remote.check_labels(1)):
            with pytest.raises(DataError, match=server) as error:
                check()
            assert "secret" not in str(error.value)
        assert where(Shards(remote), 2) == f"{server}/k-000.tar: sample k2"


def test_an_index_may_lie_elsewhere(tmp_path):
    manifest = dataclasses.replace(write_shards(tmp_path, [2, 3]), index_dir="here")
    assert manifest.index(1) == str(tmp_path / "here" / "000001.idx")
    remote = dataclasses.replace(manifest, location="https://host/data/train.json?token=1", index_dir="")
    assert remote.index(1) == "https://host/data/k-001.idx"
    assert index_beside("https://host/a.tar?token=1") == "https://host/a.idx?token=1"
