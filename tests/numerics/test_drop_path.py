"""Stochastic depth: which image skips which branch, by hand, by distribution, and alike on every layout."""

import numpy as np
import pytest
import scipy.stats
import torch
from references.native import logits_native
from tiny_models import bit, random_images, randomised, vit, weights_of

from data_pipeline.noise import uniform_noise
from vitscale.config import RunConfig
from vitscale.loop import drop_path_chance
from vitscale.model.layers import drop_path_factor, scaled

CPU = torch.device("cpu")


def run_config(model, seed=0):
    data, train = {"train": [{"manifest": "train.json"}]}, {"global_batch": 8, "total": {"steps": 1}}
    return RunConfig(name="x", seed=seed, model=model, data=data, train=train, optim={"lr": 1.0})


def chance(epochs, samples, seed=0, **changes):
    slots = (np.array(epochs, np.int64), np.array(samples, np.int64))
    (found,) = drop_path_chance(slots, run_config(vit(drop_path=0.5, **changes), seed), CPU)
    return found


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("pos_embed", ["learned1d", "relative"])
def test_a_training_step_with_given_chances_is_by_hand(schedule, pos_embed):
    cfg = vit(depth=3, drop_path=0.6, drop_path_schedule=schedule, layer_scale=0.3, pos_embed=pos_embed)
    model, images = randomised(cfg).train(), random_images(cfg, batch=6)
    chance_BL2 = torch.rand(6, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = logits_native(weights_of(model), cfg, images.numpy(), chance_BL2.double().numpy())
    with torch.no_grad():
        found, whole = model(images, chance_BL2).numpy(), model.eval()(images, chance_BL2).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    without = logits_native(weights_of(model), cfg, images.numpy())  # evaluation drops nothing
    np.testing.assert_allclose(whole, without, rtol=0, atol=5e-6 * np.abs(without).max())
    assert np.abs(expected - without).max() > 0.1


@pytest.mark.parametrize(
    ("schedule", "depth", "rates"),
    [("linear", 5, [0, 0.1, 0.2, 0.3, 0.4]), ("constant", 3, [0.4] * 3), ("linear", 1, [0.4]), ("linear", 2, [0, 0.4])],
)
def test_rates_over_depth(schedule, depth, rates):
    cfg = vit(depth=depth, drop_path=0.4, drop_path_schedule=schedule)
    assert cfg.drop_path_rates == pytest.approx(rates)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.75])
def test_the_mean_is_kept_and_each_image_whole(rate):
    branch, chances = torch.randn(1, 3, 4).expand(20_000, 3, 4), torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    factor_BL2 = drop_path_factor(chances[:, None, None].expand(-1, 1, 2), [rate])
    found = scaled(branch, factor_BL2[:, 0, 1])
    kept = found.flatten(1).any(1)
    assert torch.equal(kept, chances >= rate)
    torch.testing.assert_close(found[kept], branch[kept] / (1 - rate))
    spread = np.sqrt(rate * (1 - rate) / 20_000) / (1 - rate)
    assert abs(found.mean(0) / branch[0] - 1).max() <= 4.5 * spread + 1e-5


def test_without_chances_torchs_generator_decides():
    cfg = vit(drop_path=0.5, drop_path_schedule="constant")
    model, images = randomised(cfg).train(), random_images(cfg, batch=8)

    def logits(seed):
        torch.manual_seed(seed)
        return model(images)

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


def test_a_samples_chances_are_its_own_in_every_slot_and_batch():
    epochs, samples = [0, 0, 3, 3, 3, 7], [5, 2**40, 5, 6, 0, 1]
    whole = chance(epochs, samples)
    assert whole.shape == (6, 2, 2)
    for order in ([5, 3, 1, 0, 2, 4], [2], [4, 0]):
        part = chance([epochs[i] for i in order], [samples[i] for i in order])
        assert torch.equal(part, whole[order])


def test_chances_differ_between_samples_epochs_seeds_blocks_and_branches():
    base = chance([1] * 50, range(50))
    numbers = [base, chance([2] * 50, range(50)), chance([1] * 50, range(50, 100)), chance([1] * 50, range(50), seed=1)]
    every = torch.cat(numbers).flatten()
    assert len(every.unique()) > 0.999 * len(every)  # of 2^24 numbers a pair may meet


@pytest.mark.parametrize("axis", ["samples", "epochs"])
def test_chances_are_uniform(axis):
    counter = np.arange(20_000)
    found = chance(counter * (axis == "epochs"), counter * (axis == "samples")).double().numpy()
    assert (found.min() >= 0, found.max() < 1) == (True, True)
    for values in found.reshape(-1, 4).T:  # 1e-6 quantile of Kolmogorov's statistic
        assert scipy.stats.kstest(values, "uniform").statistic < 2.7 / np.sqrt(values.size)
    correlation = np.corrcoef(np.vstack([found.reshape(-1, 4).T, np.roll(found.reshape(-1, 4), 1, axis=0).T]))
    assert np.abs(correlation - np.eye(8)).max() < 5 / np.sqrt(20_000)


def test_uniform_noise_is_uniform_and_each_words_own():
    words = torch.arange(-500, 500)
    found = uniform_noise(words, 3, 7)
    assert (found.shape, found.dtype) == ((1000, 3, 7), torch.float32)
    assert torch.equal(uniform_noise(words.flip(0)[:5], 3, 7), found.flip(0)[:5])
    assert scipy.stats.kstest(found.double().numpy().ravel(), "uniform").statistic < 2.7 / np.sqrt(found.numel())
    assert found.min() >= 0
    assert found.max() < 1


@pytest.mark.parametrize("model", [vit(drop_path=0.0), bit(1, 1, 1, 1)], ids=["vit", "bit"])
def test_models_that_drop_nothing_get_no_chances(model):
    assert drop_path_chance((np.zeros(2, np.int64), np.arange(2)), run_config(model), CPU) == ()


def test_losses_do_not_depend_on_how_the_batch_is_split():
    cfg = vit(drop_path=0.6)
    model, images = randomised(cfg).train(), random_images(cfg, batch=8)
    epochs, samples = [2] * 8, list(range(10, 18))

    def losses(micro):
        parts = [slice(start, start + micro) for start in range(0, 8, micro)]
        logits = torch.cat([model(images[part], chance(epochs[part], samples[part])) for part in parts])
        return torch.nn.functional.cross_entropy(logits, torch.arange(8) % 5, reduction="none")

    torch.testing.assert_close(losses(2), losses(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(losses(4), losses(8), rtol=0, atol=1e-5)
