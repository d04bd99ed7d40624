"""Inflation of the image model."""

from __future__ import annotations

from pathlib import Path

from pyoco_pipeline.config import InflateSettings
from pyoco_pipeline.datasets.folder import FolderWriter


def inflate_image_model(inflate: InflateSettings, image_model: Path) -> FolderWriter:
    """Put temporal modules into the image model."""
    import torch

    from pyoco_pipeline.models import inflate as put_temporal_modules
    from pyoco_pipeline.models import load_image_model, save_video_model
    from pyoco_pipeline.models.parametrisation import check_channels, read_parametrisation, save_scheduler

    parametrisation = read_parametrisation(image_model)
    loaded = load_image_model(image_model)
    check_channels(parametrisation, loaded, image_model)
    with torch.random.fork_rng():
        torch.manual_seed(inflate.seed)
        model = put_temporal_modules(loaded, **inflate.options())

    def save(folder: Path) -> None:
        save_video_model(model, folder)
        save_scheduler(folder, parametrisation)

    return save
