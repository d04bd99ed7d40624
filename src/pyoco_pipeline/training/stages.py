"""The two kinds of training stage: an image model on frames, and a video model on clips and frames."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pyoco_pipeline.cascade.conditions import (
    Condition,
    FramesCondition,
    LowResolutionCondition,
    condition_from_config,
)
from pyoco_pipeline.config import PretrainImageSettings, StageSettings
from pyoco_pipeline.data.batches import BatchOptions, ClipBatches
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import autoencoder_sha256, latent_decode
from pyoco_pipeline.data.views import ClipView, view_of
from pyoco_pipeline.diffusion import EDM, Denoise, parametrisation_from_config
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import (
    FrameByFrame,
    InflationOptions,
    LoraOptions,
    StageInfo,
    VideoUNet,
    choose_trainable,
    save_image_model,
    save_video_model,
)
from pyoco_pipeline.models.frame_by_frame import ImageUNet
from pyoco_pipeline.models.io import weights_sha256
from pyoco_pipeline.models.parametrisation import save_scheduler
from pyoco_pipeline.noise import IIDNoise, NoisePrior
from pyoco_pipeline.training.checkpoint import History, mark_finished
from pyoco_pipeline.training.initial_model import initial_image_model, initial_video_model
from pyoco_pipeline.training.objective import Objective
from pyoco_pipeline.training.settings import TrainSettings
from pyoco_pipeline.training.trainer import train

Validate = Callable[[int, Denoise], Path | None]


def train_image_model(
    settings: PretrainImageSettings,
    store: ClipStore,
    embeddings: TextEmbeddings,
    checkpoints: Path,
    validate: Validate | None = None,
) -> tuple[ImageUNet, StageInfo, History]:
    """Train a text-conditional image model on the frames of the training clips, each frame with noise of its own.

    store: of the clips, or of their latents. Raises UserError where the model that training starts from is of the
    other kind, of another text width or another schedule than its folder says.
    """
    view = view_of(store, settings.clip.shape() if settings.clip else None)
    size = store.shape[1] // view.scale, store.shape[2] // view.scale
    model, parametrisation = initial_image_model(settings, store, embeddings, size)
    run = settings.train.model_copy(update={"image_share": 1.0})
    objective = Objective(IIDNoise(), settings.sigma, settings.sigma_data, parametrisation)
    info = replace(
        _stage_info("image", objective, store, embeddings, run),
        shape=(view.num_frames(store.shape[0]), *size),
    )
    network = FrameByFrame(model)
    _speed_up(network, run)
    history = train(
        network,
        ClipBatches(store, embeddings, batch_options(run), decode=latent_decode(store), view=view),
        objective,
        run,
        stage="image",
        checkpoints=checkpoints,
        identity=_identity(info, model, settings, embeddings) | _seen(view, None),
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
    inflation: InflationOptions | None = None,
) -> tuple[VideoUNet, StageInfo, History]:
    """Fine-tune the inflated model in `init` on clips, and on frames as one-frame clips, with correlated noise.

    With settings.init, another model instead. store: of the clips, or of their latents; the stage sees them as
    settings.clip says. inflation: of an image model that settings.init names. Raises UserError where model, clips and
    what the stage is given do not fit together.
    """
    check_stage(settings, store)
    view, shape = stage_view(settings, store), stage_shape(settings, store)
    condition, prior = stage_condition(settings), settings.noise.prior()
    model, parametrisation = initial_video_model(
        settings, init, store, embeddings, shape[1:], condition, inflation
    )
    _check_positions(model, shape[0], settings)
    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        choose_trainable(model, settings.trainable, LoraOptions(**settings.lora.model_dump()))
    _check_images_train(model, settings)
    _speed_up(model, settings.train)
    objective = Objective(prior, settings.sigma, settings.sigma_data, parametrisation, condition)
    info = replace(
        _stage_info(stage, objective, store, embeddings, settings.train),
        shape=shape,
        fps=store.manifest.fps / view.stride,
        frame_by_frame=settings.train.image_share == 1,
        clips=settings.clips,
    )
    options = batch_options(settings.train, with_fps=model.options.fps)
    history = train(
        model,
        ClipBatches(store, embeddings, options, decode=latent_decode(store), view=view),
        objective,
        settings.train,
        stage=stage,
        checkpoints=checkpoints,
        identity=_identity(info, model, settings, embeddings) | _seen(view, condition),
        validate=validate,
    )
    return model, replace(info, steps=history[-1]["step"]), history


def stage_view(settings: StageSettings, store: ClipStore) -> ClipView:
    """What a training step of the stage sees of the clips in `store`; UserError where they can't be seen so."""
    return view_of(
        store,
        settings.clip.shape() if settings.clip else None,
        settings.crop.shape() if settings.crop else None,
    )


