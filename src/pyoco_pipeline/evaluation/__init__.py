"""Evaluation: feature extractors, Fréchet distance, scores, and the protocol that puts them together."""

from importlib import import_module
from typing import Any

_HOMES = {
    "FeatureStatistics": "pyoco_pipeline.evaluation.statistics",
    "evaluate_clips": "pyoco_pipeline.evaluation.evaluate",
    "evaluate_folders": "pyoco_pipeline.evaluation.evaluate",
    "frechet_distance": "pyoco_pipeline.evaluation.frechet",
}
__all__ = ["FeatureStatistics", "evaluate_clips", "evaluate_folders", "frechet_distance"]


def __getattr__(name: str) -> Any:
    # On demand: reading the settings, as listing the pipelines does, must not import torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
