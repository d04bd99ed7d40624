"""Networks: inflation of image UNets, temporal modules, text encoders, and model folders."""

from pyoco_pipeline.models.conditioning import key_frame_channels, low_resolution_channels
from pyoco_pipeline.models.frame_by_frame import FrameByFrame
from pyoco_pipeline.models.inflation import VideoUNet, inflate
from pyoco_pipeline.models.inflation_options import InflationOptions
from pyoco_pipeline.models.io import (
    StageInfo,
    load_image_model,
    load_stage_info,
    load_video_model,
    save_image_model,
    save_video_model,
)
from pyoco_pipeline.models.trainable import LoraOptions, choose_trainable, merge_lora

__all__ = [
    "FrameByFrame",
    "InflationOptions",
    "LoraOptions",
    "StageInfo",
    "VideoUNet",
    "choose_trainable",
    "inflate",
    "key_frame_channels",
    "load_image_model",
    "load_stage_info",
    "load_video_model",
    "low_resolution_channels",
    "merge_lora",
    "save_image_model",
    "save_video_model",
]
