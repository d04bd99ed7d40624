"""Figures as PNG bytes, drawn without a display, in Okabe and Ito's colours, safe for the colour-blind."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8a8f98"
_DARK_BLUE = "#56b4e9"
_LIGHT = {"ink": "#24292f", "rule": "#e3e6ea", "paper": "#ffffff"}
_DARK = {"ink": "#d5d9e0", "rule": "#343b47", "paper": "#1b2029"}


def loss_curves(history: Iterable[Mapping[str, Any]], *, dark: bool = False) -> bytes:
    """The training loss against the step, a panel per stage: raw as a thin line, smoothed as a thick one.

    history: rows with `stage`, `step` and `loss`; those without a finite loss are left out.
    Raises ValueError when no row is left.
    """
    stages: dict[str, list[tuple[float, float]]] = {}
    for row in history:
        loss = row.get("loss")
        if isinstance(loss, int | float) and np.isfinite(loss):
            stages.setdefault(str(row.get("stage", "training")), []).append((float(row["step"]), float(loss)))
    if not stages:
        raise ValueError("the history holds no finite loss")
    columns = min(len(stages), 3)
    rows = -(-len(stages) // columns)
    with new_figure((4.6 * columns, 2.9 * rows), dark) as figure:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel in panels[len(stages) :]:
            panel.set_axis_off()
        for panel, (stage, points) in zip(panels, stages.items(), strict=False):
            _loss_panel(panel, stage, np.array(sorted(points)), _DARK_BLUE if dark else BLUE)
        return as_png(figure)


def _loss_panel(panel: Axes, stage: str, points: np.ndarray, colour: str) -> None:
    step, loss = points.T
    panel.plot(step, loss, color=colour, alpha=0.35, linewidth=0.9, marker="." if len(step) < 8 else None)
    panel.plot(step, smoothed(loss), color=colour, linewidth=2.0)
    if loss.min() > 0 and loss.max() / loss.min() > 20:
        panel.set_yscale("log")
    panel.set_title(stage, loc="left")
    panel.set_xlabel("step")
    panel.set_ylabel("loss")
    panel.margins(x=0.01)


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred running mean over about a twentieth of the curve, with shorter windows at the ends."""
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def noise_covariance(matrix: np.ndarray, title: str, *, dark: bool = False) -> bytes:
    """A heat map of the noise covariance (T, T) between the frames of one clip."""
    with new_figure((4.2, 3.6), dark) as figure:
        panel = figure.subplots()
        image = panel.imshow(matrix, cmap="cividis", vmin=min(0.0, float(np.min(matrix))), vmax=1.0)
        panel.set_title(title, loc="left")
        panel.set_xlabel("frame")
        panel.set_ylabel("frame")
        panel.grid(False)
        bar = figure.colorbar(image, ax=panel, fraction=0.046, pad=0.04)
        bar.set_label("covariance")
        bar.outline.set_visible(False)
        if len(matrix) <= 8:
            for (row, column), value in np.ndenumerate(matrix):
                shade = "#101418" if value > 0.6 else "#ffffff"
                panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=shade)
        return as_png(figure)


def metric_bars(metrics: Mapping[str, Any], *, dark: bool = False) -> bytes:
    """Each metric, with its interval where it has one, beside what real clips score (`floor` or `real`).

    A panel per metric.
    metrics: metrics.json or its `metrics` part; entries without a number are left out.
    Raises ValueError when no entry is left.
    """
    entries = metrics.get("metrics", metrics)
    bars = [(name, item) for name, item in entries.items() if _is_number(item.get("value"))]
    if not bars:
        raise ValueError("there is no metric with a value")
    columns = 2 if len(bars) in (2, 4) else min(len(bars), 3)
    rows = -(-len(bars) // columns)
    with new_figure((4.0 * columns, 1.5 * rows), dark) as figure:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel in panels[len(bars) :]:
            panel.set_axis_off()
        for panel, (name, item) in zip(panels, bars, strict=False):
            reference = next((key for key in ("floor", "real") if _is_number(item.get(key))), None)
            labels = [
                "generated",
                *(["real vs real" if reference == "floor" else "real"] if reference else []),
            ]
            values = [item["value"], *([item[reference]] if reference else [])]
            _metric_panel(panel, name, labels, values, [_DARK_BLUE if dark else BLUE, GREY])
            if item.get("interval"):
                _draw_interval(panel, item["value"], item["interval"], (_DARK if dark else _LIGHT)["ink"])
        return as_png(figure)


def _metric_panel(
    panel: Axes, name: str, labels: Sequence[str], values: Sequence[float], colours: Sequence[str]
) -> None:
    drawn = panel.barh(labels, values, color=list(colours[: len(values)]), height=0.62)
    panel.bar_label(drawn, labels=[f"{value:.3g}" for value in values], padding=4, fontsize=9)
    panel.invert_yaxis()
    panel.margins(x=0.22)
    panel.set_title(name, loc="left")
    panel.grid(False)
    panel.xaxis.set_visible(False)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)


def _draw_interval(panel: Axes, value: float, interval: Mapping[str, float], colour: str) -> None:
    low, high = interval["low"], interval["high"]
    reach = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
    panel.errorbar([value], [0], xerr=reach, fmt="none", ecolor=colour, elinewidth=1.4, capsize=4)
    label: Any = panel.texts[0]  # of the bar, on which the line would lie
    label.xy = (max(value, high), 0)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


@contextmanager
def new_figure(size_inches: tuple[float, float], dark: bool) -> Iterator[Figure]:
    """A figure in the report's light or dark colours that belongs to no window system."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = _DARK if dark else _LIGHT
    style: Any = {
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.labelsize": 9,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.8,
        "figure.constrained_layout.h_pad": 0.1,
        "figure.constrained_layout.w_pad": 0.1,
        "figure.facecolor": colours["paper"],
        "axes.facecolor": colours["paper"],
        "savefig.facecolor": colours["paper"],
        "text.color": colours["ink"],
        "axes.labelcolor": colours["ink"],
        "axes.titlecolor": colours["ink"],
        "xtick.color": colours["ink"],
        "ytick.color": colours["ink"],
        "axes.edgecolor": colours["rule"],
        "grid.color": colours["rule"],
        "text.parse_math": False,  # titles come from users: "$" is a dollar
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size_inches, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def as_png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
