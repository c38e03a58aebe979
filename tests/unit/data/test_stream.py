"""Any sample by its number, against tarfile; damage is found at read; planned order feeds plain webdataset."""

import io
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from serving import Faults, http_server
from sharding import list_tars, write_shards

from data_pipeline import stream
from data_pipeline.cache import Cache
from data_pipeline.errors import BadSampleError, DataError
from data_pipeline.index import HEADER_BYTES, ROW
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards, planned, steps


def test_samples_are_those_of_the_tars_in_manifest_order(train, tar_contents):
    shards = Shards(read_manifest(train.location))
    assert len(shards) == 25
    assert [tuple(shards.read(sample)) for sample in range(25)] == tar_contents(train)


def test_any_order_gives_the_same_samples(train, tar_contents):
    shards, expected = Shards(train), tar_contents(train)
    for sample in np.random.default_rng(0).permutation(25).tolist() * 2:
        assert tuple(shards.read(sample)) == expected[sample]


def test_shards_without_samples_shift_no_number(write_tar, tmp_path):
    full = write_tar("full.tar", [("a.jpg", b"A"), ("a.cls", b"1")])
    more = write_tar("more.tar", [("b.jpg", b"B"), ("b.cls", b"2")])
    empty = [write_tar(f"empty{number}.tar", []) for number in range(3)]
    manifest = list_tars([empty[0], full, empty[1], more, empty[2]], tmp_path / "list.json")
    shards = Shards(manifest)
    assert [tuple(shards.read(sample)) for sample in range(2)] == [("a", b"A", 1), ("b", b"B", 2)]
    with pytest.raises(IndexError):
        shards.read(2)


def test_threads_read_the_same_samples(train, tar_contents):
    shards, expected = Shards(train), tar_contents(train)
    order = np.random.default_rng(0).integers(0, 25, 400).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert [tuple(raw) for raw in pool.map(shards.read, order)] == [expected[sample] for sample in order]


def flip_byte_of_image(manifest: Manifest, number: int, image: bytes) -> None:
    shard = Path(manifest.shard(number))
    content = shard.read_bytes()
    at = content.index(image) + len(image) // 2
    shard.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_a_flipped_byte_is_found_when_its_image_is_read(copied, tar_contents):
    expected = tar_contents(copied)
    flip_byte_of_image(copied, 2, expected[9][1])
    copied.check()
    shards = Shards(copied)
    with pytest.raises(BadSampleError, match="CRC-32"):
        shards.read(9)
    assert stream.where(shards, 9) == f"{copied.shard(2)}: sample {expected[9][0]}"
    others = [sample for sample in range(25) if sample != 9]
    assert [tuple(shards.read(sample)) for sample in others] == [expected[sample] for sample in others]


def test_the_index_of_another_shard_of_equal_length_is_found_at_read(copied):
    shutil.copy(copied.index(3), copied.index(2))
    with pytest.raises(BadSampleError, match="CRC-32"):
        Shards(copied).read(8)


@pytest.mark.parametrize(("row", "offset"), [(0, 2**63), (1, 2**64 - 1), (0, 10**6), (2, 10**6), (1, 0)])
def test_keys_that_lie_outside_of_the_index_are_an_error(copied, row, offset):
    index = Path(copied.index(2))
    rows = np.frombuffer(index.read_bytes(), ROW, 4, offset=HEADER_BYTES).copy()
    rows["key_offset"][row] = offset
    index.write_bytes(index.read_bytes()[:HEADER_BYTES] + rows.tobytes() + index.read_bytes()[HEADER_BYTES + rows.nbytes :])
    with pytest.raises(DataError, match=re.escape(copied.index(2)) + ": its rows 0 to 4 point outside"):
        Shards(copied).keys(range(8, 12))


def test_a_shard_cut_after_its_index_was_made_is_found_at_read(copied, tar_contents):
    shard, (_, image, _) = Path(copied.shard(0)), tar_contents(copied)[6]
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(image) + 10])
    with pytest.raises(DataError, match=rf"{re.escape(str(shard))}: it ends at byte") as caught:
        Shards(copied).read(6)
    assert not isinstance(caught.value, BadSampleError)  # nothing to be replaced: the next image is missing too