def stage_shape(settings: StageSettings, store: ClipStore) -> tuple[int, int, int]:
    """(frames, height, width) of the clips that the stage makes."""
    whole = view_of(store, settings.clip.shape() if settings.clip else None)
    frames, height, width = store.shape
    return whole.num_frames(frames), height // whole.scale, width // whole.scale


def stage_condition(settings: StageSettings) -> Condition | None:
    """What the stage is given besides text."""
    if settings.condition is None:
        return None
    prior = settings.condition.noise.prior().config()
    return condition_from_config(settings.condition.model_dump(exclude={"noise"}) | {"noise": prior})


def check_stage(settings: StageSettings, store: ClipStore) -> None:
    """What can be known without the network; UserError where clips, part, condition and priors don't fit together."""
    view, shape, condition = (
        stage_view(settings, store),
        stage_shape(settings, store),
        stage_condition(settings),
    )
    _check_frames(view.crop[0] if view.crop else shape[0], settings.noise.prior(), condition)
    if isinstance(condition, FramesCondition):
        _check_given_frames(condition, settings, shape[0], view.crop[0] if view.crop else shape[0])
    elif isinstance(condition, LowResolutionCondition):
        if store.manifest.autoencoder:
            raise UserError(
                "condition.kind=low_resolution is for pixels, since latents can't be made smaller by area: train the "
                "stage on clips (ingest.autoencoder: null), or give it another condition."
            )
        sizes = {(shard.height // view.scale, shard.width // view.scale) for shard in store.manifest.shards}
        for height, width in [view.crop[1:]] if view.crop else sorted(sizes):
            if height % condition.scale or width % condition.scale:
                raise UserError(
                    f"clips of {height}x{width} can't be made condition.scale={condition.scale} times smaller: change "
                    "crop or clip."
                )


def _check_given_frames(
    condition: FramesCondition, settings: StageSettings, frames: int, seen_frames: int
) -> None:
    for key, number in (("clip.frames", frames), ("crop.frames", seen_frames)):
        if condition.masks.get("interpolation") and (number - 1) % condition.key_stride:
            nearest = number - (number - 1) % condition.key_stride
            raise UserError(
                f"{key}={number} does not end on a key frame: condition.key_stride={condition.key_stride} needs a "
                f"multiple of it and 1 more, such as {max(nearest, condition.key_stride + 1)}."
            )
    if settings.train.image_share == 1 or seen_frames == 1:
        why = "train.image_share=1" if settings.train.image_share == 1 else "clips of one frame"
        raise UserError(f"{why} with condition.kind=frames: an image has no other frame to be given.")


def _check_frames(frames: int, prior: NoisePrior, condition: Condition | None) -> None:
    for key, law in (("noise", prior), ("condition.noise", condition.prior if condition else prior)):
        try:
            law.covariance(frames)
        except ValueError as error:
            raise UserError(
                f"{key} does not fit clips of {frames} frames: {error} Measure it on clips as long, or take another "
                "kind."
            ) from error


def _check_positions(model: VideoUNet, frames: int, settings: StageSettings) -> None:
    # Training may see parts of clips, of fewer frames; whole ones are sampled.
    if settings.train.image_share == 1:
        return
    longest = model.options.max_frames
    cropped = settings.crop.frames if settings.crop else None
    if model.options.position == "sinusoidal" and cropped and cropped < frames:
        raise UserError(
            f"crop.frames={cropped} of the stage's {frames} frames with inflate.position=sinusoidal: frames are known "
            "by their number in the clip. Leave crop.frames out, or inflate with position=rotary."
        )
    if longest and frames > longest:
        raise UserError(
            f"the stage makes clips of {frames} frames, the model's relative positions go up to inflate.max_frames="
            f"{longest}: raise it, or inflate with position=rotary."
        )


def _seen(view: ClipView, condition: Condition | None) -> dict[str, Any]:
    """What of the clips a run sees and is given, where that is not all and nothing: part of what the run is."""
    seen = {} if view == ClipView() else {"view": json.loads(json.dumps(asdict(view)))}
    return seen | ({"condition": condition.config()} if condition else {})


def keep_model(folder: Path, model: ImageUNet | VideoUNet, info: StageInfo, checkpoints: Path) -> None:
    """Write a trained model into `folder` and close its run: until then the same command goes on with it."""
    if isinstance(model, VideoUNet):
        save_video_model(model, folder, info)
    else:
        save_image_model(model, folder, info)
    save_scheduler(folder, parametrisation_from_config(info.parametrisation))
    mark_finished(checkpoints)


def _speed_up(network: FrameByFrame, train: TrainSettings) -> None:
    if train.gradient_checkpointing:
        network.checkpoint_gradients()
    if train.compile:
        network.compile_layers()


def _check_images_train(model: VideoUNet, settings: StageSettings) -> None:
    only_clips = ("temporal.", "conditioning.fps.")
    if settings.train.image_share > 0 and not any(
        p.requires_grad and not name.startswith(only_clips) for name, p in model.named_parameters()
    ):
        raise UserError(
            f"trainable={settings.trainable} trains nothing on images, which bypass the temporal modules, but "
            f"train.image_share={settings.train.image_share}: set it to 0."
        )


def batch_options(train: TrainSettings, *, with_fps: bool = False) -> BatchOptions:
    """How a training run draws its batches; with_fps: of a network that embeds frame rates."""
    return BatchOptions(
        batch_size=train.batch_size,
        image_share=train.image_share,
        caption_dropout=train.caption_dropout,
        seed=train.seed,
        buffer=train.shuffle_buffer,
        buffer_mb=train.shuffle_buffer_mb,
        lanes=train.data_lanes,
        with_fps=with_fps,
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
        parametrisation=objective.parametrisation.config(),
        sigma_range=(objective.sigma.min, None if math.isinf(objective.sigma.max) else objective.sigma.max),
        autoencoder_sha256=autoencoder_sha256(store),
        condition=objective.condition.config() if objective.condition else None,
    )


def _identity(
    info: StageInfo,
    model: ImageUNet | VideoUNet,
    settings: PretrainImageSettings | StageSettings,
    embeddings: TextEmbeddings,
) -> dict[str, object]:
    # Left out where everything is trained, so that runs from before there was a choice go on.
    trainable = getattr(settings, "trainable", "all")
    chosen: dict[str, object] = {} if trainable == "all" else {"trainable": trainable}
    if info.parametrisation != EDM().config():
        chosen["parametrisation"] = info.parametrisation
    if info.autoencoder_sha256 is not None:
        chosen["autoencoder_sha256"] = info.autoencoder_sha256
    return chosen | {
        "noise": info.noise,
        "sigma": settings.sigma.identity(),
        "sigma_data": info.sigma_data,
        "data_sha256": info.data_sha256,
        "text_encoder_sha256": info.text_encoder_sha256,
        "max_tokens": embeddings.max_tokens,
        "initial_weights_sha256": weights_sha256(model),
    }
