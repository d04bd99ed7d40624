"""Image pretraining."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pyoco_pipeline.config import PretrainImageSettings
from pyoco_pipeline.datasets.folder import FolderWriter


def train_image_model(
    pretrain_image: PretrainImageSettings,
    clips: Path,
    latents: Path,
    text_embeddings: Path,
    checkpoints: Path,
) -> tuple[FolderWriter, list[dict[str, Any]]]:
    """Train the image model on frames; gives the model's folder and the training history."""
    from pyoco_pipeline.data.embeddings import TextEmbeddings
    from pyoco_pipeline.data.latents import training_store
    from pyoco_pipeline.data.views import view_of
    from pyoco_pipeline.noise import IIDNoise
    from pyoco_pipeline.pipelines.samples import SampleSheet
    from pyoco_pipeline.training import stages
    from pyoco_pipeline.training.processes import on_every_device

    store, embeddings = training_store(clips, latents), TextEmbeddings(text_embeddings)
    view = view_of(store, pretrain_image.clip.shape() if pretrain_image.clip else None)
    sheet = SampleSheet(checkpoints / "samples", store, embeddings, IIDNoise(), num_frames=1, view=view)
    model, info, history = on_every_device(
        pretrain_image.train.num_processes,
        stages.train_image_model,
        pretrain_image,
        store,
        embeddings,
        checkpoints,
        only_here={"validate": sheet},
    )
    keep = partial(stages.keep_model, model=model, info=info, checkpoints=checkpoints)
    return keep, history
