"""Export of the trained stage."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pyoco_pipeline.config import ExportSettings, GenerateSettings, PretrainImageSettings
from pyoco_pipeline.datasets.folder import FolderWriter
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.pipelines.generate.nodes import prompts_to_sample

_log = logging.getLogger(__name__)


def export_model(
    export: ExportSettings,
    generate: GenerateSettings,
    pretrain_image: PretrainImageSettings,
    model: Path,
    clips: Path,
    text_embeddings: Path,
    work: Path,
    latents: Path,
) -> FolderWriter:
    """The stage as a folder for diffusers, set up to sample what `generate` samples."""
    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.data.embeddings import TextEmbeddings
    from pyoco_pipeline.data.latents import open_autoencoder, training_store
    from pyoco_pipeline.exporting import export_stage, find_parent
    from pyoco_pipeline.models import load_stage_info

    store, trained = ClipStore(clips), training_store(clips, latents)
    info = load_stage_info(model)
    found, data = trained.manifest.sha256, info.data_sha256
    if found != data:
        raise UserError(
            f"{model} was trained on clips with the sha256 {data[:12]}…, those in {trained.folder} have "
            f"{found[:12]}…: run `finetune_video` anew, or set ingest back."
        )
    models = [model, *(Path(expert.model) for expert in generate.experts if expert.model)]
    for expert in models[1:]:
        load_stage_info(expert)  # ends here, in a sentence, where it does not say what it is
    parents = [find_parent(pretrain_image.init, export.license, folder) for folder in models]
    return partial(
        export_stage,
        model=model,
        settings=export,
        generate=generate,
        prompts=[caption for caption, _ in prompts_to_sample(generate, store)],
        embeddings=TextEmbeddings(text_embeddings),
        fps=info.fps or store.manifest.fps,
        parent=parents[0],
        metrics=_metrics(work / "metrics.json", models, store.manifest.sha256),
        autoencoder=open_autoencoder(trained),
    )


def _metrics(path: Path, models: Sequence[Path], clips_sha256: str) -> dict[str, Any] | None:
    """The content of metrics.json where it is of these models: on their clips, and written after all of them."""
    from pyoco_pipeline.models.io import read_json

    if not path.is_file():
        return None
    metrics = read_json(path, "run `evaluate` again")
    newer = path.stat().st_mtime_ns > max((model / "stage.json").stat().st_mtime_ns for model in models)
    if newer and metrics.get("reference_sha256") == clips_sha256:
        return metrics
    _log.warning("%s is older than the model or of other clips, so the card goes without metrics.", path)
    return None
