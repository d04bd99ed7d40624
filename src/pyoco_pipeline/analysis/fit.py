"""Which prior the noise maps of a data set follow: α of each family by maximum likelihood, and the families compared.

The maps of a clip are taken as draws of N(0, s²S(α)) over its T frames, one for each pixel; s² is free, as a prior's
unit variance is no finding, and the T×T covariance is all that the likelihood needs. Pixels are not independent, which
leaves the estimate consistent and makes its curvature meaningless: intervals come from resampling the clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from pyoco_pipeline.analysis.correlation import covariance, leave_one_out, resampled_covariances
from pyoco_pipeline.analysis.empirical import empirical_correlation, toeplitz
from pyoco_pipeline.noise import EMPIRICAL, make_prior

FAMILIES = ("mixed", "progressive")
IID = "iid"
ALPHA_MAX = 100.0  # neighbouring frames correlated by 0.9999 in mixed, 0.99995 in progressive noise


@dataclass(frozen=True)
class Family:
    """A family of priors on a grid of α: (G,), with S(α)⁻¹ (G, T, T) and ln det S(α) (G,)."""

    alphas: np.ndarray
    inverse: np.ndarray
    log_det: np.ndarray

    def log_likelihood(self, covariances: np.ndarray) -> np.ndarray:
        """Of one pixel of a clip, at every α and the best s² for it: (…, G) from covariances (…, T, T)."""
        frames = covariances.shape[-1]
        scales = self.quadratic(covariances) / frames
        return -0.5 * (frames * (np.log(2 * np.pi * scales) + 1) + self.log_det)

    def quadratic(self, covariances: np.ndarray) -> np.ndarray:
        """tr(S⁻¹ C): (…, G)."""
        flat = covariances.reshape(*covariances.shape[:-2], -1)
        return flat @ self.inverse.reshape(len(self.inverse), -1).T


@dataclass(frozen=True)
class AlphaFit:
    """α of a family, in [0, ALPHA_MAX].

    interval: of the stated confidence, from a bootstrap over clips. naive_interval: from the curvature of the
    likelihood, as if pixels were independent; too narrow. scale: s², the variance that the maps have beside S. alphas,
    log_likelihood: the profile, (G,), in nats per pixel of a clip (T values). alphas[0] is 0.
    """

    alpha: float
    interval: tuple[float, float]
    naive_interval: tuple[float, float]
    scale: float
    alphas: np.ndarray
    log_likelihood: np.ndarray


@dataclass(frozen=True)
class Score:
    """A family's mean log-likelihood of a clip, in nats per pixel, when fitted to the other clips.

    behind: by how much less than the best family's; standard_error: of that difference, over clips.
    """

    log_likelihood: float
    behind: float
    standard_error: float


def fit_alpha(
    name: str,
    products: np.ndarray,
    *,
    values_per_map: int,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> AlphaFit:
    """Fit one of FAMILIES to the products (N, T, N, T) of noise maps of `values_per_map` values each."""
    family = _family(name, products.shape[1])
    measured = covariance(products)
    profile = family.log_likelihood(measured)
    alpha = float(_peaks(family, profile[None])[0])
    pixels = (len(products) - 1) * values_per_map  # of T values each; the mean took one clip
    draws = bootstrap_weights(len(products), resamples, seed)
    peaks = _peaks(family, family.log_likelihood(resampled_covariances(products, draws)))
    return AlphaFit(
        alpha=alpha,
        interval=percentile_interval(peaks, len(products), confidence),
        naive_interval=_profile_interval(family.alphas, profile, alpha, pixels, confidence),
        scale=float(family.quadratic(measured)[profile.argmax()] / products.shape[1]),
        alphas=family.alphas,
        log_likelihood=profile,
    )


def _profile_interval(
    alphas: np.ndarray, profile: np.ndarray, alpha: float, pixels: int, confidence: float
) -> tuple[float, float]:
    """Where the likelihood ratio of so many independent pixels is within chi-squared's quantile."""
    # The ratio's signed root is nearly linear in α, which makes interpolation exact between far grid points.
    root = np.sign(alphas - alpha) * np.sqrt(2 * pixels * (profile.max() - profile))
    z = stats.norm.ppf((1 + confidence) / 2)
    order = np.argsort(np.append(alphas, alpha))
    places, roots = np.append(alphas, alpha)[order], np.append(root, 0.0)[order]
    low, high = np.interp([-z, z], np.maximum.accumulate(roots), places)
    return float(low), float(high)


