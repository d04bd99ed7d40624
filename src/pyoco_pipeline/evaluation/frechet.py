"""Fréchet distance between Gaussians (Dowson and Landau, 1982), as FID and FVD use it."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
from threadpoolctl import threadpool_limits

from pyoco_pipeline.evaluation.statistics import FeatureStatistics

_LARGE = 512  # dimensions; below, setting the number of threads costs more than it saves


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), the squared 2-Wasserstein distance of two Gaussians.

    mean: (D,), cov: (D, D), symmetric and positive semi-definite; singular is fine. Computed in float64.
    With C1 = R Rᵀ, tr (C1 C2)^½ = tr (Rᵀ C2 R)^½, whose argument is symmetric: two eigendecompositions, no
    matrix root of a product that is not symmetric. Raises ValueError for shapes that do not fit and for values that are
    not finite.
    """
    m1, c1, m2, c2 = (np.asarray(value, dtype=np.float64) for value in (mean1, cov1, mean2, cov2))
    dim = m1.size
    shapes = (m1.shape, c1.shape, m2.shape, c2.shape)
    if shapes != ((dim,), (dim, dim), (dim,), (dim, dim)):
        raise ValueError(f"means and covariances have shapes {shapes}, expected (D,), (D, D), (D,), (D, D)")
    for name, value in (("mean1", m1), ("cov1", c1), ("mean2", m2), ("cov2", c2)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite")

    # On a busy machine the threads of LAPACK wait for each other: 23 s for D = 2048 on two cores, 3 s on one.
    with threadpool_limits(1, user_api="blas") if dim >= _LARGE else nullcontext():
        values, vectors = np.linalg.eigh((c1 + c1.T) / 2)
        root1 = vectors * np.sqrt(values.clip(min=0))
        product = root1.T @ c2 @ root1
        trace_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    distance = np.square(m1 - m2).sum() + np.trace(c1) + np.trace(c2) - 2 * trace_root
    return float(max(distance, 0.0))  # rounding alone can take it below zero


def distance_of_statistics(first: FeatureStatistics, second: FeatureStatistics, ddof: int = 1) -> float:
    """Fréchet distance of two feature sets, covariances divided by N - ddof: 0 in StyleGAN-V's FVD, 1 in TATS's."""
    return frechet_distance(first.mean, first.covariance(ddof), second.mean, second.covariance(ddof))
