"""`problems` names every kind of damage, once, and is silent about a whole data set."""

import shutil

import pytest

from data_pipeline.build import list_shards
from data_pipeline.errors import DataError
from data_pipeline.index import index_path
from data_pipeline.verify import problems


def test_a_whole_data_set_has_no_problems(built):
    assert [list(problems(manifest)) for manifest in built.values()] == [[], []]


def test_a_flipped_byte_is_one_damaged_shard_and_one_damaged_sample(copied, tar_contents):
    key, image, _ = tar_contents(copied)[9]
    content = bytearray(copied.shard(2).read_bytes())
    content[content.index(image) + 20] ^= 1
    copied.shard(2).write_bytes(content)
    shard, sample = problems(copied)
    assert "train-00002.tar" in shard
    assert "SHA-256" in shard
    assert "train-00002.tar: sample number 9" in sample
    assert key in sample


def test_a_changed_label_is_a_damaged_shard(copied):
    content = copied.shard(1).read_bytes()
    label = (content.index(b".cls") // 512 + 1) * 512  # behind the block that names it
    copied.shard(1).write_bytes(content[:label] + b"9" + content[label + 1 :])
    assert ["SHA-256" in problem for problem in problems(copied)] == [True]


def test_undecodable_images_are_named(write_tar, tmp_path, encode, picture):
    good = encode(picture(9, 9), "JPEG")
    members = [("a.jpg", good), ("a.cls", b"0"), ("b.jpg", good[:100]), ("b.cls", b"0"), ("c.png", b"no"), ("c.cls", b"0")]
    manifest = list_shards([write_tar("shard.tar", members)], tmp_path / "list.json", [])
    first, second = problems(manifest)
    assert "shard.tar: sample number 1" in first
    assert "shard.tar: sample number 2" in second


def test_keys_that_came_before_are_named(write_tar, tmp_path, encode, picture):
    members = [("same.png", encode(picture(9, 9), "PNG")), ("same.cls", b"0")]
    shards = [write_tar("one.tar", members), write_tar("two.tar", members)]
    (problem,) = problems(list_shards(shards, tmp_path / "list.json", []))
    assert "two.tar: sample same" in problem


def test_an_index_that_does_not_describe_its_shard_is_named(write_tar, tmp_path, encode, picture):
    """The images lie at the same places, so that no checksum fails: only the labels are those of an older shard."""
    image = encode(picture(9, 9), "PNG")
    old, new = ([("a.png", image), ("a.cls", label)] for label in (b"0", b"1"))
    list_shards([write_tar("shard.tar", old)], tmp_path / "old.json", [])
    shutil.copy(index_path(tmp_path / "shard.tar"), tmp_path / "old.idx")
    manifest = list_shards([write_tar("shard.tar", new)], tmp_path / "new.json", [])
    assert list(problems(manifest)) == []
    shutil.copy(tmp_path / "old.idx", index_path(tmp_path / "shard.tar"))
    (problem,) = problems(manifest)
    assert "shard.tar: its index" in problem


def test_a_missing_shard_is_an_error(copied):
    copied.shard(3).unlink()
    with pytest.raises(DataError, match=r"train-00003.tar does not exist"):
        list(problems(copied))