def bootstrap_weights(clips: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of `clips` is in each resample, (B, N); resamples of one clip alone have no covariance."""
    draw = np.random.default_rng(seed)
    weights = draw.multinomial(clips, np.full(clips, 1 / clips), size=resamples)
    return weights[(weights > 0).sum(axis=1) > 1].astype(np.float64)


def percentile_interval(peaks: np.ndarray, clips: int, confidence: float) -> tuple[float, float]:
    """Bootstrap percentiles, moved outwards for what resampling few clips misses (Hesterberg 2015, sec. 5.3).

    Plain percentiles are too narrow by √((N-1)/N), and by the normal law's place where Student's belongs.
    """
    t = stats.t.ppf((1 + confidence) / 2, clips - 1) * np.sqrt(clips / (clips - 1))
    low, high = np.quantile(peaks, [stats.norm.cdf(-t), stats.norm.cdf(t)])
    return float(low), float(high)


def compare_families(products: np.ndarray) -> dict[str, Score]:
    """iid, mixed, progressive and empirical priors by how likely each makes clips they were not fitted to.

    Each clip is left out once; best first.
    """
    trained, left = leave_one_out(products)
    scores = {name: _left_out_scores(name, trained, left) for name in (IID, *FAMILIES, EMPIRICAL)}
    best = max(scores, key=lambda name: scores[name].mean())
    ranked = sorted(scores, key=lambda name: -scores[name].mean())
    return {name: _score(scores[name], scores[best]) for name in ranked}


def _score(values: np.ndarray, best: np.ndarray) -> Score:
    behind = best - values
    error = behind.std(ddof=1) / np.sqrt(len(behind))
    return Score(float(values.mean()), float(behind.mean()), float(error))


def _left_out_scores(name: str, trained: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Log-likelihood of each clip, (N,), by covariances of the others and of itself, both (N, T, T)."""
    frames = trained.shape[-1]
    matrices = np.stack([_fitted_matrix(name, matrix) for matrix in trained])
    inverse, log_det = np.linalg.inv(matrices), np.linalg.slogdet(matrices)[1]
    scale = np.einsum("nij,nij->n", inverse, trained) / frames
    quadratic = np.einsum("nij,nij->n", inverse, left) / scale
    return -0.5 * (frames * np.log(2 * np.pi * scale) + log_det + quadratic)


def _fitted_matrix(name: str, measured: np.ndarray) -> np.ndarray:
    frames = len(measured)
    if name == EMPIRICAL:
        return toeplitz(empirical_correlation(measured))
    if name == IID:
        return np.eye(frames)
    family = _family(name, frames)
    alpha = _peaks(family, family.log_likelihood(measured)[None])[0]
    return _matrix(name, float(alpha), frames)


def fitted_correlations(fits: Mapping[str, AlphaFit], measured: np.ndarray) -> dict[str, np.ndarray]:
    """Correlation by distance of the frames, (T,), of every family as fitted to covariances (T, T)."""
    frames = len(measured)
    rows = {name: _matrix(name, fit.alpha, frames)[0] for name, fit in fits.items()}
    return rows | {EMPIRICAL: empirical_correlation(measured)}


def _matrix(name: str, alpha: float, frames: int) -> np.ndarray:
    return make_prior(name, alpha).covariance(frames).numpy()


@lru_cache(maxsize=16)
def _family(name: str, frames: int) -> Family:
    alphas = np.concatenate([[0.0], np.geomspace(0.01, ALPHA_MAX, 800)])
    matrices = np.stack([_matrix(name, float(alpha), frames) for alpha in alphas])
    return Family(alphas, np.linalg.inv(matrices), np.linalg.slogdet(matrices)[1])


def _peaks(family: Family, profiles: np.ndarray) -> np.ndarray:
    """α of the largest values of profiles (B, G), (B,): between grid points, by a parabola in ln α."""
    place = profiles.argmax(axis=1)
    inner = np.clip(place, 2, len(family.alphas) - 2)
    rows = np.arange(len(profiles))
    left, top, right = (profiles[rows, inner + shift] for shift in (-1, 0, 1))
    bend = left - 2 * top + right
    shift = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, 1.0), 0.0)
    step = np.log(family.alphas[2] / family.alphas[1])
    refined = family.alphas[inner] * np.exp(np.clip(shift, -0.5, 0.5) * step)
    return np.where(place == inner, refined, family.alphas[place])
