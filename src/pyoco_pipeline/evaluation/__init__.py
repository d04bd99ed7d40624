"""Evaluation: feature extractors, Fréchet distance, scores, and the protocol that puts them together."""

from pyoco_pipeline.evaluation.frechet import frechet_distance
from pyoco_pipeline.evaluation.statistics import FeatureStatistics

__all__ = ["FeatureStatistics", "frechet_distance"]
