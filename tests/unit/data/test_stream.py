"""Any sample by its number, against tarfile; damage is found at read; planned order feeds plain webdataset."""

import dataclasses
import gc
import io
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from data_pipeline import stream
from data_pipeline.build import list_shards
from data_pipeline.errors import DataError
from data_pipeline.index import index_path
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards, planned


def test_samples_are_those_of_the_tars_in_manifest_order(train, tar_contents):
    shards = Shards(read_manifest(train.path))
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
    manifest = list_shards([empty[0], full, empty[1], more, empty[2]], tmp_path / "list.json", [])
    shards = Shards(manifest)
    assert [tuple(shards.read(sample)) for sample in range(2)] == [("a", b"A", 1), ("b", b"B", 2)]
    with pytest.raises(IndexError):
        shards.read(2)


def test_threads_read_the_same_samples(train, tar_contents, monkeypatch):
    monkeypatch.setattr(stream, "OPEN_SHARDS", 2)
    shards, expected = Shards(train), tar_contents(train)
    order = np.random.default_rng(0).integers(0, 25, 400).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert [tuple(raw) for raw in pool.map(shards.read, order)] == [expected[sample] for sample in order]


def mapped(folder: Path) -> set[str]:
    """Files of a folder that are mapped into this process."""
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line}


def test_only_a_bounded_number_of_shards_stays_mapped(copied, monkeypatch):
    monkeypatch.setattr(stream, "OPEN_SHARDS", 3)
    shards = Shards(copied)
    for sample in range(25):
        shards.read(sample)
    tars = {name for name in mapped(copied.path.parent) if name.endswith(".tar")}
    assert len(tars) == 3
    assert str(copied.shard(6)) in tars
    del shards
    gc.collect()
    assert not mapped(copied.path.parent)


def flip_byte_of_image(manifest: Manifest, number: int, image: bytes) -> None:
    content = manifest.shard(number).read_bytes()
    at = content.index(image) + len(image) // 2
    manifest.shard(number).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_a_flipped_byte_is_found_when_its_image_is_read(copied, tar_contents):
    expected = tar_contents(copied)
    flip_byte_of_image(copied, 2, expected[9][1])
    copied.check()
    shards = Shards(copied)
    with pytest.raises(DataError, match=rf"{re.escape(str(copied.shard(2)))}: sample {expected[9][0]}: .*CRC-32"):
        shards.read(9)
    others = [sample for sample in range(25) if sample != 9]
    assert [tuple(shards.read(sample)) for sample in others] == [expected[sample] for sample in others]


def test_the_index_of_another_shard_of_equal_length_is_found_at_read(copied):
    shutil.copy(index_path(copied.shard(3)), index_path(copied.shard(2)))
    copied.check()
    with pytest.raises(DataError, match=re.escape(str(copied.shard(2)))):
        Shards(copied).read(8)


def test_a_shard_cut_after_its_index_was_made_is_found_at_read(copied, tar_contents):
    shard, (key, image, _) = copied.shard(0), tar_contents(copied)[6]
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(image) + 10])
    with pytest.raises(DataError, match=f"sample {key}"):
        Shards(copied).read(6)


def test_foreign_encodings_and_keys_come_back_as_written(tmp_path, encode, picture):
    images = {f"dir/é{kind}": (kind.lower(), encode(picture(9, 7), kind)) for kind in ("JPEG", "PNG", "WEBP")}
    with wds.TarWriter(str(tmp_path / "theirs.tar")) as tar:
        for label, (key, (ending, image)) in enumerate(images.items()):
            tar.write({"__key__": key, ending: image, "cls": label})
    shards = Shards(list_shards([tmp_path / "theirs.tar"], tmp_path / "theirs.json", []))
    expected = [(key, image, label) for label, (key, (_, image)) in enumerate(images.items())]
    assert [tuple(shards.read(sample)) for sample in range(3)] == expected


def plan(manifest: Manifest) -> Order:
    return Order(manifest.samples, 6, 3, 4, seed=0)


def test_planned_samples_follow_the_order(train, tar_contents):
    view, expected = plan(train).view(0, 3), tar_contents(train)
    urls = [url for url, count in zip(train.urls, train.samples, strict=True) for _ in range(count)]
    found = list(planned(Shards(train), view, 2, 7))
    slots = [view.step(step) for step in range(2, 7)]
    samples = np.concatenate([slot.samples for slot in slots]).tolist()
    assert [(s["__key__"], s["jpg"], int(s["cls"])) for s in found] == [expected[sample] for sample in samples]
    assert [s["__url__"] for s in found] == [urls[sample] for sample in samples]
    assert [s["__epoch__"] for s in found] == np.concatenate([slot.epochs for slot in slots]).tolist()


def test_planned_is_a_source_of_a_webdataset_pipeline(train, tar_contents):
    view, expected = plan(train).view(0, 3), tar_contents(train)
    batches = list(
        wds.DataPipeline(
            lambda: planned(Shards(train), view, 0, 3),
            wds.decode("rgb8"),
            wds.to_tuple("jpg", "cls", "__key__"),
            wds.map_tuple(lambda pixels: pixels[:20, :20]),
            wds.batched(6),
        )
    )
    assert len(batches) == 3
    for step, (images, labels, keys) in enumerate(batches):
        samples = [expected[sample] for sample in view.step(step).samples]
        assert list(keys) == [key for key, _, _ in samples]
        assert list(labels) == [label for _, _, label in samples]
        for image, (_, content, _) in zip(images, samples, strict=True):
            assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(content)))[:20, :20])


def test_a_pipeline_may_be_iterated_again(train):
    view = plan(train).view(0, 3)
    pipeline = wds.DataPipeline(lambda: planned(Shards(train), view, 0, 5), wds.to_tuple("__key__"))
    first, second = list(pipeline), list(pipeline)
    assert len(first) == 30
    assert first == second


def test_planned_reads_only_what_is_asked_for(train):
    reads = []

    class Counting(Shards):
        def read(self, sample: int) -> stream.RawSample:
            reads.append(sample)
            return super().read(sample)

    samples: Iterator[dict] = planned(Counting(train), plan(train).view(0, 3), 0, 100)
    assert reads == []
    next(samples)
    assert len(reads) == 1


def test_shards_follow_their_manifest_to_another_place(copied, tar_contents):
    moved = copied.path.parent.rename(copied.path.parent.parent / "elsewhere")
    shards = Shards(dataclasses.replace(copied, path=moved / "train.json"))
    assert tuple(shards.read(24)) == tar_contents(shards.manifest)[24]
