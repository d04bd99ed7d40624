"""Networks: inflation of image UNets, temporal modules, text encoders, and model folders."""

from pyoco_pipeline.models.inflation import FrameByFrame, InflationOptions, VideoUNet, inflate
from pyoco_pipeline.models.io import (
    StageInfo,
    load_image_model,
    load_stage_info,
    load_video_model,
    save_image_model,
    save_video_model,
)

__all__ = [
    "FrameByFrame",
    "InflationOptions",
    "StageInfo",
    "VideoUNet",
    "inflate",
    "load_image_model",
    "load_stage_info",
    "load_video_model",
    "save_image_model",
    "save_video_model",
]
