"""The pipeline `inflate`."""

from pyoco_pipeline.pipelines.inflate.pipeline import create_pipeline

__all__ = ["create_pipeline"]
