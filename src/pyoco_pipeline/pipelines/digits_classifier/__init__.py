"""The pipeline `digits_classifier`."""

from pyoco_pipeline.pipelines.digits_classifier.pipeline import create_pipeline

__all__ = ["create_pipeline"]
