"""Inception score (Salimans et al., 2016)."""

from __future__ import annotations

import numpy as np


def inception_score(probabilities: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) || p(y)), mean and standard deviation over equal splits; between 1 and K.

    probabilities: (N, K), rows that sum to one. Splits are runs of the given order. Raises ValueError for
    fewer samples than splits, and for rows that are not probabilities.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2:
        raise ValueError(f"probabilities have shape {p.shape}, expected (N, K)")
    if splits < 1 or len(p) < splits:
        raise ValueError(f"{len(p)} samples cannot be split into {splits}: give more samples or fewer splits")
    if not np.isfinite(p).all() or (p < 0).any() or not np.allclose(p.sum(axis=1), 1.0, atol=1e-4):
        raise ValueError("probabilities must be finite, not negative, and sum to one in every row")
    scores = []
    for part in np.array_split(p, splits):
        marginal = part.mean(axis=0, keepdims=True)
        # p log p -> 0 as p -> 0, and p > 0 implies marginal > 0.
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