def test_foreign_encodings_and_keys_come_back_as_written(tmp_path, encode, picture):
    images = {f"dir/é{kind}": (kind.lower(), encode(picture(9, 7), kind)) for kind in ("JPEG", "PNG", "WEBP")}
    with wds.TarWriter(str(tmp_path / "theirs.tar")) as tar:
        for label, (key, (ending, image)) in enumerate(images.items()):
            tar.write({"__key__": key, ending: image, "cls": label})
    shards = Shards(list_tars([tmp_path / "theirs.tar"], tmp_path / "theirs.json"))
    expected = [(key, image, label) for label, (key, (_, image)) in enumerate(images.items())]
    assert [tuple(shards.read(sample)) for sample in range(3)] == expected


def plan(manifest: Manifest) -> Order:
    return Order([manifest.samples], 6, 3, 4, seed=0)


ALL = (0, 3)  # lanes


def test_planned_samples_follow_the_order(train, tar_contents):
    view, expected = plan(train).view(*ALL), tar_contents(train)
    urls = [train.shard(number) for number, count in enumerate(train.samples) for _ in range(count)]
    found = list(planned(Shards(train), plan(train), ALL, 2, 7))
    slots = [view.step(step) for step in range(2, 7)]
    samples = np.concatenate([slot.samples for slot in slots]).tolist()
    images = [next(s[name] for name in ("jpg", "jpeg", "png", "webp") if name in s) for s in found]
    assert [(s["__key__"], image, int(s["cls"])) for s, image in zip(found, images, strict=True)] == [
        expected[sample] for sample in samples
    ]
    assert [s["__url__"] for s in found] == [urls[sample] for sample in samples]
    assert [s["__epoch__"] for s in found] == np.concatenate([slot.epochs for slot in slots]).tolist()


def test_planned_samples_are_those_of_plain_webdataset(tmp_path, by_webdataset):
    """All members of a sample, also those that we do not use, under the same names."""
    files = {"jpg": b"not looked at", "json": b'{"label": 2}', "txt": b"a cat", "seg.png": b"mask", "CLS": b"1"}
    with wds.TarWriter(str(tmp_path / "theirs.tar")) as tar:
        for number in range(7):
            tar.write({"__key__": f"dir/{number}" + "x" * 40 * number, **files})
    manifest = list_tars([tmp_path / "theirs.tar"], tmp_path / "theirs.json")
    order = Order([manifest.samples], 7, 7, 4, seed=0)
    ours = {sample["__key__"]: sample for sample in planned(Shards(manifest), order, (0, 7), 0, 1)}
    theirs = {sample["__key__"]: sample for sample in by_webdataset([tmp_path / "theirs.tar"])}
    assert len(ours) == len(theirs) == 7
    for key, sample in theirs.items():
        members = {name: value for name, value in sample.items() if not name.startswith("__")}
        assert members == {name: value for name, value in ours[key].items() if not name.startswith("__")}


def test_planned_is_a_source_of_a_webdataset_pipeline(tmp_path):
    manifest = write_shards(tmp_path, [9, 1, 15])
    view, shards = plan(manifest).view(*ALL), Shards(manifest)
    batches = list(
        wds.DataPipeline(
            lambda: planned(shards, plan(manifest), ALL, 0, 3),
            wds.decode("rgb8"),
            wds.to_tuple("jpg", "cls", "__key__"),
            wds.map_tuple(lambda pixels: pixels[:20, :20]),
            wds.batched(6),
        )
    )
    assert len(batches) == 3
    for step, (images, labels, keys) in enumerate(batches):
        samples = [shards.read(sample) for sample in view.step(step).samples.tolist()]
        assert list(keys) == [sample.key for sample in samples]
        assert list(labels) == [sample.label for sample in samples]
        for image, sample in zip(images, samples, strict=True):
            assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(sample.image)))[:20, :20])


def test_a_pipeline_may_be_iterated_again(train):
    pipeline = wds.DataPipeline(lambda: planned(Shards(train), plan(train), ALL, 0, 5), wds.to_tuple("__key__"))
    first, second = list(pipeline), list(pipeline)
    assert len(first) == 30
    assert first == second


def test_shards_follow_their_manifest_to_another_place(copied, tar_contents):
    old = Path(copied.location).parent
    moved = old.rename(old.parent / "elsewhere")
    shards = Shards(read_manifest(str(moved / "train.json")))
    assert tuple(shards.read(24)) == tar_contents(shards.manifests[0])[24]


