"""The model that a stage's training starts from: a new one, a trained one, or one with inputs that it did not have."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pyoco_pipeline.cascade.conditions import Condition
from pyoco_pipeline.config import PretrainImageSettings, StageSettings, UNetSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import autoencoder_sha256, sample_channels
from pyoco_pipeline.diffusion import EDM, Parametrisation
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import InflationOptions, VideoUNet, inflate, load_image_model, load_video_model
from pyoco_pipeline.models.autoencoder import check_autoencoder
from pyoco_pipeline.models.frame_by_frame import ImageUNet
from pyoco_pipeline.models.io import image_config, read_json
from pyoco_pipeline.models.parametrisation import check_channels, read_parametrisation
from pyoco_pipeline.models.scratch import build_image_unet
from pyoco_pipeline.models.shipped import FOLDER as SHIPPED
from pyoco_pipeline.models.shipped import load_shipped

_SCRATCH = "scratch"


def initial_image_model(
    settings: PretrainImageSettings, store: ClipStore, embeddings: TextEmbeddings, size: tuple[int, int]
) -> tuple[ImageUNet, Parametrisation]:
    """The image model that settings.init names, for frames of (height, width) `size`, and what it predicts.

    Raises UserError where it is of another space, number of channels or text width than the store and the embeddings,
    or of another schedule than its folder says.
    """
    if settings.init == _SCRATCH:
        model = _new(settings.unet, store, embeddings, size, settings.train.seed, "pretrain_image.init")
    else:
        _check_space(SHIPPED if settings.init == "shipped" else Path(settings.init), store)
        if settings.init == "shipped":
            model = load_shipped(store.manifest.kind, size, embeddings.encoder_sha256)
        else:
            model = load_image_model(settings.init)
    _check_text_width(model, embeddings)
    parametrisation = _image_parametrisation(settings)
    check_channels(parametrisation, model, settings.init, _channels(model, store))
    return model, parametrisation


def _image_parametrisation(settings: PretrainImageSettings) -> Parametrisation:
    asked = settings.parametrisation.parametrisation() if settings.parametrisation else None
    if settings.init == _SCRATCH:
        return asked or EDM()
    return read_parametrisation(SHIPPED if settings.init == "shipped" else settings.init, asked)


def initial_video_model(
    settings: StageSettings,
    init: Path,
    store: ClipStore,
    embeddings: TextEmbeddings,
    size: tuple[int, int],
    condition: Condition | None,
    inflation: InflationOptions | None,
) -> tuple[VideoUNet, Parametrisation]:
    """The model that a stage starts from, with the inputs that its condition needs, and what it predicts.

    The model is that of settings.init, or without one the inflated model in the folder `init`. size: (height, width) of
    the stage's clips. inflation: of an image model that settings.init names, or of a new one. New inputs have zero
    weights: the model is the function that it was without them. Raises UserError as `initial_image_model` does, and for
    a model whose inputs are another condition's.
    """
    seed = settings.train.seed
    parametrisation: Parametrisation = EDM()
    if settings.init == _SCRATCH:
        assert settings.unet is not None
        image_model = _new(settings.unet, store, embeddings, size, seed, "init")
        model = _inflated(image_model, store, condition, inflation, seed)
    else:
        folder = Path(settings.init) if settings.init else init
        _check_space(folder, store)
        parametrisation = read_parametrisation(folder)
        if settings.init and not (folder / "temporal.json").is_file():
            image_model = load_image_model(folder)
            check_channels(parametrisation, image_model, folder, _channels(image_model, store))
            model = _inflated(image_model, store, condition, inflation, seed)
        else:
            model = _extended(folder, store, condition, seed)
    if condition is None:
        _check_needs_nothing(model, settings.init or init)
    _check_text_width(model.image_model, embeddings)
    return model, parametrisation


def _new(
    unet: UNetSettings,
    store: ClipStore,
    embeddings: TextEmbeddings,
    size: tuple[int, int],
    seed: int,
    key: str,
) -> ImageUNet:
    height, width = size
    if height != width:
        raise UserError(f"{key}=scratch makes square models, the clips are {height}x{width}.")
    channels = sample_channels(store)
    return build_image_unet(
        size=height, text_dim=embeddings.dim, channels=channels, **unet.model_dump(), seed=seed
    )


def _inflated(
    image_model: ImageUNet,
    store: ClipStore,
    condition: Condition | None,
    inflation: InflationOptions | None,
    seed: int,
) -> VideoUNet:
    options = inflation or InflationOptions()
    if condition is not None:
        channels = sample_channels(store)
        blocks = _channels(image_model, store) // channels
        concat = blocks * condition.concat_channels(channels)
        options = replace(options, concat_channels=concat, noise_level=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return inflate(image_model, **asdict(options))


def _extended(folder: Path, store: ClipStore, condition: Condition | None, seed: int) -> VideoUNet:
    """The video model in a folder, with the inputs that the condition needs and it does not have."""
    inputs: dict[str, Any] = {}
    if condition is not None:
        channels = sample_channels(store)
        beside = read_json(folder / "temporal.json").get("concat_channels", 0)
        blocks = (read_json(image_config(folder))["in_channels"] - beside) // channels
        inputs = {"concat_channels": blocks * condition.concat_channels(channels), "noise_level": True}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = load_video_model(folder, **inputs)
    _channels(model.image_model, store, model.options.concat_channels)
    return model


def _check_needs_nothing(model: VideoUNet, init: Path | str) -> None:
    if model.options.concat_channels or model.options.noise_level:
        raise UserError(
            f"{init} is a model that is given another clip beside the noisy one, and this stage gives it none: set the "
            "stage's condition, or start it from a model without (inflate.concat_channels, inflate.noise_level)."
        )


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
