"""The scores of a study by configuration, step and seed, and which configuration of a family is its best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyoco_pipeline.study.halving import lower_is_better
from pyoco_pipeline.study.statistics import Interval, Paired, interval, paired


@dataclass
class Row:
    """A configuration: scores[metric][step][seed]. alpha: of mixed and progressive, infinity included."""

    name: str
    prior: str
    family: str
    kind: str
    init: str
    alpha: float | None
    noise: dict[str, Any]
    sigma_mean: float
    sigma_std: float
    is_papers_law: bool
    is_papers: bool
    scores: dict[str, dict[int, dict[int, float]]] = field(default_factory=dict)

    def at(self, metric: str, step: int) -> dict[int, float]:
        """Scores by seed."""
        return self.scores.get(metric, {}).get(step, {})

    def steps(self, metric: str) -> list[int]:
        """The steps that it was scored at."""
        return sorted(self.scores.get(metric, {}))


@dataclass(frozen=True)
class Comparison:
    """One configuration against another at a step."""

    a: Row
    b: Row
    step: int
    test: Paired

    def enough(self, min_seeds: int) -> bool:
        """Whether it has the seeds to decide anything."""
        return len(self.test.seeds) >= min_seeds


class StudyTable:
    """All configurations of a study. metric: what they are compared by; level, min_seeds: of tests."""

    def __init__(
        self, cells: Sequence[Mapping[str, Any]], metric: str, level: float = 0.05, min_seeds: int = 3
    ) -> None:
        self.metric, self.level, self.min_seeds = metric, level, min_seeds
        self.lower = lower_is_better(metric)
        rows: dict[str, Row] = {}
        for cell in cells:
            row = rows.setdefault(cell["configuration"], _row(cell))
            for evaluation in cell["evaluations"]:
                for name, value in evaluation["values"].items():
                    by_step = row.scores.setdefault(name, {})
                    by_step.setdefault(evaluation["step"], {})[cell["seed"]] = value
        self.rows = list(rows.values())

    @property
    def steps(self) -> list[int]:
        """All steps at which something was scored by the metric."""
        return sorted({step for row in self.rows for step in row.steps(self.metric)})

    def choose(self, wanted: Callable[[Row], bool]) -> list[Row]:
        """The configurations that are wanted and were scored after some training."""
        return [row for row in self.rows if wanted(row) and any(row.steps(self.metric))]

    def of_family(self, family: str) -> list[Row]:
        """Those of a family that were scored after some training."""
        return self.choose(lambda row: row.family == family)

    def mean(self, row: Row, step: int, metric: str | None = None) -> Interval | None:
        """Over the seeds at a step; None where there is none."""
        values = list(row.at(metric or self.metric, step).values())
        return interval(values, self.level) if values else None

    def best(self, rows: Sequence[Row], step: int | None = None) -> Row | None:
        """That of the best mean over seeds, among those that were trained longest, or at a step."""
        trained = [row for row in rows if any(row.steps(self.metric))]
        if step is None and trained:
            step = max(row.steps(self.metric)[-1] for row in trained)
        reached = [row for row in trained if step is not None and row.at(self.metric, step)]
        sign = 1 if self.lower else -1

        def mean(row: Row) -> float:
            found = self.mean(row, step or 0)
            return sign * found.mean if found else math.inf

        return min(reached, key=mean, default=None)

    def compare(self, a: Row, b: Row, step: int | None = None) -> Comparison | None:
        """Paired over seeds, at a step, or at the last one that has enough seeds, else at the last of all."""
        common = [
            s for s in a.steps(self.metric) if s in b.steps(self.metric) and (step is None or s == step)
        ]
        found = []
        for s in common:
            test = paired(a.at(self.metric, s), b.at(self.metric, s), self.level)
            if test is not None:
                found.append(Comparison(a, b, s, test))
        return max(found, key=lambda c: (c.enough(self.min_seeds), c.step), default=None)

    def is_better(self, comparison: Comparison) -> bool:
        """Whether a is better than b in the mean."""
        mean = comparison.test.difference.mean
        return mean < 0 if self.lower else mean > 0

    def is_significant(self, comparison: Comparison) -> bool:
        """Whether the paired t test says so, with enough seeds."""
        return comparison.enough(self.min_seeds) and comparison.test.p_t <= self.level


def _row(cell: Mapping[str, Any]) -> Row:
    alpha = cell["alpha"]
    return Row(
        name=cell["configuration"],
        prior=cell["prior"],
        family=cell["family"],
        kind=cell["kind"],
        init=cell["init"],
        alpha=None if alpha is None else float(alpha),
        noise=cell["noise"],
        sigma_mean=cell["sigma_mean"],
        sigma_std=cell["sigma_std"],
        is_papers_law=cell["is_papers_law"],
        is_papers=cell["is_papers"],
    )
