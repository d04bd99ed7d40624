"""Figures of the study as PNG bytes, in the report's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyoco_pipeline.reporting.figures import BLUE, GREEN, GREY, ORANGE, as_png, new_figure
from pyoco_pipeline.study.cells import spelt
from pyoco_pipeline.study.table import Row, StudyTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PURPLE = "#cc79a7"
_MARKERS = "os^DvPX<>ph*"
_COLOURS = {"mixed": ORANGE, "progressive": GREEN, "empirical": _PURPLE, "iid": GREY}


def colour_of(family: str) -> str:
    """The colour of a family; a control has that of the prior that it is trained with."""
    return _COLOURS.get(family.removeprefix("scratch "), BLUE)


def alpha_curves(
    table: StudyTable, metrics: Sequence[str], real: Mapping[str, float], *, dark: bool = False
) -> bytes:
    """Scores against α at the last step: at the paper's sigma law, and at each α's best; with i.i.d. and scratch lines.

    A row of panels per metric. Bars and bands are intervals over seeds. A hollow point was trained for fewer steps than
    the rest.
    """
    laws = (("at the paper's sigma law", True), ("each α at its best sigma law", False))
    with new_figure((9.2, 3.1 * len(metrics)), dark) as figure:
        panels = figure.subplots(len(metrics), 2, squeeze=False, sharey="row")
        for panel_row, metric in zip(panels, metrics, strict=True):
            for panel, (words, papers) in zip(panel_row, laws, strict=True):
                _alpha_panel(panel, table, metric, papers, real.get(metric))
                panel.set_title(words, loc="left")
            panel_row[0].set_ylabel(metric)
        handles, labels = panels[0][-1].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=5)
        return as_png(figure)


def _alpha_panel(panel: Axes, table: StudyTable, metric: str, papers: bool, real: float | None) -> None:
    places = _alpha_places([row.alpha for row in table.rows if row.alpha is not None])
    longest = max((step for row in table.rows for step in row.steps(metric)), default=0)
    for family in ("mixed", "progressive"):
        rows = [row for row in table.of_family(family) if row.is_papers_law or not papers]
        whole: list[tuple[float, ...]] = []
        for alpha in sorted({row.alpha for row in rows if row.alpha is not None}):
            best = table.best([row for row in rows if row.alpha == alpha])
            if best is None or (drawn := _last(table, best, metric)) is None:
                continue
            if best.steps(metric)[-1] == longest:
                whole.append((places[alpha], *drawn))
            else:  # no line leads to it: it would join what was trained for different times
                _stopped(panel, places[alpha], drawn[0], family)
        if whole:
            x, mean, below, above = zip(*whole, strict=True)
            colour = colour_of(family)
            panel.errorbar(
                x, mean, [below, above], fmt="o-", color=colour, capsize=3, markersize=4, label=family
            )
    for family in [r.family for r in table.rows if r.alpha is None or r.init == "scratch"]:
        _family_line(panel, table, metric, papers, family)
    if real is not None:
        panel.axhline(real, color=GREY, linewidth=0.8, linestyle=":", label="real clips")
    panel.set_xticks(list(places.values()), [spelt(alpha) for alpha in places])
    panel.set_xlabel("α")
    log_scale(panel)


def _stopped(panel: Axes, place: float, score: float, family: str) -> None:
    """A point of what halving stopped at an earlier rung."""
    label = f"{family}, stopped at an earlier rung"
    seen = label in panel.get_legend_handles_labels()[1]
    panel.plot(
        place,
        score,
        "o",
        markerfacecolor="none",
        color=colour_of(family),
        markersize=5,
        label=None if seen else label,
    )


def _family_line(panel: Axes, table: StudyTable, metric: str, papers: bool, family: str) -> None:
    if family in panel.get_legend_handles_labels()[1]:
        return
    best = table.best(table.choose(lambda r: r.family == family and (r.is_papers_law or not papers)))
    drawn = _last(table, best, metric) if best else None
    if drawn is None:
        return
    mean, below, above = drawn
    style = "-." if family.startswith("scratch") else "--"
    panel.axhline(mean, color=colour_of(family), linestyle=style, label=family)
    if below or above:
        panel.axhspan(mean - below, mean + above, color=colour_of(family), alpha=0.15, linewidth=0)


def _alpha_places(alphas: Sequence[float]) -> dict[float, float]:
    """Where each α is drawn: by its logarithm, zero and infinity one step beyond the others."""
    finite = sorted({alpha for alpha in alphas if 0 < alpha < math.inf})
    places = {alpha: math.log2(alpha) for alpha in finite}
    if 0.0 in alphas:
        places = {0.0: min(places.values(), default=0.0) - 1.0} | places
    if math.inf in alphas:
        places[math.inf] = max(places.values(), default=0.0) + 1.0
    return places


def _last(table: StudyTable, row: Row, metric: str) -> tuple[float, float, float] | None:
    """Mean at the last step, and how far the interval over seeds reaches below and above it."""
    steps = row.steps(metric)
    score = table.mean(row, steps[-1], metric) if steps else None
    if score is None:
        return None
    if math.isnan(score.low):
        return score.mean, 0.0, 0.0
    return score.mean, score.mean - score.low, score.high - score.mean


def step_curves(
    table: StudyTable, rows: Sequence[Row], metric: str, real: float | None, *, dark: bool = False
) -> bytes:
    """The metric against training steps from step 0: mean and range over seeds, a line per configuration."""
    with new_figure((9.2, 4.2), dark) as figure:
        panel = figure.subplots()
        styles = ("-", "--", ":", "-.")
        drawn: dict[str, int] = {}
        for row in rows:
            steps = row.steps(metric)
            values = [list(row.at(metric, step).values()) for step in steps]
            number = drawn[row.family] = drawn.get(row.family, -1) + 1
            style = "-." if row.init == "scratch" else styles[number % len(styles)]
            colour = colour_of(row.family)
            panel.plot(
                steps,
                [np.mean(v) for v in values],
                style,
                marker="o",
                markersize=3.5,
                color=colour,
                label=row.name,
            )
            panel.fill_between(
                steps,
                [min(v) for v in values],
                [max(v) for v in values],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        if real is not None:
            panel.axhline(real, color=GREY, linewidth=0.8, linestyle=":", label="real clips")
        panel.set_xlabel("training steps")
        panel.set_ylabel(metric)
        log_scale(panel)
        panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return as_png(figure)


def snr_curves(spectrum: Mapping[str, Any], *, dark: bool = False) -> bytes:
    """Left, the data's power over the noise's (σ = 1) by temporal frequency; right, P_mean as predicted and found."""
    power = np.array(spectrum["power"])
    frequency = np.arange(len(power)) / (2 * len(power))
    with new_figure((9.2, 3.8), dark) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        markers = _markers(spectrum["priors"])
        for row in spectrum["priors"]:
            ratio = np.array(row["snr"], dtype=float)
            drawn = np.isfinite(ratio)  # a frequency without noise has no ratio
            left.plot(
                frequency[drawn],
                ratio[drawn],
                marker=markers[row["prior"]],
                markersize=4,
                linewidth=1.3,
                color=colour_of(row["family"]),
                label=row["prior"],
            )
        left.set_yscale("log")
        left.yaxis.set_major_formatter("{x:g}")
        left.set_xlabel("temporal frequency (cycles per frame)")
        left.set_ylabel("signal-to-noise ratio at σ = 1")
        if markers:
            handles, labels = left.get_legend_handles_labels()
            figure.legend(handles, labels, fontsize=7.5, frameon=False, loc="outside lower center", ncols=6)
        _predictions(right, spectrum["priors"], markers)
        return as_png(figure)


def motion_scatter(table: StudyTable, motion: Mapping[str, Any], metric: str, *, dark: bool = False) -> bytes:
    """Scores, with intervals over seeds, against the share of training where the way of a clip is decided.

    A panel per law of σ at which something was scored; motion: as `study.motion.motion` gives it.
    """
    laws = [law for law in motion["laws"] if law["step"] is not None]
    markers = _markers(motion["priors"])
    handles: dict[str, Any] = {}
    with new_figure((9.2, 3.6), dark) as figure:
        panels = figure.subplots(1, len(laws), sharey="row", squeeze=False)[0]
        for panel, law in zip(panels, laws, strict=True):
            for row in table.choose(lambda r: r.init == "finetune"):
                score = table.mean(row, law["step"], metric)
                at_law = (row.sigma_mean, row.sigma_std) == (law["sigma_mean"], law["sigma_std"])
                if not at_law or row.prior not in law["share"] or score is None:
                    continue
                bars = (
                    None if math.isnan(score.low) else [[score.mean - score.low], [score.high - score.mean]]
                )
                handles[row.prior] = panel.errorbar(
                    100 * law["share"][row.prior],
                    score.mean,
                    bars,
                    fmt=markers[row.prior],
                    color=colour_of(row.family),
                    elinewidth=0.8,
                )
            panel.set_title(f"ln σ = {law['sigma_mean']:g} ± {law['sigma_std']:g}", loc="left")
            panel.set_xlabel("% of training, where motion is decided", fontsize=8)
            log_scale(panel)
        panels[0].set_ylabel(metric)
        figure.legend(
            handles.values(), handles, fontsize=7.5, frameon=False, loc="outside lower center", ncols=6
        )
        return as_png(figure)


def _markers(priors: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """One per prior, that with its family's colour tells it from a dozen others."""
    families: dict[str, list[str]] = {}
    for row in priors:
        families.setdefault(row["family"], []).append(row["prior"])
    return {p: _MARKERS[i % len(_MARKERS)] for names in families.values() for i, p in enumerate(names)}


def _predictions(panel: Axes, priors: Sequence[Mapping[str, Any]], markers: Mapping[str, str]) -> None:
    """In the markers of the other panel."""
    found = [row for row in priors if row["found"]]
    for row in found:
        x, y = row["predicted_mean"], row["found"]["sigma_mean"]
        panel.plot(x, y, markers[row["prior"]], color=colour_of(row["family"]), alpha=0.8)
    if found:
        low, high = panel.get_xlim()[0], panel.get_xlim()[1]
        panel.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle=":")
    else:
        panel.text(0.5, 0.5, "no prior was tried at\nseveral P_mean", ha="center", transform=panel.transAxes)
    panel.margins(0.25)
    panel.set_xlabel("P_mean predicted")
    panel.set_ylabel("P_mean found")


def log_scale(panel: Axes) -> None:
    """A logarithmic axis where scores differ by an order of magnitude, as from scratch."""
    low, high = panel.dataLim.y0, panel.dataLim.y1
    if 0 < low < high / 12 < math.inf:  # without a line the limits are infinite
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")  # the default is in TeX, which titles of users rule out
        panel.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
