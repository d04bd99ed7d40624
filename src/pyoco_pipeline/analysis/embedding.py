"""Are noise maps clustered by clip? Plane pictures of them, and numbers that test what the pictures show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pyoco_pipeline.analysis.correlation import jackknife_error

Project = Callable[[np.ndarray], np.ndarray]  # points (n, D) to the plane (n, 2)


@dataclass(frozen=True)
class Clustering:
    """How much nearer two maps of one clip lie than two of different clips.

    distance_ratio: mean squared distance within clips over that between clips, with its standard error by a jackknife
    over clips: 1 for independent frames, 1 - ρ for maps correlated by ρ. same_clip: share of frames whose nearest
    neighbour is of their own clip; chance: that share for independent frames.
    """

    distance_ratio: float
    standard_error: float
    same_clip: float
    chance: float

    def as_dict(self) -> dict[str, Any]:
        """As strict JSON."""
        return asdict(self)


def clustering(products: np.ndarray) -> Clustering:
    """Of maps whose mean products are (N, T, N, T)."""
    clips, frames = products.shape[:2]
    flat = products.reshape(clips * frames, -1)
    power = flat.diagonal()
    distances = power[:, None] + power[None, :] - 2 * flat
    blocks = distances.reshape(clips, frames, clips, frames).sum(axis=(1, 3))  # (N, N), of two clips
    own, row = blocks.diagonal(), blocks.sum(axis=1)
    between = blocks.sum() - own.sum()
    ratio = _ratio(own.sum(), between, clips, frames)
    # A clip takes with it its row and its column, which share its own block.
    without = _ratio(own.sum() - own, between - 2 * (row - own), clips - 1, frames)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1) // frames
    same = (nearest == np.arange(clips * frames) // frames).mean()
    chance = (frames - 1) / (clips * frames - 1)
    return Clustering(float(ratio), float(jackknife_error(np.asarray(without))), float(same), chance)


def _ratio(own: Any, between: Any, clips: int, frames: int) -> Any:
    return (own / (clips * frames * (frames - 1))) / (between / (clips * (clips - 1) * frames**2))


def tsne(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE of points (n, D) in the plane, (n, 2) (van der Maaten & Hinton 2008)."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    method = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init="pca", random_state=seed)
    with threadpool_limits(1):  # for some hundred points threads only wait for each other
        return method.fit_transform(points)


def principal_components(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """The two principal components of points (n, D), (n, 2)."""
    from sklearn.decomposition import PCA

    return PCA(2, random_state=seed).fit_transform(points)


def in_the_plane(project: Project, maps: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, T, …) and reference maps (M, T, …) projected together: (N, T, 2) and (M·T, 2)."""
    clips, frames = maps.shape[:2]
    points = np.concatenate([maps, reference]).reshape((clips + len(reference)) * frames, -1)
    plane = project(points)
    return plane[: clips * frames].reshape(clips, frames, 2), plane[clips * frames :]
