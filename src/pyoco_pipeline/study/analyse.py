"""From the cells' scores to everything that the report says, as one JSON-able mapping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pyoco_pipeline.noise import prior_from_config
from pyoco_pipeline.study.finalists import judge_head_start, plain, portion_rows, portions, resampled_rows
from pyoco_pipeline.study.hypotheses import LAWS, Hypothesis, conclusion, judge
from pyoco_pipeline.study.motion import motion
from pyoco_pipeline.study.settings import AblateAlphaSettings
from pyoco_pipeline.study.spectrum import DataSpectrum, match_to_iid, noise_levels
from pyoco_pipeline.study.statistics import holm
from pyoco_pipeline.study.table import Row, StudyTable

SPECTRUM_CLIPS = 256
GOOD_FRAMES = 0.95  # of the image model's frames, that the right digit is read in
_FRAMES_METRIC = "caption_accuracy_digit"
_FEWEST_PRIORS = 3  # that a correlation of predicted and found P_mean is computed from


def study_table(cells: Sequence[Mapping[str, Any]], settings: AblateAlphaSettings) -> StudyTable:
    """The scores of the cells that train on all clips, compared as the settings say."""
    whole = [cell for cell in cells if cell["num_clips"] is None]
    return StudyTable(whole, settings.metric, settings.level, settings.min_seeds)


def analyse(
    study: Mapping[str, Any],
    settings: AblateAlphaSettings,
    clips: np.ndarray,
    num_clips: int | None = None,
) -> dict[str, Any]:
    """What the study found.

    study: the result of `run_study`; clips: (N, T, H, W, C) in [-1, 1], of training; num_clips: how many there are.
    """
    table = study_table(study["cells"], settings)
    cells = study["cells"]
    parts = portions(cells, settings)
    return {
        "study": study["study"],
        "finished": study["finished"],
        "conclusion": conclusion(table),
        "metric": settings.metric,
        "second_metric": settings.second_metric,
        "level": settings.level,
        "min_seeds": settings.min_seeds,
        "paper_sigma": {"mean": settings.paper_sigma.mean, "std": settings.paper_sigma.std},
        "real": _real(cells, settings),
        "hypotheses": _hypotheses([*judge(table), *judge_head_start(parts)]),
        "best": best_of_families(table),
        "spectrum": spectrum(table, settings, clips),
        "motion": motion(table, clips),
        "image_model": image_model(cells, settings),
        **{varied: resampled_rows(cells, settings, varied) for varied in settings.resampled()},
        "fewer_clips": portion_rows(parts),
        "num_clips": num_clips or len(clips),
        "rungs": study["rungs"],
        "cost": _cost(cells),
        "code": sorted({code for cell in cells for code in cell["code"]}),
        "shared": study["shared"],
        "cells": list(cells),
    }


def _real(cells: Iterable[Mapping[str, Any]], settings: AblateAlphaSettings) -> dict[str, float]:
    """What real clips score: the floor of a distance, the value of a score."""
    found: dict[str, float] = {}
    for cell in cells:
        for evaluation in cell["evaluations"]:
            for metric in filter(None, (settings.metric, settings.second_metric)):
                for suffix in ("floor", "real"):
                    value = evaluation["values"].get(f"{metric}_{suffix}")
                    if value is not None:
                        found.setdefault(metric, value)
    return found


def image_model(cells: Iterable[Mapping[str, Any]], settings: AblateAlphaSettings) -> dict[str, Any] | None:
    """What is read off the image model's frames: the digits at step 0, under the prior that repeats them most.

    None where no such score was asked for or reached.
    """
    untrained = [
        (cell["neighbour_correlation"], cell["prior"], row["values"][_FRAMES_METRIC])
        for cell in cells
        for row in cell["evaluations"]
        if row["step"] == 0 and cell["init"] == "finetune" and row["values"].get(_FRAMES_METRIC) is not None
    ]
    if not untrained:
        return None
    most = max(untrained)[:2]
    values = [value for *prior, value in untrained if tuple(prior) == most]
    accuracy = sum(values) / len(values)
    return {"prior": most[1], "accuracy": accuracy, "enough": accuracy >= GOOD_FRAMES}


def _hypotheses(found: Sequence[Hypothesis]) -> list[dict[str, Any]]:
    adjusted = holm([h.comparison.test.p_t if h.comparison else math.nan for h in found])
    return [_hypothesis(h, p) for h, p in zip(found, adjusted, strict=True)]


def _hypothesis(h: Hypothesis, adjusted: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "claim": h.claim,
        "law": LAWS.get(h.law, h.law),
        "verdict": h.verdict,
        "detail": h.detail,
    }
    if h.comparison is None:
        return row | {"test": None}
    c, test = h.comparison, h.comparison.test
    return row | {
        "test": {
            "a": c.a.name,
            "b": c.b.name,
            "step": c.step,
            "seeds": list(test.seeds),
            "difference": plain(test.difference),
            "p_t": _number(test.p_t),
            "p_holm": _number(adjusted),
            "p_flips": test.p_flips,
            "smallest_p_flips": test.smallest_p,
        }
    }


def best_of_families(table: StudyTable) -> list[dict[str, Any]]:
    """Per family, the configuration of the best mean over seeds, its score and how many were tried."""
    rows = []
    for family in dict.fromkeys(row.family for row in table.rows):
        tried = table.of_family(family)
        best = table.best(tried)
        if best is None:
            continue
        step = best.steps(table.metric)[-1]
        score = table.mean(best, step)
        assert score is not None
        rows.append(
            {"family": family, "best": best.name, "step": step, "score": plain(score), "tried": len(tried)}
        )
    return rows


def spectrum(table: StudyTable, settings: AblateAlphaSettings, clips: np.ndarray) -> dict[str, Any]:
    """The data over the noise by temporal frequency, and P_mean as predicted from it and as found."""
    data = DataSpectrum.of(clips)
    std = settings.sigma_stds[0]
    priors: dict[str, Row] = {}
    for row in table.choose(lambda row: row.init == "finetune"):
        priors.setdefault(row.prior, row)
    found = {name: best_mean(table, name, std) for name in priors}
    base = (found.get("iid") or {}).get("sigma_mean", settings.paper_sigma.mean)
    rows = []
    for name, row in priors.items():
        covariance = prior_from_config(dict(row.noise)).covariance(clips.shape[1]).numpy()
        levels = noise_levels(covariance)
        match = match_to_iid(data, levels, base, std)
        rows.append(
            {
                "prior": name,
                "family": row.family,
                "alpha": _json_alpha(row.alpha),
                "levels": levels.tolist(),
                "snr": [ratio if math.isfinite(ratio) else None for ratio in data.snr(levels).tolist()],
                "shift": match.shift,
                "mismatch": match.mismatch,
                "predicted_mean": base + match.shift,
                "found": found[name],
            }
        )
    return {
        "iid_mean": base,
        "iid_mean_is_found": found.get("iid") is not None,
        "power": data.temporal.tolist(),
        "priors": rows,
        "correlation": _correlation(rows),
    }


def best_mean(table: StudyTable, prior: str, std: float) -> dict[str, Any] | None:
    """The P_mean of the best score, at the last step at which all that were tried for the prior have been scored."""
    rows = table.choose(lambda row: row.prior == prior and row.init == "finetune" and row.sigma_std == std)
    common = [s for s in table.steps if s > 0 and all(row.at(table.metric, s) for row in rows)]
    if len(rows) < 2 or not common:
        return None
    best = table.best(rows, common[-1])
    assert best is not None
    means = sorted(row.sigma_mean for row in rows)
    at_end = best.sigma_mean in (means[0], means[-1])
    return {"sigma_mean": best.sigma_mean, "step": common[-1], "tried": means, "at_end_of_range": at_end}


def _correlation(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of predicted and found P_mean over the correlated priors; None where there are too few, or all are one."""
    pairs = [
        (row["predicted_mean"], row["found"]["sigma_mean"])
        for row in rows
        if row["found"] and row["family"] != "iid"
    ]
    predicted, found = (
        (np.array(values) for values in zip(*pairs, strict=True)) if pairs else (np.array([]),) * 2
    )
    varies = len(pairs) >= _FEWEST_PRIORS and predicted.std() > 0 and found.std() > 0
    return {
        "priors": len(pairs),
        "pearson": float(np.corrcoef(predicted, found)[0, 1]) if varies else None,
        "mean_absolute_error": float(np.abs(predicted - found).mean()) if pairs else None,
    }


