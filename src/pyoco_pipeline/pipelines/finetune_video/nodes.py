"""Fine-tuning of one stage with frame-correlated noise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pyoco_pipeline.config import InflateSettings, StageSettings
from pyoco_pipeline.datasets.folder import FolderWriter


def fine_tune(
    stage: StageSettings | None,
    inflate: InflateSettings,
    init: Path,
    clips: Path,
    latents: Path,
    text_embeddings: Path,
    checkpoints: Path,
    *,
    name: str,
) -> tuple[FolderWriter, list[dict[str, Any]]]:
    """Fine-tune an inflated model on clips; gives the stage's folder and the training history.

    Without settings, the cascade has no such stage, and the folder says so.
    """
    from pyoco_pipeline.cascade.folders import write_none

    if stage is None:
        return partial(write_none, stage=name), []
    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.data.embeddings import TextEmbeddings
    from pyoco_pipeline.data.latents import training_store
    from pyoco_pipeline.models import InflationOptions
    from pyoco_pipeline.pipelines.samples import SampleSheet
    from pyoco_pipeline.training import stages
    from pyoco_pipeline.training.processes import on_every_device

    store = ClipStore(stage.clips) if stage.clips else training_store(clips, latents)
    embeddings = TextEmbeddings(text_embeddings)
    sheet = SampleSheet.of_stage(checkpoints / "samples", store, embeddings, stage)
    model, info, history = on_every_device(
        stage.train.num_processes,
        stages.train_video_model,
        name,
        stage,
        init,
        store,
        embeddings,
        checkpoints,
        inflation=InflationOptions(**inflate.options()),
        only_here={"validate": sheet},
    )
    keep = partial(stages.keep_model, model=model, info=info, checkpoints=checkpoints)
    return keep, history
