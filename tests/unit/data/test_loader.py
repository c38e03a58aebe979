"""Batches do not depend on ranks or threads, hold what the tars hold, and every held-out image counts once."""

import io
import math
import re
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.build import list_shards
from data_pipeline.config import AugmentConfig, DataConfig, SourceConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import Batch, Loader, eval_loader, mix_weights, train_loader
from data_pipeline.manifest import Manifest
from data_pipeline.order import LaneView, Order
from data_pipeline.stream import Shards

GLOBAL_BATCH, LANES, SIZE, STEPS = 16, 8, 16, 5
TENSORS = ("images_BHWC", "labels_B", "flip_B", "mix_B", "weight_B")


def config(**augment: object) -> DataConfig:
    return DataConfig(train=SourceConfig(manifest=""), mix_group=4, augment=AugmentConfig(**augment))


MIXED = config(mixup=0.2)


def loader(
    manifest: Manifest, rank: int = 0, ranks: int = 1, cfg: DataConfig = MIXED, start: int = 0, threads: int = 2, seed: int = 0
) -> Loader:
    lanes = LANES // ranks
    view = Order(manifest.samples, GLOBAL_BATCH, LANES, 4, seed).view(rank * lanes, (rank + 1) * lanes)
    return train_loader(Shards(manifest), view, cfg, SIZE, seed, start, STEPS, threads, pin=False)


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
    for column in (0, 2, 3):
        assert not np.array_equal(other[0][column], global_batches[0][column])


def test_batches_follow_the_order_and_the_labels_of_the_tars(train, tar_contents):
    view, contents = Order(train.samples, GLOBAL_BATCH, LANES, 4, 0).view(0, LANES), tar_contents(train)
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
    return list_shards([write_tar("squares.tar", members)], tmp_path / "squares.json", [])


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


def test_mix_weights_are_one_per_group_at_least_half_and_of_the_beta_law():
    weights = mix_weights(config(mixup=1.0), 0, 5, 0, 4 * 5000).reshape(-1, 4)
    assert (weights == weights[:, :1]).all()
    assert weights.min() >= 0.5
    assert weights.max() <= 1
    assert abs(weights[:, 0].mean() - 0.75) < 4 * 0.25 / math.sqrt(3 * 5000)  # Beta(1, 1) folded: uniform in [1/2, 1]
    assert len(np.unique(weights)) > 4950  # some of 5000 meet in float32


def test_mix_weights_change_with_the_step_and_are_one_without_mixup():
    assert not np.array_equal(mix_weights(MIXED, 0, 1, 0, 64), mix_weights(MIXED, 0, 2, 0, 64))
    assert mix_weights(config(), 0, 1, 0, 8).tolist() == [1.0] * 8


def evaluated(manifest: Manifest, batch: int, rank: int = 0, ranks: int = 1) -> list[Batch]:
    return list(eval_loader(Shards(manifest), config(), SIZE, batch, rank, ranks, threads=2, pin=False))


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
    batches = eval_loader(Shards(train), config(), SIZE, 10, 0, 1, threads=2, pin=False)
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
    return list_shards([write_tar("broken.tar", members)], tmp_path / "broken.json", [])


def test_an_undecodable_image_stops_training_and_evaluation_by_name(one_broken):
    message = rf"{re.escape(str(one_broken.path))}: sample key11 \(number 11\)"
    with pytest.raises(DataError, match=message):
        list(loader(one_broken))
    with pytest.raises(DataError, match=message):
        evaluated(one_broken, 4)
    assert decoding_threads() == []


def test_batches_before_an_undecodable_image_are_still_delivered(one_broken):
    batches = iter(eval_loader(Shards(one_broken), config(), SIZE, 4, 0, 1, threads=1, pin=False))
    assert [next(batches).slots.samples.tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(DataError, match="key11"):
        next(batches)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_leaving_early_stops_the_threads(train):
    batches = iter(loader(train))
    next(batches)
    assert decoding_threads()
    batches.close()
    assert decoding_threads() == []


def test_the_end_stops_the_threads(train):
    assert len(list(loader(train))) == STEPS
    assert decoding_threads() == []


def test_two_steps_are_read_ahead(train):
    """Memory is bounded however fast the threads are."""
    planned = []

    class Counting(LaneView):
        def step(self, step):
            planned.append(step)
            return super().step(step)

    view = Counting(Order(train.samples, GLOBAL_BATCH, LANES, 4, 0), 0, LANES)
    batches = iter(train_loader(Shards(train), view, config(), SIZE, 0, 0, 100, 2, pin=False))
    next(batches)
    assert planned == [0, 1, 2]
    next(batches)
    assert planned == [0, 1, 2, 3]
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
