"""The pipeline `analyse_noise`."""

from pyoco_pipeline.pipelines.analyse_noise.pipeline import create_pipeline

__all__ = ["create_pipeline"]