def _cost(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "train_minutes": sum(cell["train_s"] for cell in cells) / 60,
        "score_minutes": sum(cell["score_s"] for cell in cells) / 60,
        "device": sorted({name for cell in cells for name in cell["device"]}),
    }


def headline(found: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers that stand for a study: the best score of each family, what real clips score, the minutes."""
    numbers = {f"best/{row['family']}": row["score"]["mean"] for row in found["best"]}
    numbers |= {f"real/{name}": value for name, value in found["real"].items()}
    verdicts = [h["verdict"] for h in found["hypotheses"]]
    numbers |= {
        f"hypotheses/{v}": float(verdicts.count(v)) for v in ("confirmed", "not confirmed", "undecided")
    }
    cost = found["cost"]
    return numbers | {name: cost[name] for name in ("train_minutes", "score_minutes")}


def alpha_curve(found: Mapping[str, Any], settings: AblateAlphaSettings) -> list[dict[str, Any]]:
    """Rows for `dvc plots`: the last score of every configuration with an α, mean over seeds."""
    table = study_table(found["cells"], settings)
    rows = []
    for row in table.rows:
        if row.alpha is None or not row.steps(table.metric):
            continue
        step = row.steps(table.metric)[-1]
        score = table.mean(row, step)
        assert score is not None
        rows.append(
            {
                "family": row.family,
                "alpha": _json_alpha(row.alpha),
                "sigma_mean": row.sigma_mean,
                "step": step,
                "seeds": score.count,
                table.metric: score.mean,
            }
        )
    return rows


def _number(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _json_alpha(alpha: float | None) -> float | str | None:
    return "inf" if alpha is not None and math.isinf(alpha) else alpha
