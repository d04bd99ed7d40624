"""Kernel and Fréchet distances of given features against direct formulas and the published implementations."""

import numpy as np
import pytest
from fixtures.random_weights import random_features
from published_files import reference
from sklearn.metrics.pairwise import polynomial_kernel

from pyoco_pipeline.evaluation import FeatureStatistics
from pyoco_pipeline.evaluation import kernel_distance as module
from pyoco_pipeline.evaluation.frechet import distance_of_statistics
from pyoco_pipeline.evaluation.kernel_distance import kernel_distance


def direct(x, y, degree=3, gamma=None, coef0=1.0):
    """The definition, one pair at a time."""
    gamma = gamma or 1 / x.shape[1]

    def mean(a, b, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        return np.mean([(gamma * (a[i] @ b[j]) + coef0) ** degree for i, j in pairs])

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@pytest.fixture(scope="module")
def published_features():
    """Those of fixtures/make_reference_outputs.py."""
    return random_features(300, 64, seed=1), random_features(250, 64, seed=2)


@pytest.mark.parametrize("options", [{}, {"degree": 2, "coef0": 0.5}, {"gamma": 0.3}])
def test_the_distance_is_the_mean_over_all_pairs(options):
    x, y = random_features(23, 5, seed=1), random_features(17, 5, seed=2)
    found = kernel_distance(x, y, **options)
    assert found.value == pytest.approx(direct(x, y, **options), rel=1e-10)
    assert (found.std, found.subset_size) == (0.0, None)


def test_the_kernel_is_that_of_scikit_learn():
    x, y = random_features(40, 6, seed=1), random_features(30, 6, seed=2)
    k = [polynomial_kernel(a, b) for a, b in ((x, x), (y, y), (x, y))]
    within = sum((m.sum() - np.trace(m)) / (len(m) * (len(m) - 1)) for m in k[:2])
    assert kernel_distance(x, y).value == pytest.approx(within - 2 * k[2].mean(), rel=1e-10)


def test_it_equals_the_polynomial_mmd_of_tats(published_features):
    expected = reference("distances")["polynomial_mmd_tats"]
    assert kernel_distance(*published_features).value == pytest.approx(float(expected), rel=1e-9)


def test_a_subset_of_everything_is_everything_and_subsets_are_drawn_by_the_seed():
    x, y = random_features(30, 4, seed=1), random_features(30, 4, seed=2)
    whole = kernel_distance(x, y)
    subset = kernel_distance(x, y, subset_size=1000, num_subsets=3)
    assert subset.value == pytest.approx(whole.value, rel=1e-10)
    assert subset.subset_size == 30
    small = kernel_distance(x, y, subset_size=10, num_subsets=20)
    assert small == kernel_distance(x, y, subset_size=10, num_subsets=20)
    assert small.value != kernel_distance(x, y, subset_size=10, num_subsets=20, seed=1).value
    assert small.std > 0


def test_it_is_unbiased_on_equal_distributions():
    rng = np.random.default_rng(0)
    values = [
        kernel_distance(rng.standard_normal((20, 3)), rng.standard_normal((20, 3))).value for _ in range(400)
    ]
    # Four standard errors: a right estimator fails once in 16,000 seeds.
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_blocks_change_nothing(monkeypatch):
    x, y = random_features(50, 4, seed=1), random_features(37, 4, seed=2)
    whole = kernel_distance(x, y).value
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert kernel_distance(x, y).value == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "first has shape"),
        (np.zeros((4, 3)), np.zeros(4), "second has shape"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "3 and 2 dimensions"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "first holds values that are not finite"),
    ],
)
def test_features_that_do_not_fit_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(x, y)


@pytest.mark.parametrize("options", [{"subset_size": 1}, {"subset_size": 5, "num_subsets": 0}])
def test_subsets_that_cannot_be_drawn_are_refused(options):
    with pytest.raises(ValueError, match="give at least one of two"):
        kernel_distance(np.zeros((4, 3)), np.zeros((4, 3)), **options)


def streamed(features):
    """Statistics in batches, as the evaluation makes them."""
    statistics = FeatureStatistics(features.shape[1])
    for part in np.array_split(features, 7):
        statistics.update(part)
    return statistics


def test_the_frechet_distance_equals_tats_with_n_minus_one(published_features):
    first, second = map(streamed, published_features)
    expected = float(reference("distances")["frechet_tats"])
    assert distance_of_statistics(first, second, ddof=1) == pytest.approx(expected, rel=1e-6)
    assert abs(distance_of_statistics(first, second, ddof=0) / expected - 1) > 1e-4


def test_the_frechet_distance_equals_stylegan_v_with_n(published_features):
    # StyleGAN-V keeps features as float32 before it adds them up in float64.
    first, second = (streamed(x.astype(np.float32)) for x in published_features)
    expected = float(reference("distances_stylegan_v")["frechet"])
    assert distance_of_statistics(first, second, ddof=0) == pytest.approx(expected, rel=1e-6)
    assert abs(distance_of_statistics(first, second, ddof=1) / expected - 1) > 1e-4
