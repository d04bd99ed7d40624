"""Figures of the finalists: quality by the sampler, and with fewer training clips."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyoco_pipeline.reporting.figures import GREY, as_png, new_figure
from pyoco_pipeline.study.figures import colour_of, log_scale
from pyoco_pipeline.study.finalists import Portion
from pyoco_pipeline.study.statistics import Interval
from pyoco_pipeline.study.table import StudyTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":", "-.")
Points = Sequence[tuple[int, Interval]]


def sampler_curves(
    table: StudyTable, varied: str, names: Collection[str], real: float | None, *, dark: bool = False
) -> bytes:
    """The metric against what was varied of the sampler, a line per configuration with the intervals over seeds.

    table: of `resampled_table` by `varied`; names: of the configurations; real: what real clips score.
    """
    with new_figure((9.2, 4.2), dark) as figure:
        panel, drawn = figure.subplots(), {}  # type: ignore[var-annotated]
        for row in [row for row in table.rows if row.name in names]:
            scores = ((steps, table.mean(row, steps)) for steps in row.steps(table.metric))
            points = [(steps, score) for steps, score in scores if score is not None]
            number = drawn[row.family] = drawn.get(row.family, -1) + 1
            style = "-." if row.init == "scratch" else _STYLES[number % 3]
            _line(panel, points, colour_of(row.family), style, row.name)
        _finish(
            panel, "solver steps" if varied == "solver_steps" else varied, table.steps, table.metric, real
        )
        panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return as_png(figure)


def portion_curves(
    points: Mapping[str, Points], parts: Sequence[Portion], real: float | None, *, dark: bool = False
) -> bytes:
    """Left, the metric against the number of training clips, by prior; right, against training steps, by both.

    points: of `portion_points`.
    """
    with new_figure((9.2, 4.6), dark) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        colours = {row.prior: colour_of(row.family) for part in parts for row in part.table.rows}
        places = {place for found in points.values() for place, _ in found}
        for prior, found in points.items():
            _line(left, found, colours[prior], "-", prior)
        _finish(left, "training clips", places, parts[0].table.metric, real)
        left.legend(fontsize=8, frameon=False)
        for number, part in enumerate(parts):
            words = "all" if part.num_clips is None else str(part.num_clips)
            for prior in points:
                best = part.table.best([row for row in part.table.rows if row.prior == prior])
                if best is not None:
                    steps = best.steps(part.table.metric)
                    means = [np.mean(list(best.at(part.table.metric, step).values())) for step in steps]
                    style = _STYLES[number % 4]
                    right.plot(steps, means, style, color=colours[prior], label=f"{prior}, {words} clips")
        right.set_xlabel("training steps")
        log_scale(right)
        if right.lines:
            right.legend(fontsize=8, frameon=False)
        return as_png(figure)


def _line(panel: Axes, points: Points, colour: str, style: str, label: str) -> None:
    if not points:
        return
    x, scores = [place for place, _ in points], [score for _, score in points]
    reach = [0.0 if math.isnan(score.low) else score.mean - score.low for score in scores]
    means = [score.mean for score in scores]
    panel.errorbar(
        x, means, reach, fmt=f"o{style}", color=colour, capsize=3, markersize=4, linewidth=1.3, label=label
    )


def _finish(panel: Axes, x: str, places: Collection[float], metric: str, real: float | None) -> None:
    if real is not None:
        panel.axhline(real, color=GREY, linewidth=0.8, linestyle=":", label="real clips")
    panel.set_xscale("log")
    panel.set_xticks(sorted(places), [f"{place:,.10g}" for place in sorted(places)])
    panel.minorticks_off()
    panel.set_xlabel(x)
    panel.set_ylabel(metric)
    log_scale(panel)
