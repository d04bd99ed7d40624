"""Figures of the noise analysis as PNG bytes, in the report's style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pyoco_pipeline.analysis.correlation import FrameCorrelation
from pyoco_pipeline.analysis.fit import AlphaFit, Score
from pyoco_pipeline.analysis.gaussianity import pixel_variance
from pyoco_pipeline.noise import EMPIRICAL
from pyoco_pipeline.reporting.figures import BLUE, GREEN, GREY, ORANGE, as_png, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PURPLE = "#cc79a7"
_COLOURS = {"mixed": ORANGE, "progressive": GREEN, EMPIRICAL: _PURPLE, "iid": GREY}
_PAPER_BEST = {"mixed": 1.0, "progressive": 2.0}  # α (Ge et al. 2023, table 2)


def correlation_curves(
    measured: FrameCorrelation,
    by_channel: np.ndarray,
    fitted: Mapping[str, np.ndarray],
    *,
    dark: bool = False,
) -> bytes:
    """Correlation of noise maps against the distance of their frames, beside that of different clips and of the fits.

    by_channel: (C, T). fitted: by name of the family, (T,).
    """
    frames = np.arange(len(measured.correlation))
    with new_figure((6.4, 3.8), dark) as figure:
        panel = figure.subplots()
        for number, values in enumerate(by_channel):
            panel.plot(
                frames,
                values,
                color=BLUE,
                alpha=0.3,
                linewidth=0.8,
                label="same clip, each channel" if number == 0 else None,
            )
        for name, values in fitted.items():
            panel.plot(frames, values, color=_COLOURS[name], linewidth=1.6, label=f"{name}, fitted")
        panel.errorbar(
            frames,
            measured.correlation,
            2 * measured.correlation_error,
            fmt="o",
            color=BLUE,
            markersize=4,
            capsize=3,
            label="same clip (less different clips), ±2 standard errors",
        )
        power = measured.within[0]
        panel.errorbar(
            frames,
            measured.across / power,
            2 * measured.across_error / power,
            fmt="s--",
            color=GREY,
            markersize=3,
            capsize=2,
            linewidth=1,
            label="different clips, share of the power",
        )
        panel.set_xlabel("distance of the frames")
        panel.set_ylabel("correlation of noise maps")
        panel.set_xticks(frames if len(frames) <= 16 else frames[:: len(frames) // 8])
        panel.legend(fontsize=8, frameon=False)
        return as_png(figure)


def alpha_profiles(fits: Mapping[str, AlphaFit], *, dark: bool = False) -> bytes:
    """Log-likelihood of every α below the best one's, with the bootstrap's interval as a band, a panel per family."""
    with new_figure((4.2 * len(fits), 3.2), dark) as figure:
        panels = figure.subplots(1, len(fits), squeeze=False)[0]
        for panel, (name, fit) in zip(panels, fits.items(), strict=True):
            _profile(panel, name, fit)
        panels[0].set_ylabel("log-likelihood less the largest\n(nats per pixel of a clip)")
        return as_png(figure)


def _profile(panel: Axes, name: str, fit: AlphaFit) -> None:
    # On a linear axis that shows α = 0 and the paper's choice, and some way beyond.
    right = 1.25 * max(_PAPER_BEST[name], min(2 * fit.interval[1], fit.alphas[-1]))
    shown = fit.alphas <= right
    panel.plot(
        fit.alphas[shown], (fit.log_likelihood - fit.log_likelihood.max())[shown], color=_COLOURS[name]
    )
    panel.axvspan(
        *fit.interval, color=_COLOURS[name], alpha=0.25, linewidth=0, label="interval, clips resampled"
    )
    panel.axvline(_PAPER_BEST[name], color=GREY, linestyle=":", label="best α in the paper")
    low, high = fit.interval
    panel.set_title(f"{name}: α = {fit.alpha:.3f} [{low:.3f}, {high:.3f}]", loc="left")
    panel.set_xlabel("α")
    panel.legend(fontsize=8, frameon=False)


def family_scores(scores: Mapping[str, Score], *, dark: bool = False) -> bytes:
    """How much less likely each family makes clips that it was not fitted to than the best one, ±2 standard errors."""
    with new_figure((6.0, 0.5 * len(scores) + 1.0), dark) as figure:
        panel = figure.subplots()
        names = list(scores)
        panel.barh(
            names,
            [score.behind for score in scores.values()],
            xerr=[2 * score.standard_error for score in scores.values()],
            color=[_COLOURS[name] for name in names],
            ecolor=GREY,
            height=0.6,
            capsize=3,
        )
        panel.invert_yaxis()
        panel.set_xlabel("log-likelihood behind the best (nats per pixel of a left-out clip)")
        return as_png(figure)


def value_distribution(maps: np.ndarray, *, dark: bool = False) -> bytes:
    """Histogram of all values of maps (N, T, C, H, W) beside N(0, 1), and the variance at each position."""
    with new_figure((8.4, 3.2), dark) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        grid, std = np.linspace(-4.5, 4.5, 181), float(maps.std(dtype=np.float64))
        left.hist(
            maps.ravel(),
            bins=grid[::2].tolist(),
            density=True,
            color=BLUE,
            alpha=0.5,
            label="values of noise maps",
        )
        for scale, style in ((1.0, "-"), (std, "--")):
            density = np.exp(-((grid / scale) ** 2) / 2) / (scale * np.sqrt(2 * np.pi))
            left.plot(grid, density, style, color=ORANGE, label=f"N(0, {scale**2:.2f})")
        left.set_xlabel("value")
        left.set_ylabel("density")
        left.legend(fontsize=8, frameon=False)
        variance = pixel_variance(maps).mean(axis=0)
        image = right.imshow(variance, cmap="cividis", vmin=0.0, vmax=max(1.0, float(variance.max())))
        right.set_title("variance by position", loc="left")
        right.grid(False)
        right.set_xticks([])
        right.set_yticks([])
        figure.colorbar(image, ax=right, fraction=0.046, pad=0.04).outline.set_visible(False)
        return as_png(figure)


def plane_pictures(planes: Mapping[str, tuple[np.ndarray, np.ndarray]], *, dark: bool = False) -> bytes:
    """Maps in the plane, a panel per set: (N, T, 2), a colour per clip, and reference maps (n, 2) in grey."""
    from matplotlib import colormaps

    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
    with new_figure((3.1 * len(planes), 3.3), dark) as figure:
        panels = figure.subplots(1, len(planes), squeeze=False)[0]
        for panel, (title, (clips, reference)) in zip(panels, planes.items(), strict=True):
            panel.scatter(*reference.T, s=7, color=GREY, alpha=0.45, linewidth=0)
            for number, frames in enumerate(clips):
                colour = palette[number % len(palette)]
                panel.plot(*frames.T, color=colour, linewidth=0.6, alpha=0.6)
                panel.scatter(*frames.T, s=14, color=colour, linewidth=0)
            panel.set_title(title, loc="left", fontsize=9)
            panel.set_xticks([])
            panel.set_yticks([])
        return as_png(figure)
