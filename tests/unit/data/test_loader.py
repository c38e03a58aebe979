"""Batches do not depend on ranks or threads, hold what the tars hold, and every held-out image counts once."""

import io
import math
import re
import signal
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from serving import Faults, http_server
from sharding import list_tars, write_shards, write_tar

from data_pipeline.bad_samples import check_fraction
from data_pipeline.config import AugmentConfig, BadSamplesConfig, DataConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import Batch, Layout, Loader, eval_loader, train_loader
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.order import Order
from data_pipeline.peek import Training, preview
from data_pipeline.stream import Shards, resident_samples

GLOBAL_BATCH, LANES, SIZE, STEPS, NUM_CLASSES = 16, 8, 16, 5, 3
TENSORS = ("images_BHWC", "labels_B", "flip_B", "erase_B4", "noise_B", "mix_B", "cut_B4", "weight_B")


def config(bad_samples: dict | None = None, **augment: object) -> DataConfig:
    return DataConfig(
        train=({"manifest": ""},),
        mix_group=4,
        augment=AugmentConfig(**augment),
        bad_samples=BadSamplesConfig(**bad_samples or {}),
    )


MIXED = config(mixup=0.2, cutmix=0.5, erase=0.5)


def loader(
    manifest: Manifest, rank: int = 0, ranks: int = 1, cfg: DataConfig = MIXED, start: int = 0, threads: int = 2, seed: int = 0
) -> Loader:
    order, steps = Order([manifest.samples], GLOBAL_BATCH, LANES, 4, seed), range(start, STEPS)
    return train_loader(Shards(manifest), order, cfg, SIZE, NUM_CLASSES, seed, steps, Layout(rank, ranks, threads))


def columns(batch: Batch) -> list[np.ndarray]:
    return [getattr(batch, name).numpy() for name in TENSORS] + list(batch.slots)


def assert_same(found: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> None:
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(mine, theirs, strict=True))


