"""Flips, normalisation and mixup against numpy in float64."""

import numpy as np
import pytest
import torch

from data_pipeline.config import AugmentConfig, DataConfig, SourceConfig
from data_pipeline.loader import Batch
from data_pipeline.mixing import mix, normalise, prepare
from data_pipeline.order import Slots

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config(mixup: float = 0.0, mix_group: int = 4) -> DataConfig:
    return DataConfig(
        train=SourceConfig(manifest=""), mean=MEAN, std=STD, mix_group=mix_group, augment=AugmentConfig(mixup=mixup)
    )


def batch(count: int = 8, group: int = 4) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        images_BHWC=torch.from_numpy(rng.integers(0, 256, (count, 6, 5, 3), np.uint8)),
        labels_B=torch.from_numpy(rng.integers(0, 7, count)),
        flip_B=torch.from_numpy(rng.random(count) < 0.5),
        mix_B=torch.from_numpy(np.repeat(rng.uniform(0.5, 1, count // group), group).astype(np.float32)),
        weight_B=torch.ones(count),
        slots=Slots(np.zeros(count, np.int64), np.arange(count)),
    )


def reference_images(batch: Batch) -> np.ndarray:
    """float64 BCHW: mirrored where asked, scaled, normalised per channel."""
    images = []
    for pixels, flip in zip(batch.images_BHWC.numpy().astype(np.float64), batch.flip_B.tolist(), strict=True):
        image = pixels[:, ::-1] if flip else pixels
        images.append([(image[:, :, c] / 255 - MEAN[c]) / STD[c] for c in range(3)])
    return np.array(images)


def reference_mix(values: np.ndarray, weights: np.ndarray, group: int) -> np.ndarray:
    """Each slot with the next of its group, the last with the first."""
    mixed = np.empty_like(values)
    for slot in range(len(values)):
        first = slot // group * group
        partner = first + (slot - first + 1) % group
        mixed[slot] = weights[slot] * values[slot] + (1 - weights[slot]) * values[partner]
    return mixed


def test_normalise_is_the_closed_form_of_every_level():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    expected = np.stack([(np.arange(256.0).reshape(16, 16) / 255 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    found = normalise(levels, MEAN, STD)
    assert found.dtype == torch.float32
    assert np.abs(found[0].double().numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5, 4)])
def test_mix_is_the_neighbours_of_each_group(group, shape):
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=shape), rng.random(8)
    found = mix(torch.from_numpy(values), torch.from_numpy(weights), group)
    assert np.abs(found.numpy() - reference_mix(values, weights, group)).max() < 1e-15


def test_mix_keeps_the_sum_of_a_group_with_one_weight():
    values = torch.from_numpy(np.random.default_rng(2).normal(size=(12, 3)))
    weights = torch.tensor([0.7, 0.9, 0.5], dtype=torch.float64).repeat_interleave(4)
    assert torch.allclose(mix(values, weights, 4).view(3, 4, 3).sum(1), values.view(3, 4, 3).sum(1), atol=1e-14)


def test_prepared_images_are_flipped_and_normalised():
    images, targets = prepare(batch(), config(), 7, torch.float32)
    assert batch().flip_B.sum() in range(1, 8)
    assert np.abs(images.double().numpy() - reference_images(batch())).max() < 1e-6
    assert np.array_equal(targets.numpy(), np.eye(7)[batch().labels_B.numpy()])


@pytest.mark.parametrize("group", [2, 4])
def test_mixup_mixes_images_and_targets_alike(group):
    b = batch(group=group)
    images, targets = prepare(b, config(mixup=0.2, mix_group=group), 7, torch.float32)
    weights = b.mix_B.double().numpy()
    assert np.abs(images.double().numpy() - reference_mix(reference_images(b), weights, group)).max() < 1e-5
    expected = reference_mix(np.eye(7)[b.labels_B.numpy()], weights, group)
    assert np.abs(targets.double().numpy() - expected).max() < 1e-6
    assert np.abs(targets.double().numpy().sum(1) - 1).max() < 1e-6


def test_mixup_of_a_micro_batch_is_its_part_of_the_whole():
    """Groups do not reach across micro-batches."""
    whole_images, whole_targets = prepare(batch(), config(mixup=0.2), 7, torch.float32)
    parts = [prepare(part, config(mixup=0.2), 7, torch.float32) for part in batch().split(4)]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole_images)
    assert torch.equal(torch.cat([targets for _, targets in parts]), whole_targets)


def test_without_mixup_the_weights_are_ignored():
    _, targets = prepare(batch(), config(mixup=0.0), 7, torch.float32)
    assert set(targets.flatten().tolist()) == {0.0, 1.0}


def test_images_take_the_type_asked_for_and_targets_stay_float32():
    exact, _ = prepare(batch(), config(mixup=0.2), 7, torch.float32)
    images, targets = prepare(batch(), config(mixup=0.2), 7, torch.bfloat16)
    assert (images.dtype, targets.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(images, exact.bfloat16())


def test_the_batch_is_not_changed():
    b = batch()
    prepare(b, config(mixup=0.2), 7, torch.float32)
    assert torch.equal(b.images_BHWC, batch().images_BHWC)
    assert torch.equal(b.labels_B, batch().labels_B)
