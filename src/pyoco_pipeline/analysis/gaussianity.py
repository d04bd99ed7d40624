"""Are noise maps N(0, 1) pixel by pixel? Moments and a Kolmogorov-Smirnov statistic, with errors by clips."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from pyoco_pipeline.analysis.correlation import jackknife_error

_KOLMOGOROV_95 = 1.358  # √n times the statistic stays below with probability 0.95 (Kolmogorov's law, large n)
_GRID = np.linspace(-5.0, 5.0, 401)


@dataclass(frozen=True)
class Moment:
    """An estimate over all clips, frames and pixels; standard_error: by a jackknife over the clips."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Gaussianity:
    """Of the values of all maps. kurtosis: the excess over 3, 0 for a Gaussian.

    ks: largest distance to the distribution function of N(0, 1). effective_samples: how many independent values would
    have left the distribution function as uncertain as the clips do (Rao & Scott 1981's first-order design effect);
    ks_critical: what that many values of N(0, 1) exceed in 5% of cases.
    pixel_variance_p05, _p95: quantiles over positions of the variance at one position.
    """

    mean: Moment
    variance: Moment
    skewness: Moment
    kurtosis: Moment
    ks: float
    ks_critical: float
    values: int
    effective_samples: float
    pixel_variance_p05: float
    pixel_variance_p95: float

    def as_dict(self) -> dict[str, Any]:
        """As strict JSON."""
        return asdict(self)


def gaussianity(maps: np.ndarray) -> Gaussianity:
    """The checks on finite maps (N, T, C, H, W)."""
    clips = len(maps)
    flat = maps.reshape(clips, -1)
    powers = np.stack([_raw_moments(row) for row in flat])  # (N, 4)
    without = (powers.sum(axis=0) - powers) / (clips - 1)
    values, errors = _standardised(powers.mean(axis=0)), jackknife_error(_standardised(without))
    mean, variance, skewness, kurtosis = map(Moment, values.tolist(), errors.tolist())
    effective = _effective_samples(flat)
    low, high = np.quantile(pixel_variance(maps), [0.05, 0.95])
    return Gaussianity(
        mean,
        variance,
        skewness,
        kurtosis,
        ks=_ks(flat),
        ks_critical=_KOLMOGOROV_95 / float(np.sqrt(effective)),
        values=flat.size,
        effective_samples=effective,
        pixel_variance_p05=float(low),
        pixel_variance_p95=float(high),
    )


def pixel_variance(maps: np.ndarray) -> np.ndarray:
    """Variance over clips and frames at each position: (C, H, W)."""
    return maps.var(axis=(0, 1), dtype=np.float64)


def _raw_moments(values: np.ndarray) -> np.ndarray:
    x = values.astype(np.float64)
    square = x * x
    return np.array([x.mean(), square.mean(), (square * x).mean(), (square * square).mean()])


def _standardised(raw: np.ndarray) -> np.ndarray:
    """Mean, variance, skewness and excess kurtosis (…, 4) from the means of x, x², x³ and x⁴ (…, 4)."""
    m1, m2, m3, m4 = np.moveaxis(raw, -1, 0)
    variance = m2 - m1**2
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return np.stack([m1, variance, third / variance**1.5, fourth / variance**2 - 3], axis=-1)


def _ks(flat: np.ndarray) -> float:
    """sup |F̂ - Φ|."""
    ordered = np.sort(flat, axis=None)
    expected, n = ndtr(ordered.astype(np.float64)), ordered.size
    above = np.arange(1, n + 1) / n - expected
    return float(max(above.max(), (expected - np.arange(n) / n).max()))


def _effective_samples(flat: np.ndarray) -> float:
    """∫ F(1-F) over the variance of a clip's own distribution function, times the clips; at most the values."""
    clips = len(flat)
    own = np.stack([np.searchsorted(np.sort(row), _GRID, side="right") / row.size for row in flat])
    mean = own.mean(axis=0)
    spread = own.var(axis=0, ddof=1).sum()
    return float(min(flat.size, clips * (mean * (1 - mean)).sum() / max(spread, 1e-300)))
