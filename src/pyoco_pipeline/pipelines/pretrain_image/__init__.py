"""The pipeline `pretrain_image`."""

from pyoco_pipeline.pipelines.pretrain_image.pipeline import create_pipeline

__all__ = ["create_pipeline"]
