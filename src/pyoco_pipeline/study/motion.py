"""Where it is decided which way a clip goes, and how training there orders the priors of a study.

A clip x and the same clip backwards are told apart in noise σε, ε of covariance S over the frames, by the best possible
observer with the sensitivity d' = |x - reversed x| / σ, in the norm of S⁻¹ over frames, summed over pixels: the error
of its guess is the normal tail beyond d'/2, .31 for d' = 1 and .07 for 3. Sampling comes down in σ, so the way is
decided about between those two levels, and a model that is to be told it by a caption has to be trained there. Clips
are taken as pixels, and bounds on σ are not looked at.
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
_FEWEST_PRIORS = 5  # of fewer, a perfect order is chance too often: of 3, one time in three
_SINGULAR = 1e-9  # an eigenvalue as small is 0 but for rounding


def told_apart_at(clips: np.ndarray, covariance: np.ndarray, sensitivity: float = OPEN) -> np.ndarray:
    """The σ (N,) at which clips (N, T, H, W, C) and themselves backwards are told apart with this d', above 0.

    Raises ValueError for a singular covariance (T, T), as of noise that repeats a frame.
    """
    if is_singular(covariance):
        raise ValueError(
            "the covariance is singular: such noise leaves some change over the frames untouched"
        )
    inverse = np.linalg.inv(covariance)
    squares = []
    for clip in clips:
        difference = (clip - clip[::-1]).reshape(len(clip), -1).astype(np.float64)
        squares.append(np.sum(inverse * (difference @ difference.T)))
    return np.sqrt(np.maximum(squares, 0.0)) / sensitivity


def is_singular(covariance: np.ndarray) -> bool:
    """Whether noise of this covariance (T, T) has no strength in some direction over the frames."""
    return bool(np.linalg.eigvalsh(covariance)[0] <= _SINGULAR)


def share_between(low: float, high: float, mean: float, std: float) -> float:
    """The probability that σ lies between two levels above 0, for ln σ ~ N(mean, std²), std above 0."""
    law = NormalDist(mean, std)
    return law.cdf(math.log(high)) - law.cdf(math.log(low)) if low > 0 else 0.0


def motion(table: StudyTable, clips: np.ndarray) -> dict[str, Any]:
    """Per prior the levels between which the way is decided, and how the share of training there orders the priors.

    clips: (N, T, H, W, C) in [-1, 1]. Priors of a singular covariance are left out; bounds on σ are not looked at.
    JSON-able: `priors`, each with `decided_at` and `open_at`, medians over clips, and `neighbours`, the correlation of
    its noise in neighbouring frames; `laws` of σ, each with the `share` of every prior, the last `step` at which all
    were scored, and for each score Spearman's rank correlation with the shares, of means over seeds (`share`) and by
    seed (`share_by_seed`), and with `neighbours`: what orders priors no better than that says nothing of its own.
    """
    rows = table.choose(lambda row: row.init == "finetune")
    priors: dict[str, dict[str, Any]] = {}
    for row in rows:
        covariance = prior_from_config(dict(row.noise)).covariance(clips.shape[1]).numpy()
        if row.prior not in priors and not is_singular(covariance):
            opened = float(np.median(told_apart_at(clips, covariance)))
            priors[row.prior] = {
                "prior": row.prior,
                "family": row.family,
                "decided_at": opened * OPEN / DECIDED,
                "open_at": opened,
                "neighbours": float(covariance[0, 1]) if len(covariance) > 1 else 0.0,
            }
    laws = []
    for law in sorted({(row.sigma_mean, row.sigma_std) for row in rows}):
        chosen = [row for row in rows if (row.sigma_mean, row.sigma_std) == law and row.prior in priors]
        if chosen:
            laws.append(_law(table, chosen, priors, *law))
    return {"priors": list(priors.values()), "laws": laws}


def _law(
    table: StudyTable, rows: Sequence[Row], priors: Mapping[str, Mapping[str, Any]], mean: float, std: float
) -> dict[str, Any]:
    share = {
        row.prior: share_between(priors[row.prior]["decided_at"], priors[row.prior]["open_at"], mean, std)
        for row in rows
    }
    neighbours = [priors[row.prior]["neighbours"] for row in rows]
    common = [step for step in table.steps if step > 0 and all(row.at(table.metric, step) for row in rows)]
    found: list[dict[str, Any]] = []
    if common and len(rows) >= _FEWEST_PRIORS:
        for metric in (_DIRECTION, table.metric):
            scores = _scores(metric, rows, common[-1])
            if not scores:
                continue
            together = [fmean(values) for values in zip(*scores.values(), strict=True)]
            shares = list(share.values())
            found.append(
                {
                    "metric": metric,
                    "share": _spearman(shares, together),
                    "share_by_seed": {seed: _spearman(shares, values) for seed, values in scores.items()},
                    "neighbours": _spearman(neighbours, together),
                }
            )
    return {
        "sigma_mean": mean,
        "sigma_std": std,
        "step": common[-1] if common else None,
        "share": share,
        "correlations": found,
    }


def _scores(metric: str, rows: Sequence[Row], step: int) -> dict[str, list[float]]:
    """Of every row, by the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(row.at(metric, step)) for row in rows)))
    return {str(seed): [row.at(metric, step)[seed] for row in rows] for seed in seeds}


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """None where one of them is all the same, which has no order."""
    return float(spearmanr(a, b)[0]) if len(set(a)) > 1 and len(set(b)) > 1 else None
