"""Scores of single clips: does a clip show what its caption says, and does it hold together over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pyoco_pipeline.evaluation.digits3d import classes_of


def caption_accuracy(
    probabilities: Mapping[str, np.ndarray], attributes: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, float]]:
    """Share of clips in which each captioned attribute is read.

    probabilities: attribute -> (N, K) in the order of `digits3d.classes_of`; attributes: what the N captions
    say. Returns attribute -> value, standard_error (binomial), chance (1 / K) and num. Raises ValueError when
    a clip lacks an attribute or names an unknown class.
    """
    right = _read_right(probabilities, attributes)
    return {name: _share(hits, 1 / probabilities[name].shape[1]) for name, hits in right.items()}


def whole_caption_accuracy(
    probabilities: Mapping[str, np.ndarray], attributes: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """Share of clips in which all captioned attributes are read at once; as an entry of the above."""
    right = _read_right(probabilities, attributes)
    chance = math.prod(1 / probabilities[name].shape[1] for name in right)
    return _share(np.logical_and.reduce(list(right.values())), chance)


def _read_right(
    probabilities: Mapping[str, np.ndarray], attributes: Sequence[Mapping[str, str]]
) -> dict[str, np.ndarray]:
    right = {}
    for name, p in probabilities.items():
        if len(p) != len(attributes):
            raise ValueError(f"{name}: probabilities of {len(p)} clips, but attributes of {len(attributes)}")
        classes = classes_of(name)
        for i, said in enumerate(attributes):
            if said.get(name) not in classes:
                raise ValueError(
                    f"clip {i} has {name} {said.get(name)!r}, expected one of {', '.join(classes)}"
                )
        target = np.array([classes.index(said[name]) for said in attributes])
        right[name] = p.argmax(axis=1) == target
    return right


def _share(hits: np.ndarray, chance: float) -> dict[str, float]:
    value, num = float(hits.mean()), len(hits)
    error = math.sqrt(value * (1 - value) / num)
    return {"value": value, "standard_error": error, "chance": chance, "num": num}


def clip_consistency(features: np.ndarray) -> np.ndarray:
    """Mean cosine of adjacent frames per clip: features (N, T, D), T of at least 2, to (N,) in [-1, 1]."""
    f = np.asarray(features, dtype=np.float64)
    if f.ndim != 3 or f.shape[1] < 2:
        raise ValueError(f"frame features have shape {f.shape}, expected (N, T, D) with at least 2 frames")
    unit = f / np.maximum(np.linalg.norm(f, axis=2, keepdims=True), 1e-12)
    return (unit[:, 1:] * unit[:, :-1]).sum(axis=2).mean(axis=1)


def temporal_consistency(features: np.ndarray) -> float:
    """Mean cosine of adjacent frames over all clips. A frozen clip scores 1: read it beside real clips."""
    return float(clip_consistency(features).mean())


def motion_magnitude(videos: np.ndarray) -> np.ndarray:
    """Mean absolute change of luma (BT.601) between adjacent frames, in grey levels: uint8 (N, T, H, W, 3) to (N,).

    T of at least 2. A frozen clip scores 0.
    """
    if videos.ndim != 5 or videos.shape[1] < 2:
        raise ValueError(f"videos have shape {videos.shape}, expected (N, T, H, W, 3) with at least 2 frames")
    values = np.empty(len(videos))
    for i, video in enumerate(videos):  # one at a time: float frames take four times the memory
        luma = video.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        values[i] = np.abs(np.diff(luma, axis=0)).mean(dtype=np.float64)
    return values
