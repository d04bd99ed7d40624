"""Correlation of noise maps between the frames of one clip, and between clips, with errors that come from the clips.

Everything is a function of the mean products of two maps over their pixels, a table that is small however large the
maps are. Shapes: N clips, T frames, C channels, H height, W width; maps (N, T, C, H, W), products (N, T, N, T).

Noise maps of an inexact model share a mean, which alone makes all products positive. What frames of one clip have in
common is therefore their product less that of the same two frames of different clips; that difference is, exactly, the
covariance over the clips, pixel by pixel, with N - 1 in its denominator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyoco_pipeline.errors import UserError

MIN_CLIPS = 3  # of a covariance over clips whose error can be estimated by leaving one out


def frame_products(maps: np.ndarray) -> np.ndarray:
    """Mean over channels and pixels of the product of every two maps, (N, T, N, T) float64, from (N, T, C, H, W).

    Raises UserError where maps hold values that are not finite, fewer than three clips, or fewer than two frames.
    """
    if maps.ndim != 5:
        raise ValueError(f"maps have shape {maps.shape}: expected (clips, frames, channels, height, width)")
    clips, frames, channels = maps.shape[:3]
    if clips < MIN_CLIPS:
        raise UserError(f"{clips} clips were inverted: at least {MIN_CLIPS} are needed to compare clips.")
    if frames < 2:
        raise UserError(
            "the clips have one frame each: correlation between frames needs clips of at least two."
        )
    finite = np.isfinite(maps).all(axis=(1, 2, 3, 4))
    if not finite.all():
        raise UserError(
            f"the noise maps of {(~finite).sum()} of {clips} clips, first clip {int(np.argmin(finite))}, hold values "
            "that are not finite: the image model fails on them; check its folder, or sigma_min and sigma_max."
        )
    rows = maps.reshape(clips * frames, channels, -1)
    total = np.zeros((clips * frames, clips * frames))
    for channel in range(channels):  # one at a time in double precision
        pixels = rows[:, channel].astype(np.float64)
        total += pixels @ pixels.T / pixels.shape[1]
    return (total / channels).reshape(clips, frames, clips, frames)


def within_clips(products: np.ndarray) -> np.ndarray:
    """Products of the frames of each clip, (N, T, T)."""
    clip = np.arange(len(products))
    return products[clip, :, clip, :]


def covariance(products: np.ndarray) -> np.ndarray:
    """Covariance of the frames over the clips, averaged over pixels: (T, T)."""
    return resampled_covariances(products, np.ones((1, len(products))))[0]


def resampled_covariances(products: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`covariance` of resamples of the clips: (B, T, T) from how often each holds each clip, (B, N)."""
    own = within_clips(products)
    rows = []
    for weight in weights:  # one by one: B tables of N products would not fit
        total = weight.sum()
        means = np.tensordot(weight, products, 1)  # (T, N, T)
        shared = np.tensordot(weight, means, (0, 1)) / total
        rows.append((np.tensordot(weight, own, 1) - shared) / (total - 1))
    return _symmetric(np.stack(rows))


def leave_one_out(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every clip, what the others say of it and what it is: two (N, T, T).

    The first is the covariance over the other clips. The second is the clip's own, about the mean of the others, in
    expectation the same: (N-1)/N of its products, since that mean has an error of its own.
    """
    clips = len(products)
    own, row = within_clips(products), products.sum(axis=2)  # row: (N, T, T), of each clip with all
    total = row.sum(axis=0)
    others = total - row - row.swapaxes(1, 2) + own  # Σ over pairs of the other clips
    rest = clips - 1
    trained = (own.sum(axis=0) - own - others / rest) / (rest - 1)
    cross = (row - own) / rest
    left = own - cross - cross.swapaxes(1, 2) + others / rest**2
    return _symmetric(trained), _symmetric(left) * rest / clips


def by_distance(matrices: np.ndarray) -> np.ndarray:
    """Means of the entries (…, T, T) whose frames are 0, 1, … T-1 apart: (…, T)."""
    frames = matrices.shape[-1]
    diagonals = [matrices.diagonal(lag, -2, -1).mean(-1) for lag in range(frames)]
    return np.stack(diagonals, axis=-1)


@dataclass(frozen=True)
class FrameCorrelation:
    """By distance of the frames, 0 … T-1, all (T,).

    within, across: mean product of two maps of one clip, and of two clips. correlation: (within - across), as a share
    of its value at distance 0. *_error: standard errors, by a jackknife over the clips.
    """

    within: np.ndarray
    across: np.ndarray
    correlation: np.ndarray
    within_error: np.ndarray
    across_error: np.ndarray
    correlation_error: np.ndarray


def frame_correlation(products: np.ndarray) -> FrameCorrelation:
    """How maps of one clip, and of different clips, are correlated by the distance of their frames."""
    clips = len(products)
    own, row = within_clips(products), products.sum(axis=2)
    all_own, all_rows = own.sum(axis=0), row.sum(axis=0)
    pairs = all_rows - all_own
    estimate = _curves(all_own / clips, pairs / (clips * (clips - 1)))
    pairs_without = pairs - row - row.swapaxes(1, 2) + 2 * own
    without = _curves((all_own - own) / (clips - 1), pairs_without / ((clips - 1) * (clips - 2)))
    errors = [jackknife_error(values) for values in without]
    return FrameCorrelation(*estimate, *errors)


def _curves(within: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    w, a = by_distance(_symmetric(within)), by_distance(_symmetric(across))
    shared = w - a
    return w, a, shared / shared[..., :1]


def jackknife_error(without: np.ndarray) -> np.ndarray:
    """Standard error of an estimate from its values (N, …) with each clip left out: (…)."""
    clips = len(without)
    return np.sqrt((clips - 1) / clips * ((without - without.mean(axis=0)) ** 2).sum(axis=0))


def _symmetric(matrices: np.ndarray) -> np.ndarray:
    return (matrices + matrices.swapaxes(-2, -1)) / 2
