"""What has to be true of the stages of a cascade before any of them samples; each check is one sentence to the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyoco_pipeline.cascade.conditions import FramesCondition, LowResolutionCondition, condition_from_config
from pyoco_pipeline.cascade.tiling import check_tile
from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.latents import autoencoder_sha256, sample_channels
from pyoco_pipeline.data.views import view_of
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import StageInfo
from pyoco_pipeline.models.io import read_json
from pyoco_pipeline.models.parametrisation import read_parametrisation
from pyoco_pipeline.sampling import check_thresholding, noise_levels

_BASE = "base"
_FPS_TOLERANCE = 1e-6  # relative


def check_alike(
    name: str, info: StageInfo, first: StageInfo, text_encoder_sha256: str, store: ClipStore
) -> None:
    """Stages read the same text embeddings and are of the same space, which is that of `store`."""
    if info.text_encoder_sha256 != text_encoder_sha256:
        raise UserError(
            f"stage {name} was trained with another text encoder than the text embeddings were made with: run "
            "`finetune_video` anew, or set ingest.text_encoder back."
        )
    if info.autoencoder_sha256 != first.autoencoder_sha256:
        raise UserError(
            f"stage {name} samples {_space(info.autoencoder_sha256)} and stage {first.stage} "
            f"{_space(first.autoencoder_sha256)}: the stages of a cascade share one space. Train them on the same "
            "ingest."
        )
    if info.autoencoder_sha256 != autoencoder_sha256(store):
        raise UserError(
            f"stage {name} samples {_space(info.autoencoder_sha256)} and ingest made "
            f"{_space(autoencoder_sha256(store))}: run `finetune_video` anew, or set ingest.autoencoder back."
        )


def check_sampler(
    name: str, folder: Path, info: StageInfo, settings: GenerateSettings, store: ClipStore
) -> None:
    """The stage knows the noise levels that it is asked for, and sees whole clips, or the parts they are cut into."""
    is_base = name == _BASE
    section = "generate" if is_base else f"generate.{name}"
    sampler = settings.sampler if is_base else settings.later(name).sampler
    check_thresholding(sampler, info.autoencoder_sha256 is not None, section)
    video = settings.video
    if not (is_base and settings.experts):  # each has its own range, which is checked when they are opened
        denoise = read_parametrisation(folder).denoiser(_no_network, info.sigma_data)
        noise_levels(denoise, sampler, video.sigma if video and video.stage == name else None, section)
    if not is_base:
        check_tile(settings.later(name), name, folder, sample_channels(store))
    longest = read_json(folder / "temporal.json").get("max_frames", 0)
    tile = None if is_base else settings.later(name).tile
    seen = min(info.shape[0], tile.frames if tile and tile.frames else info.shape[0])
    if longest and seen > longest and not info.frame_by_frame:
        raise UserError(
            f"stage {name} makes clips of {info.shape[0]} frames, and its relative positions go up to {longest}: "
            f"{'train it on fewer' if is_base else f'set {section}.tile.frames to as many'}, or inflate with "
            "position=rotary and train it anew."
        )


def check_base(info: StageInfo, settings: GenerateSettings) -> None:
    """The first stage needs nothing of another, and knows clips of which the frames are given that it will be given."""
    condition = condition_from_config(info.condition)
    if isinstance(condition, LowResolutionCondition):
        raise UserError(
            "stage base was trained to enlarge clips and has none to begin with: train it without "
            "finetune_video.base.condition, or give generate.video.stage the stage that clips go into."
        )
    if condition is None:
        return
    assert isinstance(condition, FramesCondition)
    kept = settings.video.keep_frames if settings.video else None
    mask = torch.zeros(info.shape[0], dtype=torch.bool)
    mask[list(kept or ())] = True
    if not condition.covers(mask):
        given = f"just frames {', '.join(map(str, kept))}" if kept else "nothing"
        fitting = ["inpainting", "prediction"] if kept else ["nothing"]
        raise UserError(
            f"stage base was never given {given} in training: give finetune_video.base.condition.masks."
            f"{' or .'.join(fitting)} a share and train it anew."
        )


def check_clips(begin: str, infos: Mapping[str, StageInfo], settings: GenerateSettings) -> None:
    """Frames of the user's clips that are kept are there."""
    kept, frames = (settings.video.keep_frames if settings.video else None), infos[begin].shape[0]
    if kept and max(kept) >= frames:
        raise UserError(
            f"generate.video.keep_frames has {max(kept)}, and stage {begin} makes frames 0 to {frames - 1}: lower it."
        )


def check_fits(before: str, low: StageInfo, name: str, info: StageInfo, settings: GenerateSettings) -> None:
    """A stage takes what the one before it makes: frames, size, rate, and noise augmentation."""
    condition = condition_from_config(info.condition)
    if info.sigma_range != (0.0, None):
        raise UserError(
            f"stage {name} is an expert for a part of the noise levels, and only base can be made of experts: train it "
            f"on all of them (finetune_video.{name}.sigma)."
        )
    if isinstance(condition, FramesCondition):
        if not condition.masks.get("interpolation"):
            raise UserError(
                f"stage {name} was trained without masks of interpolation and can't be given the frames of {before}: "
                f"give finetune_video.{name}.condition.masks.interpolation a share."
            )
        stride = condition.key_stride
        expected = ((low.shape[0] - 1) * stride + 1, *low.shape[1:])
        times = f"with {stride - 1} new frames in each gap of those of {before}"
    elif isinstance(condition, LowResolutionCondition):
        stride, scale = 1, condition.scale
        expected = (low.shape[0], scale * low.shape[1], scale * low.shape[2])
        times = f"{scale} times larger than those of {before}"
    else:
        raise UserError(
            f"stage {name} takes nothing of the stage before it, {before}: set finetune_video.{name}.condition and "
            f"train it anew, or end the cascade with generate.last_stage={before}."
        )
    if info.shape != expected:
        raise UserError(
            f"stage {name} was trained on clips of (frames, height, width) {info.shape}, but clips {times}, "
            f"{low.shape}, are {expected}: train one of the two stages anew so that they fit."
        )
    if low.fps and info.fps and abs(info.fps - stride * low.fps) > _FPS_TOLERANCE * info.fps:
        raise UserError(
            f"stage {name} was trained at {info.fps:g} frames per second, but {stride} times those of {before} are "
            f"{stride * low.fps:g}: train one of the two stages anew so that they fit."
        )
    level = settings.later(name).noise_level
    if level > condition.max_noise_level:
        raise UserError(
            f"generate.{name}.noise_level={level:g} is above the {condition.max_noise_level:g} that the stage was "
            f"trained with (finetune_video.{name}.condition.max_noise_level): lower it."
        )


def check_made_of(base: StageInfo, store: ClipStore) -> None:
    """The base stage samples clips that those in `store` have, unless it was trained on others."""
    if base.clips is not None:
        return
    try:
        view_of(store, base.shape)
    except UserError as error:
        raise UserError(
            f"stage base was trained on clips of (frames, height, width) {base.shape}, the ingested ones are "
            f"{store.shape}: run `finetune_video` anew, or set ingest back."
        ) from error


def _no_network(*_: Any, **__: Any) -> Any:
    raise AssertionError("noise levels are known without the network")


def _space(sha256: str | None) -> str:
    return f"latents of the autoencoder {sha256[:12]}…" if sha256 else "pixels"
