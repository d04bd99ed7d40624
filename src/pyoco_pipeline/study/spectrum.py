"""A prior as a noise level per temporal frequency, and the sigma law that matches it to i.i.d. noise.

Along the frames, clips and noise are taken apart by the discrete cosine transform (DCT-II, orthonormal), which nearly
diagonalises the covariance of every stationary prior. At frequency k, noise of level σ has the variance σ²λ_k, with
λ_k = 1 for i.i.d. noise and Σ λ_k = T for every prior. The signal-to-noise ratio of the data is P_k / (σ²λ_k).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_NODES = 41  # of ln σ, over ±3 standard deviations of the law
_SHIFTS = np.linspace(-4.0, 4.0, 801)  # of ln σ


def dct_matrix(size: int) -> np.ndarray:
    """Orthonormal DCT-II, (size, size): row k is the cosine of frequency k / (2 size) cycles per sample."""
    k, t = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix = np.sqrt(2.0 / size) * np.cos(np.pi * (t + 0.5) * k / size)
    matrix[0] /= np.sqrt(2.0)
    return matrix


def noise_levels(covariance: np.ndarray) -> np.ndarray:
    """λ (T,): the variance of a prior of covariance (T, T) at each temporal frequency."""
    basis = dct_matrix(len(covariance))
    return np.einsum("kt,ts,ks->k", basis, covariance, basis).clip(min=0.0)


_NO_NOISE = 1e-9  # of a share that rounding leaves where a prior has none


@dataclass(frozen=True)
class DataSpectrum:
    """Power of clips around their mean, by temporal, vertical and horizontal frequency: (T, H, W)."""

    power: np.ndarray

    @classmethod
    def of(cls, clips: np.ndarray) -> DataSpectrum:
        """Of clips (N, T, H, W, C) in [-1, 1], or latents: mean over clips and channels.

        Raises ValueError for fewer than 2 clips: there is no variation then.
        """
        if len(clips) < 2:
            raise ValueError(f"{len(clips)} clips have no spectrum around their mean: give at least 2")
        x = clips - clips.mean(axis=0, keepdims=True)
        for axis in (1, 2, 3):
            x = np.moveaxis(np.tensordot(dct_matrix(x.shape[axis]), x, (1, axis)), 0, axis)
        return cls((x**2).sum(axis=0).mean(axis=-1) / (len(clips) - 1))

    @property
    def temporal(self) -> np.ndarray:
        """(T,): mean over space."""
        return self.power.mean(axis=(1, 2))

    def snr(self, levels: np.ndarray, sigma: float = 1.0) -> np.ndarray:
        """Signal-to-noise ratio (T,) by temporal frequency; infinite where a prior has no noise."""
        noise = np.where(levels > _NO_NOISE, sigma**2 * levels, 0.0)
        with np.errstate(divide="ignore"):
            return self.temporal / noise

    def lost(self, levels: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """Share of the clips' variance that the best linear denoiser can't bring back, for each sigma."""
        noise = np.square(np.asarray(sigma))[..., None, None, None] * levels[:, None, None]
        kept = self.power / np.maximum(self.power + noise, 1e-300)
        return ((1.0 - kept) * self.power).sum(axis=(-3, -2, -1)) / self.power.sum()


@dataclass(frozen=True)
class Match:
    """The shift of ln σ at which a prior loses as much of the clips as i.i.d. noise does.

    mismatch: what no shift removes, the root mean square difference of the shares that are lost, under the law.
    """

    shift: float
    mismatch: float


def match_to_iid(data: DataSpectrum, levels: np.ndarray, mean: float, std: float) -> Match:
    """Match a prior to i.i.d. noise under ln σ ~ N(mean, std²): the predicted P_mean is mean + shift."""
    offsets = np.linspace(-3.0, 3.0, _NODES)
    weights = np.exp(-(offsets**2) / 2)
    weights /= weights.sum()
    log_sigma = mean + std * offsets
    wanted = data.lost(np.ones_like(levels), np.exp(log_sigma))
    # One curve of the prior, read at shifted places: far cheaper than a curve per shift.
    grid = np.linspace(log_sigma[0] + _SHIFTS[0], log_sigma[-1] + _SHIFTS[-1], 400)
    curve = data.lost(levels, np.exp(grid))
    errors = [np.sum(weights * (np.interp(log_sigma + s, grid, curve) - wanted) ** 2) for s in _SHIFTS]
    best = int(np.argmin(errors))
    return Match(float(_SHIFTS[best]), float(np.sqrt(errors[best])))
