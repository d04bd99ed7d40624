"""Fine-tuning of one stage with frame-correlated noise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.datasets.folder import FolderWriter


def fine_tune(
    stage: StageSettings,
    init: Path,
    clips: Path,
    latents: Path,
    text_embeddings: Path,
    checkpoints: Path,
    *,
    name: str,
) -> tuple[FolderWriter, list[dict[str, Any]]]:
    """Fine-tune an inflated model on clips; gives the stage's folder and the training history."""
    from pyoco_pipeline.data.embeddings import TextEmbeddings
    from pyoco_pipeline.data.latents import training_store
    from pyoco_pipeline.pipelines.samples import SampleSheet
    from pyoco_pipeline.training import stages

    store, embeddings = training_store(clips, latents), TextEmbeddings(text_embeddings)
    sheet = SampleSheet(checkpoints / "samples", store, embeddings, stage.noise.prior(), store.shape[0])
    model, info, history = stages.train_video_model(name, stage, init, store, embeddings, checkpoints, sheet)
    keep = partial(stages.keep_model, model=model, info=info, checkpoints=checkpoints)
    return keep, history
