"""The two kinds of training stage: an image model on frames, and a video model on clips and frames."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from pyoco_pipeline.config import PretrainImageSettings, StageSettings
from pyoco_pipeline.data.batches import BatchOptions, ClipBatches
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import autoencoder_sha256, latent_decode, sample_channels
from pyoco_pipeline.diffusion import EDM, Denoise, Parametrisation, parametrisation_from_config
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import (
    FrameByFrame,
    LoraOptions,
    StageInfo,
    VideoUNet,
    choose_trainable,
    load_image_model,
    load_video_model,
    save_image_model,
    save_video_model,
)
from pyoco_pipeline.models.autoencoder import check_autoencoder
from pyoco_pipeline.models.frame_by_frame import ImageUNet
from pyoco_pipeline.models.io import weights_sha256
from pyoco_pipeline.models.parametrisation import check_channels, read_parametrisation, save_scheduler
from pyoco_pipeline.models.scratch import build_image_unet
from pyoco_pipeline.models.shipped import FOLDER as SHIPPED
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
    """Train a text-conditional image model on the frames of the training clips, each frame with noise of its own.

    store: of the clips, or of their latents. Raises UserError where the model that training starts from is of the
    other kind, of another text width or another schedule than its folder says.
    """
    if settings.init != "scratch":
        _check_space(SHIPPED if settings.init == "shipped" else Path(settings.init), store)
    model = _image_model(settings, store, embeddings)
    _check_text_width(model, embeddings)
    run = settings.train.model_copy(update={"image_share": 1.0})
    parametrisation = _image_parametrisation(settings)
    check_channels(parametrisation, model, settings.init, _channels(model, store))
    objective = Objective(IIDNoise(), settings.sigma, settings.sigma_data, parametrisation)
    info = _stage_info("image", objective, store, embeddings, run)
    network = FrameByFrame(model)
    _speed_up(network, run)
    history = train(
        network,
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
    """Fine-tune the inflated model in `init` on clips, and on frames as one-frame clips, with correlated noise.

    With settings.init, the model of that stage instead. store: of the clips, or of their latents.
    """
    init = Path(settings.init) if settings.init else init
    _check_space(init, store)
    parametrisation = read_parametrisation(init)
    model = load_video_model(init)
    _channels(model.image_model, store, model.options.concat_channels)
    _check_text_width(model.image_model, embeddings)
    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        choose_trainable(model, settings.trainable, LoraOptions(**settings.lora.model_dump()))
    _check_images_train(model, settings)
    _speed_up(model, settings.train)
    objective = Objective(settings.noise.prior(), settings.sigma, settings.sigma_data, parametrisation)
    info = _stage_info(stage, objective, store, embeddings, settings.train)
    history = train(
        model,
        _batches(store, embeddings, settings.train, with_fps=model.options.fps),
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
    save_scheduler(folder, parametrisation_from_config(info.parametrisation))
    mark_finished(checkpoints)


def _image_model(settings: PretrainImageSettings, store: ClipStore, embeddings: TextEmbeddings) -> ImageUNet:
    if settings.init == "scratch":
        _, height, width = store.shape
        if height != width:
            raise UserError(
                f"pretrain_image.init=scratch makes square models, the clips are {height}x{width}."
            )
        unet = settings.unet.model_dump()
        channels = sample_channels(store)
        return build_image_unet(
            size=height, text_dim=embeddings.dim, channels=channels, **unet, seed=settings.train.seed
        )
    if settings.init == "shipped":
        return load_shipped(store.manifest.kind, store.shape[1:], embeddings.encoder_sha256)
    return load_image_model(settings.init)


def _image_parametrisation(settings: PretrainImageSettings) -> Parametrisation:
    asked = settings.parametrisation.parametrisation() if settings.parametrisation else None
    if settings.init == "scratch":
        return asked or EDM()
    return read_parametrisation(SHIPPED if settings.init == "shipped" else settings.init, asked)


def _speed_up(network: FrameByFrame, train: TrainSettings) -> None:
    if train.gradient_checkpointing:
        network.checkpoint_gradients()
    if train.compile:
        network.compile_blocks()


def _check_space(init: Path, store: ClipStore) -> None:
    """UserError where a stage was trained in another space, of pixels or of an autoencoder's latents, than `store` is.

    Only a stage says it; of another folder the number of channels has to tell.
    """
    if (init / "stage.json").is_file():
        check_autoencoder(init, autoencoder_sha256(store))


def _channels(model: ImageUNet, store: ClipStore, concatenated: int = 0) -> int:
    """How many channels the UNet takes of what `store` holds; UserError unless they are its clips' or blocks' of them.

    concatenated: further ones, of another clip.
    """
    takes, clips = model.config["in_channels"] - concatenated, sample_channels(store)
    if takes != clips * math.isqrt(takes // clips) ** 2:
        latent = store.manifest.autoencoder is not None
        fix = (
            "set ingest.autoencoder to null"
            if latent
            else "set ingest.autoencoder to the model's autoencoder"
        )
        raise UserError(
            f"the image model takes {takes} channels, and ingest made {'latents' if latent else 'pixels'} of {clips}: "
            f"{fix}, or take another model."
        )
    return takes


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


def _check_images_train(model: VideoUNet, settings: StageSettings) -> None:
    only_clips = ("temporal.", "conditioning.fps.")
    if settings.train.image_share > 0 and not any(
        p.requires_grad and not name.startswith(only_clips) for name, p in model.named_parameters()
    ):
        raise UserError(
            f"trainable={settings.trainable} trains nothing on images, which bypass the temporal modules, but "
            f"train.image_share={settings.train.image_share}: set it to 0."
        )


def _batches(
    store: ClipStore, embeddings: TextEmbeddings, train: TrainSettings, *, with_fps: bool = False
) -> ClipBatches:
    options = batch_options(train, with_fps=with_fps)
    return ClipBatches(store, embeddings, options, decode=latent_decode(store))


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
