"""The pipeline `ablate_alpha`."""

from pyoco_pipeline.pipelines.ablate_alpha.pipeline import create_pipeline

__all__ = ["create_pipeline"]
