"""Flips, normalisation, erasing, mixup and cutmix against numpy in float64."""

import numpy as np
import pytest
import torch

from data_pipeline.config import AugmentConfig, DataConfig, TrainSourceConfig
from data_pipeline.loader import Batch
from data_pipeline.mixing import mix, normalise, prepare
from data_pipeline.noise import normal_noise
from data_pipeline.order import Slots

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


BOXES = [(0, 0, 0, 0), (1, 2, 3, 2), (0, 0, 6, 5), (4, 0, 2, 5)]  # y, x, height, width; of 6 x 5 pixels


def config(mix_group: int = 4, **augment: float) -> DataConfig:
    return DataConfig(
        train=(TrainSourceConfig(manifest=""),), mean=MEAN, std=STD, mix_group=mix_group, augment=AugmentConfig(**augment)
    )


def batch(count: int = 8, group: int = 4, cut: bool = False) -> Batch:
    """With `cut` every other group has a box of cutmix."""
    rng = np.random.default_rng(0)
    boxes = [BOXES[1 + number % 3] if cut and number % 2 else BOXES[0] for number in range(count // group)]
    own = [1 - box[2] * box[3] / 30 if box[2] else rng.uniform(0.5, 1) for box in boxes]
    return Batch(
        images_BHWC=torch.from_numpy(rng.integers(0, 256, (count, 6, 5, 3), np.uint8)),
        labels_B=torch.from_numpy(rng.integers(0, 7, count)),
        flip_B=torch.from_numpy(rng.random(count) < 0.5),
        erase_B4=torch.tensor(BOXES * (count // 4), dtype=torch.int32),
        noise_B=torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, count)),
        mix_B=torch.from_numpy(np.repeat(own, group).astype(np.float32)),
        cut_B4=torch.from_numpy(np.repeat(boxes, group, axis=0).astype(np.int32)),
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
    found = mix(torch.from_numpy(values), torch.from_numpy(weights).view(8, *(1,) * (len(shape) - 1)), group)
    assert np.abs(found.numpy() - reference_mix(values, weights, group)).max() < 1e-15


@pytest.mark.parametrize("repeated, group", [(2, 4), (3, 6), (3, 8), (3, 12), (5, 10)])
@pytest.mark.parametrize("begin", range(5))
def test_views_of_an_image_are_never_mixed_with_each_other(repeated, group, begin):
    """Each image stands in `repeated` slots, one after another; groups begin at any of them."""
    images = (np.arange(4 * group) + begin) // repeated
    partners = mix(torch.from_numpy(images.astype(float)), torch.zeros(4 * group, dtype=torch.float64), group, repeated).numpy()
    assert (partners != images).all()
    assert (partners.reshape(4, group).sum(1) == images.reshape(4, group).sum(1)).all()


def test_repeated_images_and_their_targets_are_mixed_with_others():
    b = batch(8, group=8)
    images, targets = prepare(b, config(mixup=0.2, mix_group=8).model_copy(update={"repeated": 3}), 7, torch.float32)
    own, weights = reference_images(b), b.mix_B.double().numpy()
    for values, found in ((own, images), (np.eye(7)[b.labels_B.numpy()], targets)):
        share = weights.reshape(8, *(1,) * (values.ndim - 1))
        assert np.abs(found.double().numpy() - (share * values + (1 - share) * np.roll(values, -3, 0))).max() < 1e-5


def test_a_group_too_small_for_repeated_images_is_refused():
    with pytest.raises(ValueError, match="mix_group 4 is less than twice repeated 3: images would be mixed with themselves"):
        DataConfig(train=(TrainSourceConfig(manifest=""),), mix_group=4, repeated=3, augment=AugmentConfig(cutmix=1.0))
    DataConfig(train=(TrainSourceConfig(manifest=""),), mix_group=4, repeated=3)


def test_mix_keeps_the_sum_of_a_group_with_one_weight():
    values = torch.from_numpy(np.random.default_rng(2).normal(size=(12, 3)))
    weights = torch.tensor([0.7, 0.9, 0.5], dtype=torch.float64).repeat_interleave(4)
    assert torch.allclose(mix(values, weights[:, None], 4).view(3, 4, 3).sum(1), values.view(3, 4, 3).sum(1), atol=1e-14)


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


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.9])
def test_smoothing_spreads_over_all_classes_before_targets_are_mixed(amount):
    b = batch(group=4)
    _, targets = prepare(b, config(mixup=0.2, mix_group=4), 7, torch.float32, amount)
    smoothed = (1 - amount) * np.eye(7)[b.labels_B.numpy()] + amount / 7
    assert np.abs(targets.double().numpy() - reference_mix(smoothed, b.mix_B.double().numpy(), 4)).max() < 1e-6


def painted(boxes: torch.Tensor) -> np.ndarray:
    """BHW: 1 inside, 0 outside."""
    masks = np.zeros((len(boxes), 6, 5))
    for mask, (y, x, h, w) in zip(masks, boxes.tolist(), strict=True):
        mask[y : y + h, x : x + w] = 1
    return masks


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_cutmix_pastes_the_neighbours_box_and_mixes_targets_by_its_area(mixup):
    b = batch(16, group=2, cut=True)
    images, targets = prepare(b, config(mix_group=2, mixup=mixup, cutmix=1.0), 7, torch.float32)
    own, cut = reference_images(b), painted(b.cut_B4)[:, None]
    neighbour = reference_mix(own, np.zeros(16), 2)
    weights = b.mix_B.double().numpy()
    has_box = b.cut_B4.numpy().any(1)[:, None, None, None]
    expected = np.where(has_box, np.where(cut == 1, neighbour, own), reference_mix(own, weights, 2))
    assert np.abs(images.double().numpy() - expected).max() < 1e-5
    assert np.abs(targets.double().numpy() - reference_mix(np.eye(7)[b.labels_B.numpy()], weights, 2)).max() < 1e-6
    assert np.abs(1 - cut.mean((1, 2, 3)) - weights)[has_box[:, 0, 0, 0]].max() < 1e-6


def test_pasted_pixels_are_the_neighbours_exactly():
    b = batch(8, group=4, cut=True)
    images, _ = prepare(b, config(cutmix=1.0), 7, torch.float32)
    plain, _ = prepare(b, config(), 7, torch.float32)
    y, x, h, w = b.cut_B4[4].tolist()
    assert torch.equal(images[4, :, y : y + h, x : x + w], plain[5, :, y : y + h, x : x + w])
    assert torch.equal(images[4, :, :y], plain[4, :, :y])


def test_erased_pixels_are_noise_of_the_sample_and_the_others_stay():
    b = batch()
    images, _ = prepare(b, config(erase=0.25), 7, torch.float32)
    plain, _ = prepare(b, config(), 7, torch.float32)
    erased = torch.from_numpy(painted(b.erase_B4) == 1)[:, None].expand_as(images)
    assert torch.equal(images[~erased], plain[~erased])
    assert torch.equal(images[erased], normal_noise(b.noise_B, 3, 6, 5)[erased])


def test_erasing_comes_before_mixing():
    b = batch()
    erased, _ = prepare(b, config(erase=0.25), 7, torch.float32)
    images, _ = prepare(b, config(erase=0.25, mixup=0.2), 7, torch.float32)
    expected = reference_mix(erased.double().numpy(), b.mix_B.double().numpy(), 4)
    assert np.abs(images.double().numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("augment", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "erase": 0.25}])
def test_a_micro_batch_is_its_part_of_the_whole(augment):
    """Groups do not reach across micro-batches."""
    b = batch(16, cut=True)
    whole_images, whole_targets = prepare(b, config(**augment), 7, torch.float32)
    parts = [prepare(part, config(**augment), 7, torch.float32) for part in b.split(4)]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole_images)
    assert torch.equal(torch.cat([targets for _, targets in parts]), whole_targets)


def test_nothing_waits_for_the_device():
    """Tensors without data: whatever asks for a value raises."""
    b = batch().to(torch.device("meta"))
    images, targets = prepare(b, config(mixup=0.8, cutmix=1.0, erase=0.25), 7, torch.bfloat16)
    assert (images.shape, targets.shape) == ((8, 3, 6, 5), (8, 7))
    with pytest.raises((NotImplementedError, RuntimeError)):
        b.mix_B.max().item()


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
    prepare(b, config(mixup=0.2, erase=0.25), 7, torch.float32)
    assert torch.equal(b.images_BHWC, batch().images_BHWC)
    assert torch.equal(b.labels_B, batch().labels_B)
