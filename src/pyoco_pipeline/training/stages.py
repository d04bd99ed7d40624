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

from pyoco_pipeline.cascade.conditions import Condition, FramesCondition, LowResolutionCondition
from pyoco_pipeline.config import PretrainImageSettings, StageSettings
from pyoco_pipeline.data.batches import BatchOptions, ClipBatches
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import autoencoder_sha256, latent_decode, sample_channels
from pyoco_pipeline.data.views import ClipView, view_of
from pyoco_pipeline.diffusion import EDM, Denoise, Parametrisation, parametrisation_from_config
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import (
    FrameByFrame,
    InflationOptions,
    LoraOptions,
    StageInfo,
    VideoUNet,
    choose_trainable,
    inflate,
    load_image_model,
    load_video_model,
    save_image_model,
    save_video_model,
)
from pyoco_pipeline.models.autoencoder import check_autoencoder
from pyoco_pipeline.models.frame_by_frame import ImageUNet
from pyoco_pipeline.models.io import image_config, read_json, weights_sha256
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
    view = view_of(store, settings.clip.shape() if settings.clip else None)
    size = store.shape[1] // view.scale, store.shape[2] // view.scale
    model = _image_model(settings, store, embeddings, size)
    _check_text_width(model, embeddings)
    run = settings.train.model_copy(update={"image_share": 1.0})
    parametrisation = _image_parametrisation(settings)
    check_channels(parametrisation, model, settings.init, _channels(model, store))
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
    view = stage_view(settings, store)
    condition = stage_condition(settings)
    _check_condition(condition, settings, stage_shape(settings, store), view)
    model, parametrisation = _initial_model(settings, init, store, embeddings, condition, inflation)
    _check_text_width(model.image_model, embeddings)
    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        choose_trainable(model, settings.trainable, LoraOptions(**settings.lora.model_dump()))
    _check_images_train(model, settings)
    _speed_up(model, settings.train)
    prior = settings.noise.prior()
    objective = Objective(prior, settings.sigma, settings.sigma_data, parametrisation, condition)
    info = replace(
        _stage_info(stage, objective, store, embeddings, settings.train),
        shape=stage_shape(settings, store),
        fps=store.manifest.fps / view.stride,
        frame_by_frame=settings.train.image_share == 1,
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
    options = settings.condition.model_dump(exclude={"kind", "noise"})
    kinds = {"frames": FramesCondition, "low_resolution": LowResolutionCondition}
    return kinds[settings.condition.kind](**options, prior=settings.condition.noise.prior())


def _check_condition(
    condition: Condition | None, settings: StageSettings, shape: tuple[int, int, int], view: ClipView
) -> None:
    frames, height, width = view.crop or shape
    if isinstance(condition, FramesCondition):
        for key, number in (("clip.frames", shape[0]), ("crop.frames", frames)):
            if condition.masks.get("interpolation") and (number - 1) % condition.key_stride:
                raise UserError(
                    f"{key}={number} does not end on a key frame: condition.key_stride={condition.key_stride} needs "
                    f"a multiple of it and 1 more, such as {number - (number - 1) % condition.key_stride}."
                )
        if settings.train.image_share == 1:
            raise UserError(
                "train.image_share=1 with condition.kind=frames: an image has no other frame to be given."
            )
    if isinstance(condition, LowResolutionCondition) and (
        height % condition.scale or width % condition.scale
    ):
        raise UserError(
            f"clips of {height}x{width} can't be made condition.scale={condition.scale} times smaller: change "
            "crop or clip."
        )


def _initial_model(
    settings: StageSettings,
    init: Path,
    store: ClipStore,
    embeddings: TextEmbeddings,
    condition: Condition | None,
    inflation: InflationOptions | None,
) -> tuple[VideoUNet, Parametrisation]:
    """The model that a stage starts from, with the inputs that its condition needs, and what it predicts."""
    if settings.init == "scratch":
        assert settings.unet is not None
        unet = settings.unet.model_dump()
        image_model = build_image_unet(
            size=store.shape[1], text_dim=embeddings.dim, channels=sample_channels(store), **unet,
            seed=settings.train.seed,
        )  # fmt: skip
        return _inflated(image_model, store, condition, inflation, settings.train.seed), EDM()
    folder = Path(settings.init) if settings.init else init
    _check_space(folder, store)
    parametrisation = read_parametrisation(folder)
    if not (folder / "temporal.json").is_file() and settings.init:
        model = _inflated(load_image_model(folder), store, condition, inflation, settings.train.seed)
        return model, parametrisation
    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        model = load_video_model(folder, **_inputs(folder, store, condition))
    _channels(model.image_model, store, model.options.concat_channels)
    return model, parametrisation


def _inflated(
    image_model: ImageUNet,
    store: ClipStore,
    condition: Condition | None,
    inflation: InflationOptions | None,
    seed: int,
) -> VideoUNet:
    blocks = _channels(image_model, store) // sample_channels(store)
    options = inflation or InflationOptions()
    if condition is not None:
        concat = blocks * condition.concat_channels(sample_channels(store))
        options = replace(options, concat_channels=concat, noise_level=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return inflate(image_model, **asdict(options))


def _inputs(folder: Path, store: ClipStore, condition: Condition | None) -> dict[str, Any]:
    """The inputs that a condition needs, as `load_video_model` adds them to the model in `folder`."""
    if condition is None:
        return {}
    config = read_json(image_config(folder))
    takes = config["in_channels"] - read_json(folder / "temporal.json").get("concat_channels", 0)
    channels = sample_channels(store)
    return {"concat_channels": takes // channels * condition.concat_channels(channels), "noise_level": True}


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


def _image_model(
    settings: PretrainImageSettings, store: ClipStore, embeddings: TextEmbeddings, size: tuple[int, int]
) -> ImageUNet:
    if settings.init == "scratch":
        height, width = size
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
        return load_shipped(store.manifest.kind, size, embeddings.encoder_sha256)
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
