"""Inflation of the image model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pyoco_pipeline.config import InflateSettings
from pyoco_pipeline.datasets.folder import FolderWriter


def inflate_image_model(inflate: InflateSettings, image_model: Path) -> FolderWriter:
    """Put temporal modules into the image model."""
    import torch

    from pyoco_pipeline.models import inflate as put_temporal_modules
    from pyoco_pipeline.models import load_image_model, save_video_model

    with torch.random.fork_rng():
        torch.manual_seed(inflate.seed)
        model = put_temporal_modules(load_image_model(image_model), **inflate.options())
    return partial(save_video_model, model)
