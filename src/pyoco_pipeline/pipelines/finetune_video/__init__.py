"""The pipeline `finetune_video`."""

from pyoco_pipeline.pipelines.finetune_video.pipeline import create_pipeline

__all__ = ["create_pipeline"]
