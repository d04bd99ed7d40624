"""How far a Fréchet distance can be trusted: bootstrap intervals, and extrapolation to infinitely many clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from pyoco_pipeline.evaluation.frechet import Gaussian
from pyoco_pipeline.evaluation.statistics import FeatureStatistics

CONFIDENCE = 0.95
NUM_SIZES = 10  # counts that the line is fitted to
MIN_PER_DIMENSION = 2  # samples; with fewer the distance is not linear in 1/N
SMALLEST_SHARE = 0.25  # of all samples, at the smallest count


@dataclass(frozen=True)
class Interval:
    """low, high: of a distance at the given counts; num: resamples."""

    low: float
    high: float
    confidence: float
    num: int


@dataclass(frozen=True)
class Extrapolation:
    """value: the distance at infinitely many clips; standard_error: that of the fitted line's value there.

    counts, values: what the line was fitted to.
    """

    value: float
    standard_error: float
    counts: tuple[int, ...]
    values: tuple[float, ...]


def bootstrap_interval(
    generated: np.ndarray, real: FeatureStatistics, *, num: int, ddof: int = 1, seed: int = 0
) -> Interval:
    """95% interval of the Fréchet distance over the draw of generated clips, the real ones fixed.

    generated: (N, V, D), V vectors of each clip, which are resampled together. Resampling repeats clips, which moves
    every distance up by about as much as its own bias; so the spread of the resampled distances about their mean is
    put around the value itself (Efron and Tibshirani, 1993, section 10).
    """
    target = Gaussian(real.mean, real.covariance(ddof))
    rng = np.random.default_rng(seed)
    value = _distance(target, generated, ddof)
    with threadpool_limits(
        1, user_api="blas"
    ):  # as in frechet.py; here also for small dimensions, for all at once
        resampled = [
            _distance(target, generated[rng.integers(len(generated), size=len(generated))], ddof)
            for _ in range(num)
        ]
    tails = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.array(resampled) - np.mean(resampled), (tails, 1 - tails))
    return Interval(max(0.0, float(value + low)), float(value + high), CONFIDENCE, num)


def too_few_to_extrapolate(generated: np.ndarray, real: np.ndarray) -> str | None:
    """Why there are too few clips for `extrapolate`, None where there are enough."""
    num, dim = min(len(generated), len(real)), generated.shape[-1]
    per_clip = min(generated.shape[1], real.shape[1])
    needed = int(np.ceil(MIN_PER_DIMENSION * dim / per_clip / 0.6))
    if num >= needed:
        return None
    return f"extrapolation of {dim} dimensions needs {needed:,} clips on both sides, and there are {num:,}"


def extrapolate(generated: np.ndarray, real: np.ndarray, *, ddof: int = 1, seed: int = 0) -> Extrapolation:
    """The distance at infinitely many clips, by a line in 1/N (Chong and Forsyth, 2020).

    generated (N, V, D), real (M, V, D). Both sides are drawn down to the same counts, as both cause bias. The standard
    error is of the fit; subsets overlap, so that it is the least that is to be expected. Raises ValueError where
    `too_few_to_extrapolate`.
    """
    reason = too_few_to_extrapolate(generated, real)
    if reason:
        raise ValueError(reason)
    num, dim = min(len(generated), len(real)), generated.shape[-1]
    least = max(SMALLEST_SHARE * num, MIN_PER_DIMENSION * dim / min(generated.shape[1], real.shape[1]))
    counts = np.unique(np.linspace(np.ceil(least), num, NUM_SIZES).astype(int))
    rng = np.random.default_rng(seed)
    values = []
    for n in counts:
        part = real[rng.choice(len(real), n, replace=False)].reshape(-1, dim)
        statistics = FeatureStatistics(dim).update(part)
        target = Gaussian(statistics.mean, statistics.covariance(ddof))
        values.append(_distance(target, generated[rng.choice(len(generated), n, replace=False)], ddof))
    line = np.stack([np.ones(len(counts)), 1 / counts], axis=1)
    solution, *_ = np.linalg.lstsq(line, np.array(values), rcond=None)
    residuals = np.array(values) - line @ solution
    variance = (residuals @ residuals) / max(len(counts) - 2, 1)
    error = np.sqrt(variance * np.linalg.inv(line.T @ line)[0, 0])
    return Extrapolation(float(solution[0]), float(error), tuple(counts.tolist()), tuple(values))


def _distance(target: Gaussian, features: np.ndarray, ddof: int) -> float:
    return target.distance_of_samples(features.reshape(-1, features.shape[-1]), ddof)
