"""Trained stages as folders that diffusers loads: the components, the pipeline, and what writes the folder."""

from pyoco_pipeline.exporting.card import Card, Parent, find_parent
from pyoco_pipeline.exporting.components import CaptionEncoder, VideoModel
from pyoco_pipeline.exporting.folder import export_stage
from pyoco_pipeline.exporting.pipeline import Sampling, VideoPipeline, VideoPipelineOutput

__all__ = [
    "CaptionEncoder",
    "Card",
    "Parent",
    "Sampling",
    "VideoModel",
    "VideoPipeline",
    "VideoPipelineOutput",
    "export_stage",
    "find_parent",
]
