"""Kernel distance: the squared polynomial MMD of KID (Binkowski et al., 2018) and KVD (Unterthiner et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BLOCK = 1024  # rows of a kernel matrix that are held at once


@dataclass(frozen=True)
class KernelDistance:
    """value: the squared MMD, the mean over subsets; std: their standard deviation, 0 without subsets.

    The estimator is unbiased, so equal distributions give values about zero, negative ones as well.
    """

    value: float
    std: float
    num_subsets: int
    subset_size: int | None


def kernel_distance(
    first: np.ndarray,
    second: np.ndarray,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    subset_size: int | None = None,
    num_subsets: int = 100,
    seed: int = 0,
) -> KernelDistance:
    """Unbiased squared MMD of features (N, D) and (M, D) with the kernel (gamma x·y + coef0)^degree.

    gamma: 1 / D unless given. subset_size None: all pairs at once, as KVD in TATS; else the mean over `num_subsets`
    random subsets of min(N, M, subset_size) of each, without replacement, as KID (100 of 1,000). In float64, memory
    for _BLOCK rows of the kernel matrix. Raises ValueError for shapes that do not fit, fewer than two samples, or
    values that are not finite.
    """
    x, y = _checked(first, "first"), _checked(second, "second")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features have {x.shape[1]} and {y.shape[1]} dimensions, expected as many")
    gamma = 1 / x.shape[1] if gamma is None else gamma
    if subset_size is None:
        return KernelDistance(_squared_mmd(x, y, degree, gamma, coef0), 0.0, 1, None)
    if subset_size < 2 or num_subsets < 1:
        raise ValueError(f"{num_subsets} subsets of {subset_size} samples: give at least one of two")
    size = min(len(x), len(y), subset_size)
    rng = np.random.default_rng(seed)
    values = [
        _squared_mmd(
            x[rng.choice(len(x), size, replace=False)],
            y[rng.choice(len(y), size, replace=False)],
            *(degree, gamma, coef0),
        )
        for _ in range(num_subsets)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)), num_subsets, size)


def _checked(features: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"{name} has shape {x.shape}, expected (N, D) with at least 2 samples")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds values that are not finite")
    return x


def _squared_mmd(x: np.ndarray, y: np.ndarray, degree: int, gamma: float, coef0: float) -> float:
    def total(a: np.ndarray, b: np.ndarray) -> float:
        starts = range(0, len(a), _BLOCK)
        return float(sum(((gamma * (a[i : i + _BLOCK] @ b.T) + coef0) ** degree).sum() for i in starts))

    def within(a: np.ndarray) -> float:  # without the pairs of a sample with itself
        own = ((gamma * np.square(a).sum(axis=1) + coef0) ** degree).sum()
        return (total(a, a) - float(own)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))
