"""A trained stage as a folder that `diffusers.DiffusionPipeline.from_pretrained` loads.

<folder>/model_index.json                    the pipeline's class, components and sampling settings
<folder>/pipeline.py                         imports the pipeline from this package
<folder>/unet, temporal.*, stage.json, …     the stage as `save_video_model` writes it
<folder>/text_encoder                        the encoder in transformers' layout where wanted; embeddings of prompts
<folder>/README.md, LICENSE.md               the model card
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from pyoco_pipeline import __version__
from pyoco_pipeline.config import ExportSettings, GenerateSettings
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.exporting.card import Card, Parent, licence_note
from pyoco_pipeline.exporting.components import CaptionEncoder, VideoModel
from pyoco_pipeline.exporting.pipeline import Sampling, VideoPipeline
from pyoco_pipeline.generation import open_denoiser, sampling_prior
from pyoco_pipeline.models import load_stage_info
from pyoco_pipeline.models.text import EMBEDDED
from pyoco_pipeline.noise import prior_from_config

PIPELINE = f'''"""A video pipeline for diffusers; its code is the package pyoco_pipeline."""

try:
    from pyoco_pipeline.exporting import VideoPipeline
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("pyoco_pipeline"):
        raise
    raise ImportError(
        "This folder was exported by pyoco_pipeline {__version__} and needs it: `pip install .` in a clone of its "
        "repository."
    ) from error

__all__ = ["VideoPipeline"]
'''
_STAGE_FILES = (".json", ".safetensors")


def export_stage(
    folder: Path,
    *,
    model: Path,
    settings: ExportSettings,
    generate: GenerateSettings,
    prompts: Sequence[str],
    embeddings: TextEmbeddings,
    fps: float,
    parent: Parent,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write the stage in folder `model`, with the prompts and settings that `generate` samples it with, into `folder`.

    embeddings: of ingest. parent: what the stage was fine-tuned from. metrics: the content of metrics.json.
    Raises UserError where `generate` would, for an ensemble of experts, and where a text encoder is missing.
    """
    info = load_stage_info(model)
    prior = sampling_prior(prior_from_config(info.noise), generate)
    if generate.experts:
        raise UserError(
            "generate.experts names several models, and export writes one: leave generate.experts out to export the "
            f"stage in {model} alone."
        )
    open_denoiser(model, generate, torch.device("cpu"))  # ends here, in a sentence, where it does not load
    if info.text_encoder_sha256 != embeddings.encoder_sha256:
        raise UserError(
            f"{model} was trained with another text encoder than {embeddings.folder} was made with: "
            "run `finetune_video` anew, or set ingest.text_encoder back."
        )
    sampling = Sampling(
        noise=prior.config(),
        sampler=generate.sampler,
        batch_size=generate.batch_size,
        seed=generate.seed,
        fps=fps,
    )
    shutil.copytree(model, folder, ignore=_not_of_a_stage, dirs_exist_ok=True)
    included = settings.include_text_encoder
    has_encoder = embeddings.encoder == EMBEDDED if included == "auto" else included
    kept = list(dict.fromkeys(prompts)) if settings.include_captions else []
    encoder = CaptionEncoder(embeddings)
    encoder.save(folder / "text_encoder", kept, include_encoder=has_encoder)
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "model_index.json").write_text(json.dumps(_index(sampling), indent=2) + "\n")
    card = Card(info, sampling, parent, encoder.name, has_encoder, kept, metrics or {})
    (folder / "README.md").write_text(card.markdown())
    _write_licences(folder, parent, encoder.name, has_encoder)


def _index(sampling: Sampling) -> dict[str, Any]:
    components = {"video_model": VideoModel, "text_encoder": CaptionEncoder}
    return {
        "_class_name": ["pipeline", VideoPipeline.__name__],
        "_diffusers_version": diffusers.__version__,
        **{name: [kind.__module__, kind.__name__] for name, kind in components.items()},
        "sampling": sampling.config(),
    }


def _not_of_a_stage(folder: str, names: list[str]) -> list[str]:
    paths = [Path(folder) / name for name in names]
    return [path.name for path in paths if path.is_file() and path.suffix not in _STAGE_FILES]


def _write_licences(folder: Path, parent: Parent, text_encoder: str, has_text_encoder: bool) -> None:
    note = licence_note(parent, text_encoder, has_text_encoder)
    (folder / "LICENSE.md").write_text(f"# Licences\n\n{note}\n")
    for path in sorted(parent.folder.glob("LICENSE*")) if parent.folder else []:
        if path.is_file():
            shutil.copyfile(path, folder / f"PARENT-{path.name}")
