"""Feature statistics, the Fréchet distance and the inception score against closed forms."""

import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyoco_pipeline.evaluation import FeatureStatistics, frechet_distance
from pyoco_pipeline.evaluation.inception_score import inception_score


def features(num: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)) @ rng.normal(size=(dim, dim)) + 100 * rng.normal(size=dim)


def covariance(dim: int, seed: int, rank: int | None = None) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(dim, rank or 2 * dim))
    return root @ root.T / root.shape[1]


@given(cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_any_cut_into_batches_gives_the_statistics_of_the_whole(cuts, seed):
    x = features(60, 7, seed)
    streamed = FeatureStatistics(7)
    for part in np.split(x, sorted(cuts)):
        streamed.update(part)
    assert streamed.count == 60
    np.testing.assert_allclose(streamed.mean, x.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(streamed.covariance(), np.cov(x, rowvar=False), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(
        streamed.covariance(ddof=0), np.cov(x, rowvar=False, ddof=0), rtol=1e-8, atol=1e-9
    )


def test_merging_is_one_pass_over_both():
    x = features(90, 5)
    merged = FeatureStatistics(5).update(x[:31]).merge(FeatureStatistics(5).update(x[31:]))
    whole = FeatureStatistics(5).update(x)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-10)
    np.testing.assert_allclose(merged.covariance(), whole.covariance(), rtol=1e-10, atol=1e-10)


def test_merging_nothing_changes_nothing():
    statistics = FeatureStatistics(3).update(features(10, 3))
    before = statistics.covariance()
    statistics.merge(FeatureStatistics(3))
    np.testing.assert_array_equal(statistics.covariance(), before)


def test_float32_features_far_from_zero_keep_their_variance():
    x = (np.random.default_rng(0).normal(size=(2000, 1)) + 1000).astype(np.float32)
    streamed = FeatureStatistics(1)
    for part in np.split(x, 20):
        streamed.update(torch.from_numpy(part))
    assert streamed.covariance()[0, 0] == pytest.approx(np.var(x.astype(np.float64), ddof=1), rel=1e-9)


def test_statistics_survive_safetensors_exactly(tmp_path):
    statistics = FeatureStatistics(4).update(features(20, 4))
    safetensors.torch.save_file(statistics.to_tensors(), tmp_path / "statistics.safetensors")
    back = FeatureStatistics.from_tensors(safetensors.torch.load_file(tmp_path / "statistics.safetensors"))
    assert back.count == 20
    np.testing.assert_array_equal(back.mean, statistics.mean)
    np.testing.assert_array_equal(back.covariance(), statistics.covariance())


@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.zeros((3, 5)), "expected"), (np.zeros(4), "expected"), (np.full((2, 4), np.nan), "2 of 2 features")],
)
def test_features_of_another_shape_or_not_finite_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatistics(4).update(bad)


def test_a_covariance_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="more than 1"):
        FeatureStatistics(2).update(np.ones((1, 2))).covariance()


def test_frechet_distance_of_one_dimensional_gaussians():
    # (m1 - m2)² + (s1 - s2)²
    distance = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([-2.0]), np.array([[9.0]]))
    assert distance == pytest.approx(9.0 + 1.0, rel=1e-12)


def test_frechet_distance_of_diagonal_gaussians():
    rng = np.random.default_rng(0)
    m1, m2, v1, v2 = rng.normal(size=8), rng.normal(size=8), rng.uniform(size=8), rng.uniform(size=8)
    expected = np.square(m1 - m2).sum() + np.square(np.sqrt(v1) - np.sqrt(v2)).sum()
    assert frechet_distance(m1, np.diag(v1), m2, np.diag(v2)) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_agrees_with_the_matrix_square_root_of_the_product():
    for seed in range(5):
        c1, c2 = covariance(30, seed), covariance(30, seed + 100)
        m1, m2 = np.random.default_rng(seed).normal(size=(2, 30))
        root = scipy.linalg.sqrtm(c1 @ c2).real
        expected = np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * root)
        assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_symmetric_and_zero_to_itself():
    c1, c2, m = covariance(20, 1), covariance(20, 2), np.zeros(20)
    assert frechet_distance(m, c1, m + 1, c2) == pytest.approx(frechet_distance(m + 1, c2, m, c1), rel=1e-9)
    assert frechet_distance(m, c1, m, c1) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_of_singular_covariances():
    # Of rank 3 in 20 dimensions; scaling by s² gives (1 - s)² tr C.
    c, m = covariance(20, 0, rank=3), np.zeros(20)
    assert frechet_distance(m, c, m, 4 * c) == pytest.approx(np.trace(c), rel=1e-6)
    assert frechet_distance(m, c, m, np.zeros((20, 20))) == pytest.approx(np.trace(c), rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_frechet_distance_refuses_what_is_not_finite(value):
    c, bad = np.eye(2), np.full((2, 2), value)
    with pytest.raises(ValueError, match="mean2"):
        frechet_distance(np.zeros(2), c, bad[0], c)
    with pytest.raises(ValueError, match="cov1"):
        frechet_distance(np.zeros(2), bad, np.zeros(2), c)


def test_frechet_distance_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="shapes"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


def test_inception_score_of_uniform_predictions_is_one():
    assert inception_score(np.full((40, 10), 0.1), splits=4) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_inception_score_of_certain_and_balanced_predictions_is_the_number_of_classes():
    assert inception_score(np.tile(np.eye(10), (5, 1)), splits=5) == pytest.approx((10.0, 0.0), abs=1e-9)


def test_inception_score_of_one_certain_class_is_one():
    assert inception_score(np.eye(10)[np.zeros(20, int)], splits=2) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_inception_score_refuses_fewer_samples_than_splits():
    with pytest.raises(ValueError, match="9 samples cannot be split into 10"):
        inception_score(np.full((9, 3), 1 / 3))


@pytest.mark.parametrize("bad", [np.ones((4, 3)), np.full((4, 3), np.nan), np.zeros(3)])
def test_inception_score_refuses_what_are_not_probabilities(bad):
    with pytest.raises(ValueError, match="probabilities"):
        inception_score(bad, splits=1)
