"""A trained stage as a folder that `diffusers.DiffusionPipeline.from_pretrained` loads.

<folder>/model_index.json                    the pipeline's class, components and sampling settings
<folder>/pipeline.py                         imports the pipeline from this package
<folder>/unet, temporal.*, stage.json, …     the stage as `save_video_model` writes it
<folder>/image_model                         the image model that denoises below the stage, where there is one
<folder>/vae                                 of a latent model, its AutoencoderKL
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
from pyoco_pipeline.config import ExpertSettings, ExportSettings, GenerateSettings
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.exporting.card import Card, Parent, licence_note
from pyoco_pipeline.exporting.components import CaptionEncoder, ImageModel, VideoModel
from pyoco_pipeline.exporting.pipeline import Sampling, VideoPipeline
from pyoco_pipeline.generation import load_denoiser, open_denoiser, sampling_prior
from pyoco_pipeline.models import load_stage_info
from pyoco_pipeline.models.autoencoder import Autoencoder, check_autoencoder
from pyoco_pipeline.models.text import EMBEDDED
from pyoco_pipeline.noise import prior_from_config
from pyoco_pipeline.sampling import check_thresholding, noise_levels

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
    autoencoder: Autoencoder | None = None,
) -> None:
    """Write the stage in folder `model`, with the prompts and settings that `generate` samples it with, into `folder`.

    embeddings: of ingest. parent: what the stage was fine-tuned from. metrics: the content of metrics.json.
    autoencoder: of a latent model.
    Raises UserError where `generate` would, for an ensemble but of the stage and an image model below it, and where a
    text encoder is missing.
    """
    info = load_stage_info(model)
    prior = sampling_prior(prior_from_config(info.noise), generate)
    image = _image_expert(generate, model)
    if info.condition is not None:
        raise UserError(
            f"{model} was trained with condition.kind={info.condition['kind']}, whose inputs a diffusers pipeline does "
            "not give it: export writes stages that are given nothing but text."
        )
    for key in ("video", "num_frames"):
        if getattr(generate, key) is not None:
            raise UserError(
                f"generate.{key} is set, which an exported pipeline does not do: set it to null for export."
            )
    check_autoencoder(model, autoencoder.sha256 if autoencoder else None)
    check_thresholding(generate.sampler, autoencoder is not None)
    denoise, sampler = open_denoiser(model, generate, torch.device("cpu")), generate.sampler
    if image is not None:
        for network in (model, Path(str(image.model))):  # ends here, in a sentence, where one does not load
            load_denoiser(network, torch.device("cpu"))
        low, high = noise_levels(denoise, sampler, None, "generate")
        sampler = sampler.model_copy(update={"sigma_min": low, "sigma_max": high})
    if info.text_encoder_sha256 != embeddings.encoder_sha256:
        raise UserError(
            f"{model} was trained with another text encoder than {embeddings.folder} was made with: "
            "run `finetune_video` anew, or set ingest.text_encoder back."
        )
    sampling = Sampling(
        noise=prior.config(),
        sampler=sampler,
        batch_size=generate.batch_size,
        seed=generate.seed,
        fps=fps,
        image_below=image.sigma_max if image else None,
    )
    shutil.copytree(model, folder, ignore=_not_of_a_stage, dirs_exist_ok=True)
    included = settings.include_text_encoder
    has_encoder = embeddings.encoder == EMBEDDED if included == "auto" else included
    kept = list(dict.fromkeys(prompts)) if settings.include_captions else []
    encoder = CaptionEncoder(embeddings)
    encoder.save(folder / "text_encoder", kept, include_encoder=has_encoder)
    if autoencoder is not None:
        autoencoder.save(folder / "vae")
    if image is not None:
        shutil.copytree(str(image.model), folder / "image_model", ignore=_not_of_a_stage)
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "model_index.json").write_text(
        json.dumps(_index(sampling, autoencoder is not None), indent=2) + "\n"
    )
    named, scale = (autoencoder.name, autoencoder.downsampling) if autoencoder else (None, 1)
    card = Card(info, sampling, parent, encoder.name, has_encoder, kept, metrics or {}, named, scale)
    (folder / "README.md").write_text(card.markdown())
    _write_licences(folder, card)


def _index(sampling: Sampling, has_autoencoder: bool) -> dict[str, Any]:
    components = {
        name: [kind.__module__, kind.__name__]
        for name, kind in (("video_model", VideoModel), ("text_encoder", CaptionEncoder))
    }
    if has_autoencoder:
        components["vae"] = ["diffusers", "AutoencoderKL"]
    if sampling.image_below is not None:
        components["image_model"] = [ImageModel.__module__, ImageModel.__name__]
    return {
        "_class_name": ["pipeline", VideoPipeline.__name__],
        "_diffusers_version": diffusers.__version__,
        **components,
        "sampling": sampling.config(),
    }


def _image_expert(generate: GenerateSettings, model: Path) -> ExpertSettings | None:
    """The image model that denoises below the stage, None where the stage is alone; UserError for other ensembles."""
    if not generate.experts:
        return None
    image, *others = sorted(generate.experts, key=lambda expert: expert.sigma_min)
    is_image = image.model is not None and load_stage_info(image.model).is_image_model
    if (
        not is_image
        or len(others) != 1
        or (others[0].model and Path(others[0].model).resolve() != model.resolve())
    ):
        raise UserError(
            f"export writes the stage in {model}, alone or with an image model below it, and generate.experts asks for "
            "something else: leave generate.experts out to export the stage alone."
        )
    return image


def _not_of_a_stage(folder: str, names: list[str]) -> list[str]:
    paths = [Path(folder) / name for name in names]
    return [path.name for path in paths if path.is_file() and path.suffix not in _STAGE_FILES]


def _write_licences(folder: Path, card: Card) -> None:
    (folder / "LICENSE.md").write_text(f"# Licences\n\n{licence_note(card)}\n")
    parent = card.parent.folder
    for path in sorted(parent.glob("LICENSE*")) if parent else []:
        if path.is_file():
            shutil.copyfile(path, folder / f"PARENT-{path.name}")
