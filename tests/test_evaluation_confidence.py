"""Intervals cover what they say, and the extrapolation removes the bias of a finite count."""

import numpy as np
import pytest

from pyoco_pipeline.evaluation.confidence import bootstrap_interval, extrapolate, too_few_to_extrapolate
from pyoco_pipeline.evaluation.frechet import Gaussian, frechet_distance
from pyoco_pipeline.evaluation.statistics import FeatureStatistics

DIM = 4


def clips(rng, num, *, per_clip=1, shift=0.5, dim=DIM):
    return rng.standard_normal((num, per_clip, dim)) + shift


def test_the_interval_holds_the_mean_over_repeated_draws_of_clips_as_often_as_it_says():
    """95% over 100 draws: 88 or fewer hits have a probability of .004 at a true coverage of .95."""
    rng = np.random.default_rng(0)
    real = FeatureStatistics(DIM).update(rng.standard_normal((3000, DIM)))
    target = Gaussian(real.mean, real.covariance())
    draws = [clips(rng, 200) for _ in range(1000)]
    expected = np.mean([target.distance_of_samples(draw[:, 0]) for draw in draws])
    intervals = [bootstrap_interval(draw, real, num=200, seed=i) for i, draw in enumerate(draws[:100])]
    assert sum(i.low <= expected <= i.high for i in intervals) >= 89
    assert max(i.high - i.low for i in intervals) < 1.5


def test_frames_of_a_clip_are_resampled_together():
    """Copies of a frame tell nothing new: the interval of clips of 8 equal frames is that of one frame each."""
    rng = np.random.default_rng(0)
    real = FeatureStatistics(DIM).update(rng.standard_normal((500, DIM)))
    one = clips(rng, 100)
    single = bootstrap_interval(one, real, num=50, ddof=0)
    repeated = bootstrap_interval(one.repeat(8, axis=1), real, num=50, ddof=0)
    assert repeated.low == pytest.approx(single.low)
    assert repeated.high == pytest.approx(single.high)


def test_intervals_depend_on_the_seed_alone():
    rng = np.random.default_rng(0)
    real = FeatureStatistics(DIM).update(rng.standard_normal((50, DIM)))
    features = clips(rng, 30)
    a, b, c = (bootstrap_interval(features, real, num=20, seed=s) for s in (0, 0, 1))
    assert a == b != c


def test_the_extrapolated_distance_of_equal_distributions_is_about_zero_where_that_of_the_count_is_not():
    rng = np.random.default_rng(1)
    dim, found = 16, []
    for seed in range(20):
        x, y = clips(rng, 400, dim=dim, shift=0), clips(rng, 400, dim=dim, shift=0)
        found.append(extrapolate(x, y, seed=seed))
    at_count = np.mean([f.values[-1] for f in found])
    values = np.array([f.value for f in found])
    assert at_count > 0.2
    assert abs(values.mean()) < min(0.1 * at_count, 4 * values.std() / np.sqrt(20))
    assert all(f.counts[0] == 100 and f.counts[-1] == 400 and len(f.counts) == 10 for f in found)
    assert all(f.standard_error > 0 for f in found)


def test_too_few_clips_are_not_extrapolated_from():
    few = np.zeros((100, 1, 64))
    reason = too_few_to_extrapolate(few, few)
    assert reason == "extrapolation of 64 dimensions needs 214 clips on both sides, and there are 100"
    with pytest.raises(ValueError, match="needs 214 clips"):
        extrapolate(few, few)
    assert too_few_to_extrapolate(np.zeros((214, 1, 64)), np.zeros((300, 1, 64))) is None


@pytest.mark.parametrize("num", [5, 40])
@pytest.mark.parametrize("ddof", [0, 1])
def test_the_distance_of_samples_is_that_of_their_covariance(num, ddof):
    rng = np.random.default_rng(2)
    real, samples = rng.standard_normal((60, 12)), rng.standard_normal((num, 12)) * 2 + 1
    mean, cov = real.mean(0), np.cov(real, rowvar=False)
    expected = frechet_distance(mean, cov, samples.mean(0), np.cov(samples, rowvar=False, ddof=ddof))
    # Singular covariances: the square root of a rounding error of 1e-16 is 1e-8.
    assert Gaussian(mean, cov).distance_of_samples(samples, ddof) == pytest.approx(expected, rel=1e-6)
