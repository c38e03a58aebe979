"""Few-shot accuracy beside scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from vitscale.fewshot import SHOTS, Features, accuracies, draw, nearest, ridge

# big_vision/evaluators/fewshot_lsr.py: l2_reg 2**10, a last feature of 100, 1e-5 added to each deviation
RIDGE, BIAS, MIN_STD = 1024, 100, 1e-5
NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO, arXiv 2104.14294, section 4.1 and eval_knn.py


@pytest.fixture(scope="module")
def sets() -> tuple[Features, Features]:
    """Pixels of digits: noisy enough that 25 images of a class do not say all."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels + np.random.default_rng(0).normal(0, 6, pixels.shape)
    half = len(labels) // 2
    return tuple(
        Features(torch.from_numpy(pixels[part]), torch.from_numpy(labels[part])) for part in (slice(half), slice(half, None))
    )


def by_scikit_learn(few: Features, test_MD: torch.Tensor) -> np.ndarray:
    x, mean = few.features_ND.numpy(), few.features_ND.numpy().mean(0)
    std = x.std(0) + MIN_STD
    with_bias = [np.hstack([(part - mean) / std, np.full((len(part), 1), BIAS)]) for part in (x, test_MD.numpy())]
    targets = np.where(np.eye(10)[few.labels_N.numpy()] > 0, 1.0, -1.0)
    return Ridge(alpha=RIDGE, fit_intercept=False).fit(with_bias[0], targets).predict(with_bias[1]).argmax(1)


@pytest.mark.parametrize("shots", [1, 10, 1000])
def test_ridge_is_scikit_learns(sets, shots):
    train, test = sets
    few = draw(train, shots, seed=0)
    ours = ridge(few, test.features_ND, 10).numpy()
    assert (ours == by_scikit_learn(few, test.features_ND)).all()
    assert 0.15 < (ours == test.labels_N.numpy()).mean() < 0.97


def test_ridge_is_scikit_learns_where_classes_are_unequal(sets):
    """The constant feature says how common a class is; of so few images, its penalty counts."""
    train, test = sets
    few = Features(*(tensor[torch.arange(30) % 4 > 0] for tensor in draw(train, 3, seed=0)))
    assert few.labels_N.bincount().tolist() == [2, 2, 2, 3, 2, 2, 2, 3, 2, 2]
    ours = ridge(few, test.features_ND, 10).numpy()
    assert (ours == by_scikit_learn(few, test.features_ND)).all()


def test_ridge_is_scikit_learns_where_features_hardly_vary(sets):
    train, test = (part._replace(features_ND=part.features_ND * torch.logspace(0, -6, 64)) for part in sets)
    few = draw(train, 10, seed=0)
    ours = ridge(few, test.features_ND, 10).numpy()
    assert (ours == by_scikit_learn(few, test.features_ND)).all()


def test_neighbours_are_scikit_learns(sets):
    train, test = sets
    weigh = lambda distance: np.exp((1 - distance) / TEMPERATURE)  # noqa: E731
    theirs = KNeighborsClassifier(NEIGHBOURS, weights=weigh, metric="cosine", algorithm="brute")
    theirs = theirs.fit(train.features_ND.numpy(), train.labels_N.numpy()).predict(test.features_ND.numpy())
    assert (nearest(train, test.features_ND, 10).numpy() == theirs).all()


def test_a_draw_has_so_many_of_each_class_and_depends_on_the_seed(sets):
    train, _ = sets
    for shots in SHOTS:
        few = draw(train, shots, seed=0)
        assert few.labels_N.bincount().tolist() == [shots] * 10
        assert len(few.features_ND.unique(dim=0)) == 10 * shots
    assert torch.equal(draw(train, 5, 1).features_ND, draw(train, 5, 1).features_ND)
    assert not torch.equal(draw(train, 5, 1).features_ND, draw(train, 5, 2).features_ND)


def test_of_a_class_with_fewer_all_are_taken():
    few = draw(Features(torch.arange(7.0)[:, None].double(), torch.tensor([0, 1, 1, 1, 1, 1, 3])), 3, seed=0)
    assert few.labels_N.bincount().tolist() == [1, 3, 0, 1]


def test_more_shots_say_more(sets):
    found = accuracies(*sets)
    assert list(found) == ["1shot", "5shot", "10shot", "25shot", "knn"]
    assert found["1shot"] < found["5shot"] < found["10shot"] < found["25shot"]


def test_an_accuracy_is_the_mean_over_three_draws(sets):
    """As big_vision's three seeds."""
    train, test = sets
    found = accuracies(train, test)
    for shots in SHOTS:
        guesses = [ridge(draw(train, shots, seed), test.features_ND, 10) for seed in (0, 1, 2)]
        assert found[f"{shots}shot"] == pytest.approx(np.mean([(guess == test.labels_N).double().mean() for guess in guesses]))
