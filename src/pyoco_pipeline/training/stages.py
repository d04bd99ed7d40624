"""The two kinds of training stage: an image model on frames, and a video model on clips and frames."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from pyoco_pipeline.config import PretrainImageSettings, StageSettings
from pyoco_pipeline.data.batches import ClipBatches
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.diffusion import Denoise
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import (
    FrameByFrame,
    StageInfo,
    VideoUNet,
    load_image_model,
    load_video_model,
    save_image_model,
    save_video_model,
)
from pyoco_pipeline.models.inflation import ImageUNet
from pyoco_pipeline.models.io import weights_sha256
from pyoco_pipeline.models.scratch import build_image_unet
from pyoco_pipeline.models.shipped import load_shipped
from pyoco_pipeline.noise import IIDNoise
from pyoco_pipeline.training.checkpoint import History, mark_finished
from pyoco_pipeline.training.settings import TrainSettings
from pyoco_pipeline.training.trainer import Objective, train

Validate = Callable[[int, Denoise], Path | None]


def train_image_model(
    settings: PretrainImageSettings,
    store: ClipStore,
    embeddings: TextEmbeddings,
    checkpoints: Path,
    validate: Validate | None = None,
) -> tuple[ImageUNet, StageInfo, History]:
    """Train a text-conditional image model on the frames of the training clips, each frame with noise of its own."""
    model = _image_model(settings, store, embeddings)
    _check_text_width(model, embeddings)
    run = settings.train.model_copy(update={"image_share": 1.0})
    objective = Objective(IIDNoise(), settings.sigma, settings.sigma_data)
    info = _stage_info("image", objective, store, embeddings, run)
    history = train(
        FrameByFrame(model),
        _batches(store, embeddings, run),
        objective,
        run,
        stage="image",
        checkpoints=checkpoints,
        identity=_identity(info, model, settings, embeddings),
        validate=validate,
    )
    return model, replace(info, steps=history[-1]["step"]), history


def train_video_model(
    stage: str,
    settings: StageSettings,
    init: Path,
    store: ClipStore,
    embeddings: TextEmbeddings,
    checkpoints: Path,
    validate: Validate | None = None,
) -> tuple[VideoUNet, StageInfo, History]:
    """Fine-tune the inflated model in `init` on clips, and on frames as one-frame clips, with correlated noise."""
    model = load_video_model(init)
    _check_text_width(model.image_model, embeddings)
    objective = Objective(settings.noise.prior(), settings.sigma, settings.sigma_data)
    info = _stage_info(stage, objective, store, embeddings, settings.train)
    history = train(
        model,
        _batches(store, embeddings, settings.train),
        objective,
        settings.train,
        stage=stage,
        checkpoints=checkpoints,
        identity=_identity(info, model, settings, embeddings),
        validate=validate,
    )
    return model, replace(info, steps=history[-1]["step"]), history


def keep_model(folder: Path, model: ImageUNet | VideoUNet, info: StageInfo, checkpoints: Path) -> None:
    """Write a trained model into `folder` and close its run: until then the same command goes on with it."""
    if isinstance(model, VideoUNet):
        save_video_model(model, folder, info)
    else:
        save_image_model(model, folder, info)
    mark_finished(checkpoints)


def _image_model(settings: PretrainImageSettings, store: ClipStore, embeddings: TextEmbeddings) -> ImageUNet:
    if settings.init == "scratch":
        _, height, width = store.shape
        if height != width:
            raise UserError(
                f"pretrain_image.init=scratch makes square models, the clips are {height}x{width}."
            )
        unet = settings.unet.model_dump()
        return build_image_unet(size=height, text_dim=embeddings.dim, **unet, seed=settings.train.seed)
    if settings.init == "shipped":
        return load_shipped(store.manifest.kind, store.shape[1:], embeddings.encoder_sha256)
    return load_image_model(settings.init)


def _check_text_width(model: ImageUNet, embeddings: TextEmbeddings) -> None:
    # A model that projects its text first (DeepFloyd IF) has the encoder's width as encoder_hid_dim.
    width = model.config.get("encoder_hid_dim") or model.config.get("cross_attention_dim")
    if width is None:
        raise UserError(
            f"the image model is a {type(model).__name__}, which takes no text: give a UNet2DConditionModel."
        )
    if width != embeddings.dim:
        raise UserError(
            f"the image model expects text tokens of width {width}, those of {embeddings.folder} have "
            f"{embeddings.dim}: set ingest.text_encoder to the encoder it was trained with."
        )


def _batches(store: ClipStore, embeddings: TextEmbeddings, train: TrainSettings) -> ClipBatches:
    return ClipBatches(
        store,
        embeddings,
        batch_size=train.batch_size,
        image_share=train.image_share,
        caption_dropout=train.caption_dropout,
        seed=train.seed,
    )


def _stage_info(
    stage: str, objective: Objective, store: ClipStore, embeddings: TextEmbeddings, train: TrainSettings
) -> StageInfo:
    return StageInfo(
        stage=stage,
        noise=objective.prior.config(),
        sigma_data=objective.sigma_data,
        shape=store.shape,
        data_sha256=store.manifest.sha256,
        text_encoder_sha256=embeddings.encoder_sha256,
        steps=train.steps,
        seed=train.seed,
        torch=torch.__version__,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    )


def _identity(
    info: StageInfo,
    model: ImageUNet | VideoUNet,
    settings: PretrainImageSettings | StageSettings,
    embeddings: TextEmbeddings,
) -> dict[str, object]:
    return {
        "noise": info.noise,
        "sigma": settings.sigma.model_dump(),
        "sigma_data": info.sigma_data,
        "data_sha256": info.data_sha256,
        "text_encoder_sha256": info.text_encoder_sha256,
        "max_tokens": embeddings.tokens.shape[1],
        "initial_weights_sha256": weights_sha256(model),
    }