def test_samples_are_numbered_through_all_manifests(train, tar_contents, tmp_path):
    other = write_shards(tmp_path, [3, 4], prefix="other")
    shards, expected = Shards([train, other]), tar_contents(train)
    assert len(shards) == 32
    assert [shards.read(sample).key for sample in range(32)] == [key for key, _, _ in expected] + [
        f"other{n}" for n in range(7)
    ]
    assert shards.place(28).url == other.shard(1)
    assert shards.digest != Shards([other, train]).digest
    assert Shards(train).digest == train.digest


class Remembering(Shards):
    """Notes what is read from where."""

    def __init__(self, *args):
        super().__init__(*args)
        self.reads: list[tuple[str, int, int]] = []

    def read_bytes(self, place, start, end, index=False):
        url = place.manifest.index(place.shard) if index else place.url
        self.reads.append((url.rpartition("/")[2], start, end))
        return super().read_bytes(place, start, end, index)


def test_a_block_of_a_remote_shard_is_one_read_of_the_index_and_one_of_the_shard(tmp_path):
    manifest = write_shards(tmp_path, [30, 20, 50])
    local = Shards(manifest)
    with http_server(tmp_path) as url:
        shards = Remembering(read_manifest(f"{url}/k.json"))
        loaded = shards.load(np.array([70, 68, 69, 71]))
        assert [name for name, _, _ in shards.reads] == ["k-002.idx", "k-002.tar"]
        assert [loaded.image(sample) for sample in (68, 69, 70, 71)] == [tuple(local.read(s))[1:] for s in (68, 69, 70, 71)]
        shards.reads.clear()
        across = shards.load(np.arange(28, 53))
        assert [name for name, _, _ in shards.reads] == [
            "k-000.idx",
            "k-000.tar",
            "k-001.idx",
            "k-001.tar",
            "k-002.idx",
            "k-002.tar",
        ]
        assert list(across.keys) == list(range(28, 53))
        assert [across.image(sample) for sample in range(28, 53)] == [tuple(local.read(s))[1:] for s in range(28, 53)]
        assert across.members(50) == local.load(np.array([50])).members(50)
    used = sum(end - start for name, start, end in shards.reads if name.endswith(".tar"))
    assert used < sum(len(local.read(s).image) + 4 * 512 + 512 for s in range(28, 53))


@pytest.mark.parametrize("cached", [False, True])
def test_what_was_damaged_on_its_way_is_read_again(tmp_path, cached):
    write_shards(tmp_path / "server", [10])
    faults = Faults()
    with http_server(tmp_path / "server", faults) as url:
        remote = read_manifest(f"{url}/k.json")
        expected = Shards(remote).read(3)
        shards = Shards(remote, Cache(tmp_path / "cache", 1 << 26) if cached else None)
        faults.coming = ["", "flip"]  # the index, the images
        assert shards.read(3) == expected
        assert faults.coming == []
        assert shards.read(3) == expected
        seen = len(faults.requests)
        shards.load(np.array([3])).image(3)
        assert len(faults.requests) - seen == (0 if cached else 2)  # the cache holds what came the second time


def test_with_a_cache_nothing_is_fetched_twice(tmp_path):
    manifest = write_shards(tmp_path / "served", [30, 20])
    with http_server(tmp_path / "served") as url:
        remote = read_manifest(f"{url}/k.json")
        first = [Shards(remote, Cache(tmp_path / "cache", 1 << 26)).read(sample)[1:] for sample in range(50)]
    offline = Shards(remote, Cache(tmp_path / "cache", 1 << 26))  # the server is gone
    assert [offline.load(np.array([sample])).image(sample) for sample in range(50)] == first
    assert first == [Shards(manifest).read(sample)[1:] for sample in range(50)]


def test_every_step_is_read_before_it_is_due_and_each_block_once(tmp_path):
    manifest = write_shards(tmp_path, [200])
    order, loads = Order([manifest.samples], 4, 4, 10, seed=0), []

    class Counting(Shards):
        def load(self, samples):
            loads.append(tuple(sorted(samples.tolist())))
            return super().load(samples)

    shards = Counting(manifest)
    for step in steps(shards, order, (0, 4), 0, 50):
        for sample, block in zip(step.slots.samples.tolist(), step.blocks, strict=True):
            assert sample in block.result().keys
    assert sorted(sample for block in loads for sample in block) == list(range(200))
