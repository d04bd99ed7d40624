"""Where it is decided which way a clip goes, and how training there orders the priors of a study.

A clip x and the same clip backwards are told apart in noise σε, ε of covariance S over the frames, by the best possible
observer with the sensitivity d' = |x - reversed x| / σ, in the norm of S⁻¹ over frames, summed over pixels: the error
of its guess is the normal tail beyond d'/2, .31 for d' = 1 and .07 for 3. Sampling comes down in σ, so the way is
decided about between those two levels, and a model that is to be told it by a caption has to be trained there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from pyoco_pipeline.noise import prior_from_config
from pyoco_pipeline.study.table import Row, StudyTable

DECIDED, OPEN = 3.0, 1.0  # d'
_DIRECTION = "caption_accuracy_direction"
_FEWEST_PRIORS = 3  # that have an order
_NO_NOISE = 1e-9  # of a frequency's level, that rounding leaves where a prior has none


def told_apart_at(clips: np.ndarray, covariance: np.ndarray, sensitivity: float = OPEN) -> np.ndarray:
    """The σ (N,) at which clips (N, T, H, W, C) and themselves backwards are told apart with this d'.

    Raises ValueError for a singular covariance (T, T): its noise hides no motion.
    """
    if not hides_motion(covariance):
        raise ValueError(
            "noise of this covariance is zero in some direction over frames, so it hides no motion"
        )
    inverse = np.linalg.inv(covariance)
    squares = []
    for clip in clips:
        difference = (clip - clip[::-1]).reshape(len(clip), -1).astype(np.float64)
        squares.append(np.sum(inverse * (difference @ difference.T)))
    return np.sqrt(np.maximum(squares, 0.0)) / sensitivity


def hides_motion(covariance: np.ndarray) -> bool:
    """Whether noise of this covariance (T, T) has some strength in every direction over the frames."""
    return bool(np.linalg.eigvalsh(covariance)[0] > _NO_NOISE)


def share_between(low: float, high: float, mean: float, std: float) -> float:
    """The probability that σ lies between two levels above 0, for ln σ ~ N(mean, std²)."""
    law = NormalDist(mean, std)
    return law.cdf(math.log(high)) - law.cdf(math.log(low)) if low > 0 else 0.0


def motion(table: StudyTable, clips: np.ndarray) -> dict[str, Any]:
    """Per prior the levels between which the way is decided, and how the share of training there orders the priors.

    clips: (N, T, H, W, C) in [-1, 1]. Priors whose noise hides no motion are left out. JSON-able: `priors`, each with
    `decided_at` and `open_at`, medians over clips; `laws` of σ, each with the `share` of every prior, the last step at
    which all were scored, and Spearman's rank correlations of shares and scores, of means over seeds and by seed.
    """
    rows = table.choose(lambda row: row.init == "finetune")
    opened: dict[str, float] = {}
    for row in rows:
        covariance = prior_from_config(dict(row.noise)).covariance(clips.shape[1]).double().numpy()
        if row.prior not in opened and hides_motion(covariance):
            opened[row.prior] = float(np.median(told_apart_at(clips, covariance)))
    laws = []
    for law in sorted({(row.sigma_mean, row.sigma_std) for row in rows}):
        chosen = [row for row in rows if (row.sigma_mean, row.sigma_std) == law and row.prior in opened]
        if chosen:
            laws.append(_law(table, chosen, opened, *law))
    families = {row.prior: row.family for row in rows}
    return {
        "priors": [
            {"prior": p, "family": families[p], "decided_at": at * OPEN / DECIDED, "open_at": at}
            for p, at in opened.items()
        ],
        "laws": laws,
    }


def _law(
    table: StudyTable, rows: Sequence[Row], opened: Mapping[str, float], mean: float, std: float
) -> dict[str, Any]:
    share = {
        row.prior: share_between(opened[row.prior] * OPEN / DECIDED, opened[row.prior], mean, std)
        for row in rows
    }
    common = [step for step in table.steps if step > 0 and all(row.at(table.metric, step) for row in rows)]
    found: list[dict[str, Any]] = []
    if common and len(rows) >= _FEWEST_PRIORS:
        found = [
            correlation
            for metric in (_DIRECTION, table.metric)
            if (correlation := _correlation(metric, rows, [share[row.prior] for row in rows], common[-1]))
        ]
    return {
        "sigma_mean": mean,
        "sigma_std": std,
        "step": common[-1] if common else None,
        "share": share,
        "correlations": found,
    }


def _correlation(
    metric: str, rows: Sequence[Row], shares: Sequence[float], step: int
) -> dict[str, Any] | None:
    """Of shares with the scores of the seeds that all rows have; None where they have none in common."""
    seeds = sorted(set.intersection(*(set(row.at(metric, step)) for row in rows)))
    if not seeds:
        return None
    scores = [[row.at(metric, step)[seed] for row in rows] for seed in seeds]
    together = [fmean(values) for values in zip(*scores, strict=True)]
    return {
        "metric": metric,
        "spearman": _spearman(shares, together),
        "seeds": seeds,
        "by_seed": [_spearman(shares, values) for values in scores],
    }


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """None where one of them is all the same, which has no order."""
    return float(spearmanr(a, b)[0]) if len(set(a)) > 1 and len(set(b)) > 1 else None
