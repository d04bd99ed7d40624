"""The measured prior: a Toeplitz correlation of the frames, and the conf snippet that sets it or another prior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import yaml

from pyoco_pipeline.analysis.correlation import by_distance
from pyoco_pipeline.noise import EMPIRICAL, IIDNoise

DECIMALS = 6
_ITERATIONS = 500


def toeplitz(row: np.ndarray) -> np.ndarray:
    """The symmetric (T, T) matrix of entries row[|i - j|]."""
    frame = np.arange(len(row))
    return row[np.abs(frame[:, None] - frame[None, :])]


def empirical_correlation(covariance: np.ndarray) -> np.ndarray:
    """Correlation at distance 0, 1, … T-1 of the frames, (T,), such that its Toeplitz matrix is positive definite.

    The entries of a covariance (T, T) of one distance are averaged; where the result has a negative eigenvalue, the
    nearest correlation matrix that is Toeplitz takes its place (alternating projections, Higham 2002). Rounded to six
    decimals, with eigenvalues of at least T millionths, so that it can be written down.
    """
    row = by_distance(covariance)
    row = _nearest_valid(row / row[0])
    floor = len(row) * 10.0**-DECIMALS
    least = np.linalg.eigvalsh(toeplitz(row))[0]
    if least < 2 * floor:  # rounding moves an eigenvalue by at most half of floor
        share = (2 * floor - least) / (1 - least)
        row = np.where(np.arange(len(row)) == 0, row, row * (1 - share))
    return np.round(row, DECIMALS)


def _nearest_valid(row: np.ndarray) -> np.ndarray:
    """Dykstra's projections between positive semi-definite matrices and Toeplitz ones of unit diagonal."""
    current, correction = toeplitz(row), np.zeros((len(row), len(row)))
    for _ in range(_ITERATIONS):
        values, vectors = np.linalg.eigh(current - correction)
        if values[0] >= 0 and not correction.any():
            break
        positive = (vectors * values.clip(min=0)) @ vectors.T
        correction = positive - (current - correction)
        row = by_distance(positive)
        row[0] = 1.0
        if np.abs(toeplitz(row) - current).max() < 1e-9:
            break
        current = toeplitz(row)
    return row


def noise_snippet(kind: str, alpha: float | None, correlation: Sequence[float]) -> str:
    """YAML for conf/: the prior `kind` in the stage base; correlation: of the empirical prior."""
    noise: dict[str, object] = {"kind": kind}
    if kind == EMPIRICAL:
        noise["correlation"] = [float(value) for value in correlation]
    elif kind != IIDNoise.name:
        noise["alpha"] = round(float(alpha or 0.0), 4)
    tree = {"finetune_video": {"base": {"noise": noise}}}
    return yaml.safe_dump(tree, sort_keys=False, width=100, default_flow_style=None)
