"""Sampling with a stage that is given clips of the stage before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyoco_pipeline.cascade.conditions import (
    Condition,
    FramesCondition,
    LowResolutionCondition,
    condition_from_config,
)
from pyoco_pipeline.config import GenerateSettings, LaterStageSettings
from pyoco_pipeline.data.batches import to_float
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.diffusion import Denoise
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.generation import (
    caption_conditioning,
    load_denoiser,
    sample_batch,
    sampling_precision,
    sampling_prior,
)
from pyoco_pipeline.models import StageInfo, load_stage_info
from pyoco_pipeline.models.autoencoder import Autoencoder
from pyoco_pipeline.models.io import read_json
from pyoco_pipeline.noise import prior_from_config

_SEED_OF_STAGE = {"interpolation": 11, "sr256": 12, "sr1024": 13}  # base has the clip's own


def continue_clips(
    stage: str,
    model: Path,
    before: ClipStore,
    settings: GenerateSettings,
    embeddings: TextEmbeddings,
    autoencoder: Autoencoder | None = None,
) -> Iterator[CaptionedClip]:
    """The clips of the store `before` as the stage in folder `model` makes them, with their captions; clip by clip.

    Memory does not depend on their number. Noise, of the sample and of the augmentation, is a function of (seed, clip,
    stage). Raises UserError for a prior other than the stage's, unless that is asked for.
    """
    info, own = load_stage_info(model), settings.later(stage)
    condition = condition_from_config(info.condition)
    assert condition is not None  # `plan_cascade` saw to it
    prior = sampling_prior(prior_from_config(info.noise), own, f"generate.{stage}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoise = _tiled(load_denoiser(model, device, settings.compile), own, stage)
    if autoencoder is not None:
        autoencoder.to(device)
    null, tells_fps = embeddings.null(device), read_json(model / "temporal.json").get("fps")
    clips, place = before.clips(), 0
    while batch := list(islice(clips, own.batch_size)):
        draws = [(settings.seed, place + i, _SEED_OF_STAGE[stage]) for i in range(len(batch))]
        seeds, augmentation = ([mix_seed(*draw, use) for draw in draws] for use in (0, 1))
        cond = {
            name: value.to(device)
            for name, value in caption_conditioning([item.caption for item in batch], embeddings).items()
        }
        if tells_fps:
            cond["fps"] = torch.full((len(batch),), info.fps or before.manifest.fps, device=device)
        small = _encoded(np.stack([item.clip.video for item in batch]), autoencoder, device)
        with torch.inference_mode(), sampling_precision(settings, device):
            cond |= given(condition, small, info.shape, own.noise_level, augmentation)
            videos = sample_batch(
                denoise, prior, own.sampler, cond, null, info.shape, seeds, autoencoder, f"generate.{stage}"
            ).cpu()
        for item, video in zip(batch, videos, strict=True):
            yield replace(item, clip=replace(item.clip, video=video.numpy(), fps=None))
        place += len(batch)


def given(
    condition: Condition, small: Tensor, shape: tuple[int, int, int], level: float, seeds: list[int]
) -> dict[str, Tensor]:
    """The network's keyword arguments for clips of the stage before, small (B, C, t, h, w), in a stage of `shape`.

    level: of the noise augmentation; seeds: of its noise, one per clip. Frames of `FramesCondition` are the key frames.
    """
    batch, channels = small.shape[:2]
    generators = [torch.Generator(small.device).manual_seed(seed) for seed in seeds]
    levels = torch.full((batch,), level, device=small.device)
    noise = condition.prior.sample(
        (batch, channels, *shape), generator=generators, device=small.device, dtype=torch.float32
    )
    if isinstance(condition, LowResolutionCondition):
        return condition.given(small, levels, noise)
    assert isinstance(condition, FramesCondition)
    is_given = condition.key_frames(shape[0]).to(small.device).expand(batch, -1)
    clip = small.new_zeros((batch, channels, *shape))
    clip[:, :, is_given[0]] = small
    return condition.given(clip, is_given, levels, noise)


def _encoded(videos: np.ndarray, autoencoder: Autoencoder | None, device: torch.device) -> Tensor:
    """Stored clips (B, T, H, W, 3) as what the stage samples: pixels in [-1, 1], or the means of their latents."""
    stored = torch.from_numpy(videos).to(device)
    if autoencoder is None:
        return to_float(stored)
    mean = autoencoder.encode(stored).permute(0, 4, 1, 2, 3).float().chunk(2, dim=1)[0]
    return autoencoder.scaling.apply(mean)


def _tiled(denoise: Denoise, settings: LaterStageSettings, stage: str) -> Denoise:
    if settings.tile is None:
        return denoise
    from pyoco_pipeline.diffusion.tiles import TiledDenoiser

    overlap = settings.overlap
    try:
        return TiledDenoiser(denoise, settings.tile.shape(), (overlap.frames, overlap.height, overlap.width))
    except ValueError as error:
        raise UserError(f"generate.{stage}.tile and overlap don't go together: {error}") from error


def stage_fps(info: StageInfo, before: ClipStore) -> float:
    """Frames per second of what a stage makes: as it was trained, or as the frames before it say."""
    condition = condition_from_config(info.condition)
    times = condition.key_stride if isinstance(condition, FramesCondition) else 1
    return info.fps or times * before.manifest.fps
