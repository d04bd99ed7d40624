"""Tests and intervals over seeds: what so few values can say, and what they can't."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its t interval; low and high are nan for a single seed."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Paired:
    """Values of a less those of b, seed by seed.

    p_t: of the paired t test, two-sided, nan for one seed. p_flips: of the exact permutation test that flips signs;
    with n seeds it can't be below smallest_p = 2 / 2^n.
    """

    seeds: tuple[int, ...]
    difference: Interval
    p_t: float
    p_flips: float
    smallest_p: float


def interval(values: Sequence[float], level: float = 0.05) -> Interval:
    """Mean with the interval of confidence 1 - level by Student's t; ValueError for no values."""
    if not len(values):
        raise ValueError("no values")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan, 1)
    reach = stats.t.ppf(1 - level / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return Interval(mean, mean - float(reach), mean + float(reach), len(values))


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.05) -> Paired | None:
    """The comparison over the seeds that both have; None where there is none in common."""
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        return None
    differences = np.array([a[seed] - b[seed] for seed in seeds])
    found = interval(list(differences), level)
    return Paired(
        seeds, found, _t_test(differences), sign_flips(differences), min(1.0, 2.0 / 2 ** len(differences))
    )


def _t_test(differences: np.ndarray) -> float:
    if len(differences) < 2:
        return math.nan
    spread = differences.std(ddof=1)
    if spread == 0:
        return 1.0 if differences.mean() == 0 else 0.0
    t = differences.mean() / (spread / math.sqrt(len(differences)))
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))


def sign_flips(differences: np.ndarray) -> float:
    """Share of all sign patterns under which the mean is as far from 0 as it is, two-sided and exact."""
    signs = np.array(list(product((1.0, -1.0), repeat=len(differences))))
    means = np.abs(signs @ differences)
    observed = abs(differences.sum())
    return float(np.mean(means >= observed * (1 - 1e-12)))


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979), in their order; nan stays."""
    known = sorted((p, i) for i, p in enumerate(values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = largest
    return adjusted
