"""What the finalists say beyond their scores: quality by the sampler, and the head start with fewer clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyoco_pipeline.study.hypotheses import Hypothesis
from pyoco_pipeline.study.settings import AblateAlphaSettings
from pyoco_pipeline.study.statistics import Interval, paired
from pyoco_pipeline.study.table import Comparison, Row, StudyTable

LAW = "fewer clips"  # what its rows of hypotheses stand under
Cells = Sequence[Mapping[str, Any]]


def resampled_table(cells: Cells, settings: AblateAlphaSettings, varied: str) -> StudyTable:
    """The scores by what was varied of the sampler in place of training steps, of the cells that were sampled so.

    varied: a key of `settings.resampled()`.
    """
    rows = []
    for cell in cells:
        scored = [{"step": row[varied], "values": row["values"]} for row in cell.get(varied, ())]
        if scored:
            rows.append(dict(cell) | {"evaluations": scored})
    return StudyTable(rows, settings.metric, settings.level, settings.min_seeds)


def resampled_rows(cells: Cells, settings: AblateAlphaSettings, varied: str) -> list[dict[str, Any]]:
    """Mean over seeds per configuration and value of what was varied of the sampler."""
    table = resampled_table(cells, settings, varied)
    return [
        {"configuration": row.name, "family": row.family, varied: value, "score": plain(score)}
        for row in table.rows
        for value in row.steps(table.metric)
        if (score := table.mean(row, value)) is not None
    ]


@dataclass(frozen=True)
class Portion:
    """The cells of one number of training clips, None being all, that train on fewer ones too."""

    num_clips: int | None
    table: StudyTable

    def pairs(self) -> list[tuple[Row, Row]]:
        """Per correlated prior, its best configuration and the best of i.i.d. noise."""
        iid = self.table.best(self.table.of_family("iid"))
        priors = dict.fromkeys(row.prior for row in self.table.rows if row.family != "iid")
        found = (self.table.best(self.table.choose(lambda r, p=p: r.prior == p)) for p in priors)  # type: ignore[misc]
        return [(row, iid) for row in found if row is not None and iid is not None]


def portions(cells: Cells, settings: AblateAlphaSettings) -> list[Portion]:
    """From the fewest clips to all of them; none where no cell trained on fewer."""

    def point(cell: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(cell[name] for name in ("init", "prior", "sigma_mean", "sigma_std"))

    wanted = {point(cell) for cell in cells if cell["num_clips"] is not None}
    counts = sorted({cell["num_clips"] for cell in cells if cell["num_clips"] is not None})
    parts = []
    for count in [*counts, None] if counts else []:
        chosen = [cell for cell in cells if cell["num_clips"] == count and point(cell) in wanted]
        parts.append(Portion(count, StudyTable(chosen, settings.metric, settings.level, settings.min_seeds)))
    return parts


def portion_rows(parts: Sequence[Portion]) -> list[dict[str, Any]]:
    """Per number of clips and correlated prior, the paired test against i.i.d. noise, JSON-able."""
    rows = []
    for part in parts:
        for correlated, iid in part.pairs():
            comparison = part.table.compare(correlated, iid)
            if comparison is None or comparison.step == 0:
                continue
            step, test = comparison.step, comparison.test
            scores = (part.table.mean(row, step) for row in (correlated, iid))
            ours, theirs = (plain(score) for score in scores if score is not None)
            rows.append(
                {
                    "num_clips": part.num_clips,
                    "prior": correlated.prior,
                    "a": correlated.name,
                    "b": iid.name,
                    "step": step,
                    "score": ours,
                    "iid_score": theirs,
                    "difference": plain(test.difference),
                    "p_t": None if math.isnan(test.p_t) else test.p_t,
                }
            )
    return rows


def judge_head_start(parts: Sequence[Portion]) -> list[Hypothesis]:
    """That a correlated prior's lead over i.i.d. noise is larger with the fewest clips than with all of them.

    A lead is the logarithm of the ratio of scores, the same for every scale of the metric, at the last common step.
    """
    if not parts:
        return []
    few, whole = parts[0], parts[-1]
    found = []
    for correlated, iid in few.pairs():
        claim = f"the head start of {correlated.prior} matters more with fewer clips"
        rival = next((pair for pair in whole.pairs() if pair[0].prior == correlated.prior), None)
        if rival is None:
            found.append(Hypothesis(claim, LAW, "undecided", "cells of all clips are missing"))
            continue
        found.append(_larger_lead(claim, few, (correlated, iid), whole, rival))
    return found or [
        Hypothesis("the head start matters more with fewer clips", LAW, "undecided", "cells are missing")
    ]


def _larger_lead(
    claim: str, few: Portion, pair: tuple[Row, Row], whole: Portion, rival: tuple[Row, Row]
) -> Hypothesis:
    metric = few.table.metric
    common = set.intersection(*(set(row.steps(metric)) for row in (*pair, *rival))) - {0}
    test = None
    if common:
        step = max(common)
        leads = [_lead(part.table, *two, step) for part, two in ((few, pair), (whole, rival))]
        test = paired(leads[0], leads[1], few.table.level)
    if test is None:
        return Hypothesis(claim, LAW, "undecided", "no step and seed was scored with both numbers of clips")
    a, b = (replace(row, name=f"lead of {row.name} over {other.name}") for row, other in (pair, rival))
    comparison = Comparison(a, b, step, test)
    count = len(test.seeds)
    words = f"{a.name} against {b.name} at step {step}, as logarithms of ratios, over {count} seeds"
    if not comparison.enough(few.table.min_seeds):
        return Hypothesis(claim, LAW, "undecided", f"{words}, fewer than {few.table.min_seeds}", comparison)
    if test.p_t > few.table.level:
        return Hypothesis(claim, LAW, "not confirmed", f"{words}: no significant difference", comparison)
    if test.difference.mean > 0:
        return Hypothesis(claim, LAW, "confirmed", words, comparison)
    return Hypothesis(claim, LAW, "not confirmed", f"{words}: the opposite", comparison)


def _lead(table: StudyTable, correlated: Row, iid: Row, step: int) -> dict[int, float]:
    """By seed, positive where correlated noise is ahead; seeds of a score of zero or below have none."""
    ours, theirs = (row.at(table.metric, step) for row in (correlated, iid))
    sign = 1 if table.lower else -1
    return {
        seed: sign * math.log(theirs[seed] / ours[seed])
        for seed in ours.keys() & theirs.keys()
        if ours[seed] > 0 and theirs[seed] > 0
    }


def portion_points(parts: Sequence[Portion], everything: int) -> dict[str, list[tuple[int, Interval]]]:
    """Per prior, the number of clips and the score of its best configuration at the last step that all reached.

    everything: how many all clips are.
    """
    points: dict[str, list[tuple[int, Interval]]] = {}
    reached = [{step for step in part.table.steps if step > 0} for part in parts]
    step = max(set.intersection(*reached), default=None) if reached else None
    if step is None:
        return points  # what was trained for different times is not compared
    for part in parts:
        table = part.table
        for prior in dict.fromkeys(row.prior for row in table.rows):
            best = table.best([row for row in table.rows if row.prior == prior], step)
            score = best and table.mean(best, step)
            if score:
                points.setdefault(prior, []).append((part.num_clips or everything, score))
    return points


def plain(value: Interval) -> dict[str, Any]:
    """An interval as JSON, without nan."""
    return {
        name: None if isinstance(item, float) and math.isnan(item) else item
        for name, item in asdict(value).items()
    }
