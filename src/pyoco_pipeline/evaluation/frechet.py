"""Fréchet distance between Gaussians (Dowson and Landau, 1982), as FID and FVD use it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
from threadpoolctl import threadpool_limits

from pyoco_pipeline.evaluation.statistics import FeatureStatistics

_LARGE = 512  # dimensions; below, setting the number of threads costs more than it saves


class Gaussian:
    """A Gaussian whose distance to several others is asked for; the root of its covariance is computed once.

    mean: (D,), cov: (D, D), symmetric and positive semi-definite; singular is fine. Raises ValueError for shapes that
    do not fit and for values that are not finite.
    """

    def __init__(self, mean: np.ndarray, cov: np.ndarray, names: tuple[str, str] = ("mean", "cov")) -> None:
        self.mean, self.cov = _checked(mean, cov, names)
        with _few_threads(self.mean.size):
            values, vectors = np.linalg.eigh((self.cov + self.cov.T) / 2)
            self._root = vectors * np.sqrt(values.clip(min=0))

    def distance(self, mean: np.ndarray, cov: np.ndarray, names: tuple[str, str] = ("mean", "cov")) -> float:
        """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), in float64.

        With C1 = R Rᵀ, tr (C1 C2)^½ = tr (Rᵀ C2 R)^½, whose argument is symmetric: two eigendecompositions, no
        matrix root of a product that is not symmetric.
        """
        m2, c2 = _checked(mean, cov, names)
        if m2.shape != self.mean.shape:
            raise ValueError(f"the means have shapes {self.mean.shape} and {m2.shape}, expected the same")
        with _few_threads(m2.size):
            product = self._root.T @ c2 @ self._root
            trace_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
        distance = np.square(self.mean - m2).sum() + np.trace(self.cov) + np.trace(c2) - 2 * trace_root
        return float(max(distance, 0.0))  # rounding alone can take it below zero

    def distance_of_samples(self, samples: np.ndarray, ddof: int = 1) -> float:
        """The distance to the Gaussian of samples (N, D), without their covariance where N is less than D.

        tr (Rᵀ C2 R)^½ is the sum of the singular values of the centred samples times R, over √(N - ddof).
        """
        x = np.asarray(samples, dtype=np.float64)
        mean = x.mean(axis=0)
        centred = (x - mean) / np.sqrt(len(x) - ddof)
        with _few_threads(mean.size):
            z = centred @ self._root
            gram = z @ z.T if len(z) < mean.size else z.T @ z
            trace_root = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
        distance = np.square(self.mean - mean).sum() + np.trace(self.cov) + np.square(centred).sum()
        return float(max(distance - 2 * trace_root, 0.0))


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), the squared 2-Wasserstein distance of two Gaussians.

    mean: (D,), cov: (D, D), symmetric and positive semi-definite; singular is fine. Computed in float64. Raises
    ValueError for shapes that do not fit and for values that are not finite.
    """
    return Gaussian(mean1, cov1, ("mean1", "cov1")).distance(mean2, cov2, ("mean2", "cov2"))


def _checked(mean: np.ndarray, cov: np.ndarray, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    m, c = np.asarray(mean, dtype=np.float64), np.asarray(cov, dtype=np.float64)
    if m.ndim != 1 or c.shape != (m.size, m.size):
        raise ValueError(
            f"{names[0]} and {names[1]} have shapes {m.shape} and {c.shape}, expected (D,) and (D, D)"
        )
    for name, value in zip(names, (m, c), strict=True):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite")
    return m, c


def _few_threads(dim: int) -> AbstractContextManager[object]:
    # On a busy machine the threads of LAPACK wait for each other: 23 s for D = 2048 on two cores, 3 s on one.
    return threadpool_limits(1, user_api="blas") if dim >= _LARGE else nullcontext()


def distance_of_statistics(first: FeatureStatistics, second: FeatureStatistics, ddof: int = 1) -> float:
    """Fréchet distance of two feature sets, covariances divided by N - ddof: 0 in StyleGAN-V's FVD, 1 in TATS's."""
    return frechet_distance(first.mean, first.covariance(ddof), second.mean, second.covariance(ddof))