@pytest.fixture(scope="module")
def global_batches(train: Manifest) -> list[list[np.ndarray]]:
    return [columns(batch) for batch in loader(train)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_have_the_same_batches(train, global_batches, ranks):
    parts = [[columns(batch) for batch in loader(train, rank, ranks)] for rank in range(ranks)]
    together = [[np.concatenate(column) for column in zip(*step, strict=True)] for step in zip(*parts, strict=True)]
    assert_same(together, global_batches)


def test_a_run_continued_at_a_step_has_the_same_batches(train, global_batches):
    assert_same([columns(batch) for batch in loader(train, start=3)], global_batches[3:])


def test_the_number_of_threads_changes_nothing(train, global_batches):
    assert_same([columns(batch) for batch in loader(train, threads=5)], global_batches)


def test_iterating_again_gives_the_same_batches(train, global_batches):
    batches = loader(train)
    for _ in range(2):
        assert_same([columns(batch) for batch in batches], global_batches)


def test_another_seed_gives_other_flips_crops_and_weights(train, global_batches):
    other = [columns(batch) for batch in loader(train, seed=1)]
    for column in (0, 2, 3, 4, 5, 6):
        assert not np.array_equal(other[0][column], global_batches[0][column])


def test_batches_follow_the_order_and_the_labels_of_the_tars(train, tar_contents):
    view, contents = Order([train.samples], GLOBAL_BATCH, LANES, 4, 0).view(0, LANES), tar_contents(train)
    for step, batch in enumerate(loader(train)):
        slots = view.step(step)
        assert batch.slots.samples.tolist() == slots.samples.tolist()
        assert batch.slots.epochs.tolist() == slots.epochs.tolist()
        assert batch.labels_B.tolist() == [contents[sample][2] for sample in slots.samples]
        assert batch.weight_B.tolist() == [1.0] * GLOBAL_BATCH


@pytest.fixture
def squares(write_tar, tmp_path, encode, picture) -> Manifest:
    """Twelve square PNGs."""
    members = []
    for number in range(12):
        members += [(f"s{number}.png", encode(picture(24, 24, number), "PNG")), (f"s{number}.cls", b"%d" % (number % 3))]
    return list_tars([write_tar("squares.tar", members)], tmp_path / "squares.json")


def test_a_crop_of_everything_is_the_image_resized_by_pillow(squares, picture):
    whole = config(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    for batch in loader(squares, cfg=whole):
        for pixels, sample in zip(batch.images_BHWC.numpy(), batch.slots.samples, strict=True):
            expected = Image.fromarray(picture(24, 24, int(sample))).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 2


def test_a_sample_is_cropped_anew_in_every_epoch(squares):
    views: dict[int, set[bytes]] = {}
    batches = list(loader(squares))
    for batch in batches:
        for pixels, sample in zip(batch.images_BHWC.numpy(), batch.slots.samples.tolist(), strict=True):
            views.setdefault(sample, set()).add(pixels.tobytes())
    seen = Counter(sample for batch in batches for sample in batch.slots.samples.tolist())
    assert {sample: len(different) for sample, different in views.items()} == seen


def test_half_of_the_images_are_flipped_and_none_without_flip(squares):
    flips = torch.cat([batch.flip_B for seed in range(12) for batch in loader(squares, seed=seed)]).double()
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(flips))
    assert not torch.cat([batch.flip_B for batch in loader(squares, cfg=config(flip=False))]).any()


def evaluated(manifest: Manifest, batch: int, rank: int = 0, ranks: int = 1) -> list[Batch]:
    return list(eval_loader(Shards(manifest), config(), SIZE, batch, NUM_CLASSES, Layout(rank, ranks, threads=2)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 4, 7, 40])
def test_every_held_out_sample_counts_exactly_once(train, tar_contents, batch, ranks):
    parts = [evaluated(train, batch, rank, ranks) for rank in range(ranks)]
    assert {len(part) for part in parts} == {-(-25 // (batch * ranks))}
    contents, counted = tar_contents(train), Counter()
    for b in (b for part in parts for b in part):
        real = len(b.slots.samples)
        assert len(b.images_BHWC) == len(b.labels_B) == len(b.weight_B) == batch
        assert b.weight_B.tolist() == [1.0] * real + [0.0] * (batch - real)
        assert not b.images_BHWC[real:].any()
        assert b.labels_B[:real].tolist() == [contents[sample][2] for sample in b.slots.samples]
        counted.update(b.slots.samples.tolist())
    assert counted == Counter(range(25))


def test_held_out_images_are_pillows_resized_centre_and_never_flipped(train, tar_contents):
    contents = tar_contents(train)
    for batch in evaluated(train, 8):
        assert not batch.flip_B.any()
        for pixels, sample in zip(batch.images_BHWC.numpy(), batch.slots.samples, strict=False):
            image = Image.open(io.BytesIO(contents[sample][1]))
            wide = [round(side * 18 / min(image.size)) for side in image.size]
            left, top = [(side - SIZE) // 2 for side in wide]
            expected = image.resize(wide, Image.Resampling.BICUBIC).crop((left, top, left + SIZE, top + SIZE))
            assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 3


def test_held_out_images_may_be_gone_through_again(train):
    batches = eval_loader(Shards(train), config(), SIZE, 10, NUM_CLASSES, Layout(0, 1, threads=2))
    first, second = [columns(batch) for batch in batches], [columns(batch) for batch in batches]
    assert_same(second, first)
    assert len(first) == 3


@pytest.fixture
def one_broken(write_tar, tmp_path, encode, picture) -> Manifest:
    """Sixteen images, of which number 11 cannot be decoded."""
    image = encode(picture(24, 24), "JPEG")
    members = []
    for number in range(16):
        members += [(f"key{number}.jpg", image[:99] if number == 11 else image), (f"key{number}.cls", b"0")]
    return list_tars([write_tar("broken.tar", members)], tmp_path / "broken.json")


def test_an_undecodable_image_stops_training_and_evaluation_by_name(one_broken):
    message = rf"{re.escape(one_broken.shard(0))}: sample key11: .*"
    with pytest.raises(DataError, match=message):
        list(loader(one_broken))
    with pytest.raises(DataError, match=message):
        evaluated(one_broken, 4)
    assert no_threads_are_left()


def test_batches_before_an_undecodable_image_are_still_delivered(one_broken):
    batches = iter(eval_loader(Shards(one_broken), config(), SIZE, 4, NUM_CLASSES, Layout(0, 1, threads=1)))
    assert [next(batches).slots.samples.tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(DataError, match="key11"):
        next(batches)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "read"))]


def no_threads_are_left() -> bool:
    deadline = time.monotonic() + 5
    while decoding_threads() and time.monotonic() < deadline:
        time.sleep(0.01)  # those that read have nobody wait for them
    return not decoding_threads()


def test_leaving_early_stops_the_threads(train):
    batches = iter(loader(train))
    next(batches)
    assert decoding_threads()
    batches.close()
    assert no_threads_are_left()


def test_the_end_stops_the_threads(train):
    assert len(list(loader(train))) == STEPS
    assert no_threads_are_left()


def test_reading_ahead_is_bounded(tmp_path):
    """However fast the threads are: a block per lane, half a block ahead, and two batches being decoded."""
    manifest, loaded = write_shards(tmp_path, [4000]), []

    class Counting(Shards):
        def load(self, samples):
            loaded.append(len(samples))
            return super().load(samples)

    order = Order([manifest.samples], 4, 2, 40, 0)
    batches = iter(train_loader(Counting(manifest), order, config(), 8, NUM_CLASSES, 0, range(900), Layout(0, 1, threads=2)))
    for step in range(200):
        next(batches)
        time.sleep(0.001)
        used = (step + 1) * 4
        assert sum(loaded) - used <= 2 * (2 * 40) + resident_samples(2, 2, 40) - 2 * 40
    batches.close()


@pytest.mark.parametrize("size", [4, 8, 16])
def test_micro_batches_are_consecutive_slots(train, global_batches, size):
    (first, *_) = loader(train)
    parts = [columns(part) for part in first.split(size)]
    assert {len(part[1]) for part in parts} == {size}
    assert_same([[np.concatenate(column) for column in zip(*parts, strict=True)]], global_batches[:1])


def test_a_batch_on_a_device_is_the_same_batch(train, global_batches):
    (first, *_) = loader(train)
    assert_same([columns(first.to(torch.device("cpu")))], global_batches[:1])
    moved = first.to(torch.device("meta"))
    assert {getattr(moved, name).device.type for name in TENSORS} == {"meta"}


REPLACE = {"policy": "replace"}


def test_a_bad_image_is_replaced_and_every_other_slot_stays(one_broken):
    cfg, contents = config(REPLACE), {}
    whole = write_same_without_damage(one_broken)
    for batch, undamaged in zip(loader(one_broken, cfg=cfg), loader(whole, cfg=cfg), strict=True):
        bad = batch.slots.samples == 11
        assert len(batch.skips) == bad.sum()
        assert {(skip.key, skip.shard) for skip in batch.skips} <= {("key11", one_broken.shard(0))}
        same = (batch.images_BHWC == undamaged.images_BHWC).flatten(1).all(1).numpy()
        assert same[~bad].all()
        for slot in bad.nonzero()[0]:
            contents[int(batch.slots.epochs[slot])] = batch.labels_B[slot].item(), batch.skips[0].replaced_by
    assert contents
    for label, key in contents.values():
        assert label == int(key.removeprefix("key")) % 3 != 11 % 3 or key != "key11"


def write_same_without_damage(broken: Manifest) -> Manifest:
    """The image with a readable one's bytes in its place."""
    with tarfile.open(broken.shard(0)) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]
    whole = dict(members)["key0.jpg"]
    folder = Path(broken.shard(0)).parent / "whole"
    folder.mkdir()
    same = [(name, whole if name == "key11.jpg" else content) for name, content in members]
    return list_tars([write_tar(folder / "broken.tar", same)], folder / "broken.json")


@pytest.mark.parametrize("ranks", [2, 4])
def test_replacements_do_not_depend_on_the_layout(one_broken, ranks):
    def everything(ranks: int) -> list:
        parts = [list(loader(one_broken, rank, ranks, config(REPLACE))) for rank in range(ranks)]
        return [
            ([skip for part in step for skip in part.skips], torch.cat([part.images_BHWC for part in step]).numpy().tobytes())
            for step in zip(*parts, strict=True)
        ]

    assert everything(ranks) == everything(1)
    assert any(skips for skips, _ in everything(1))


def test_a_label_that_does_not_exist_is_replaced_too(train):
    cfg = config(REPLACE)
    order = Order([train.samples], GLOBAL_BATCH, LANES, 4, 0)
    batches = list(train_loader(Shards(train), order, cfg, SIZE, 2, 0, range(STEPS), Layout(0, 1, 2)))
    assert {label for batch in batches for label in batch.labels_B.tolist()} == {0, 1}
    assert {skip.reason for batch in batches for skip in batch.skips} == {"label 2 (-1 = none) is not within 0..1"}


def test_too_many_bad_images_in_a_row_stop_the_run(tmp_path):
    manifest = write_shards(tmp_path, [40], damaged=range(10, 20))
    with pytest.raises(DataError, match=r"bad images in a row, data.bad_samples.max_run allows 5"):
        list(loader(manifest, cfg=config({**REPLACE, "max_run": 5})))
    assert len(list(loader(manifest, cfg=config({**REPLACE, "max_run": 10})))) == STEPS


def test_data_without_a_good_image_stop_the_run(tmp_path):
    manifest = write_shards(tmp_path, [6], damaged=range(6))
    with pytest.raises(DataError, match=r"and none of 10 other images drawn in its place can be used"):
        list(loader(manifest, cfg=config({**REPLACE, "max_run": 10})))


def test_a_replacement_comes_from_the_same_source(tmp_path):
    """Or the sources' parts of a batch would drift."""
    manifests = [
        write_shards(tmp_path, [9, 4], prefix="a", damaged=[2, 5, 11]),
        write_shards(tmp_path, [7, 8], prefix="b", damaged=[0, 8]),
    ]
    order = Order([manifest.samples for manifest in manifests], GLOBAL_BATCH, LANES, 4, 0)
    batches = train_loader(Shards(manifests), order, config(REPLACE), SIZE, NUM_CLASSES, 0, range(STEPS), Layout(0, 1, 2))
    skips = [skip for batch in batches for skip in batch.skips]
    assert {skip.key for skip in skips} == {"a2", "a5", "a11", "b0", "b8"}
    assert all(skip.key[0] == skip.replaced_by[0] for skip in skips)


def test_the_fraction_of_bad_images_is_limited():
    limit = BadSamplesConfig(policy="replace", max_fraction=0.01)
    check_fraction(limit, 100, 5_000)  # too few were seen to judge: counted as 10,000
    check_fraction(limit, 1_000, 100_000)
    for skipped, samples in ((101, 5_000), (1_001, 100_000)):
        with pytest.raises(DataError, match=rf"{skipped:,} of {samples:,} images"):
            check_fraction(limit, skipped, samples)


def test_a_preview_is_what_the_model_gets(train):
    shards, cfg = Shards(train), config()
    (batch, *_) = loader(train, cfg=cfg)
    assert not batch.slots.epochs.any()
    for slot, sample in enumerate(batch.slots.samples.tolist()):
        shown = batch.images_BHWC[slot].numpy()
        shown = shown[:, ::-1] if batch.flip_B[slot] else shown
        image = shards.read(sample).image
        assert np.array_equal(preview(image, sample, Training(cfg, SIZE, 0)), shown)


@pytest.mark.parametrize("faults", [["hang"] * 500, ["503"] * 500], ids=["silent", "failing"])
def test_leaving_ends_reads_that_wait_for_a_server(tmp_path, faults):
    """Ctrl-C must not have to wait for ten attempts of a minute each."""
    write_shards(tmp_path, [60])
    behaviour = Faults()
    with http_server(tmp_path, behaviour) as url:
        remote = read_manifest(f"{url}/k.json")
        Shards(remote).load([0])
        behaviour.coming[:] = faults
        batches = train_loader(
            Shards(remote), Order([remote.samples], 4, 4, 4, 0), config(), 8, NUM_CLASSES, 0, range(50), Layout(0, 1, 2)
        )
        main, began = threading.main_thread().ident, time.monotonic()
        threading.Timer(1.0, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(iter(batches))
        assert time.monotonic() - began < 10
        assert no_threads_are_left()
