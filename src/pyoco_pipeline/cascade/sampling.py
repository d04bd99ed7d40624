"""Sampling with a stage that is given clips of the stage before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pyoco_pipeline.cascade.conditions import (
    Condition,
    FramesCondition,
    LowResolutionCondition,
    condition_from_config,
)
from pyoco_pipeline.cascade.plan import PlannedStage
from pyoco_pipeline.cascade.stages import STAGES
from pyoco_pipeline.cascade.tiling import tiled
from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.data.clips import CaptionedClip
from pyoco_pipeline.data.embeddings import Conditioning, TextEmbeddings
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.diffusion import Denoise
from pyoco_pipeline.generation import (
    CaptionEmbedder,
    as_sampled,
    load_denoiser,
    sampling_mode,
    sampling_prior,
)
from pyoco_pipeline.models import StageInfo, load_stage_info, low_resolution_channels
from pyoco_pipeline.models.autoencoder import Autoencoder
from pyoco_pipeline.models.io import read_json
from pyoco_pipeline.noise import NoisePrior, prior_from_config
from pyoco_pipeline.sampling import Start, Windows, sample_batch

_SEEDS_OF_STAGES = 10  # and the place of the stage; base has the clip's own


class Clips(Protocol):
    """Clips that can be streamed, such as a `ClipStore`."""

    def clips(self) -> Iterator[CaptionedClip]:
        """The clips in their order."""


def continue_clips(
    plan: PlannedStage,
    model: Path,
    before: Clips,
    settings: GenerateSettings,
    embeddings: TextEmbeddings,
    autoencoder: Autoencoder | None = None,
    places: range | None = None,
) -> Iterator[CaptionedClip]:
    """The clips of `before` as the stage in folder `model` makes them, with their captions; batch by batch.

    places: of a share of the clips; None: of all.

    Memory does not depend on their number, nor that on the device on how long they are. Noise, of the sample and of the
    augmentation, is a function of (seed, clip, stage). Raises UserError for a prior other than the stage's, unless that
    is asked for.
    """
    stage = _Stage.open(plan, model, settings, autoencoder)
    embed, null, place = (
        CaptionEmbedder(embeddings),
        embeddings.null(stage.device),
        0 if places is None else places.start,
    )
    clips = islice(before.clips(), place, None if places is None else places.stop)
    size = settings.later(plan.name).batch_size
    while batch := list(islice(clips, size)):
        cond = {k: v.to(stage.device) for k, v in embed([item.caption for item in batch]).items()}
        stored = torch.from_numpy(np.stack([item.clip.video for item in batch]))
        with sampling_mode(settings, stage.device):
            videos = stage.sample(stored, cond, null, place).cpu()
        for item, video in zip(batch, videos, strict=True):
            # Rate, scores and hash are of the clip before.
            yield replace(item, clip=replace(item.clip, video=video.numpy(), fps=None, scores={}, phash=None))
        place += len(batch)


@dataclass(frozen=True)
class _Stage:
    plan: PlannedStage
    info: StageInfo
    condition: Condition
    prior: NoisePrior
    denoise: Denoise
    settings: GenerateSettings
    autoencoder: Autoencoder | None
    device: torch.device
    tells_fps: bool

    @classmethod
    def open(
        cls, plan: PlannedStage, model: Path, settings: GenerateSettings, autoencoder: Autoencoder | None
    ) -> _Stage:
        info, own = load_stage_info(model), settings.later(plan.name)
        condition = condition_from_config(info.condition)
        assert condition is not None  # `plan_cascade` saw to it
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if autoencoder is not None:
            autoencoder.to(device)
        return cls(
            plan=plan,
            info=info,
            condition=condition,
            prior=sampling_prior(prior_from_config(info.noise), own, f"generate.{plan.name}"),
            denoise=tiled(load_denoiser(model, device, settings), own, plan.name),
            settings=settings,
            autoencoder=autoencoder,
            device=device,
            tells_fps=bool(read_json(model / "temporal.json").get("fps")),
        )

    def sample(self, stored: Tensor, cond: Conditioning, null: Conditioning, place: int) -> Tensor:
        """Clips (B, T, H, W, 3) uint8 from those of the stage before, (B, t, h, w, 3); the first of them at `place`."""
        plan, own = self.plan, self.settings.later(self.plan.name)
        draws = [
            (self.settings.seed, place + i, _SEEDS_OF_STAGES + STAGES.index(plan.name))
            for i in range(len(stored))
        ]
        if self.tells_fps:
            assert self.info.fps is not None  # of every stage that is given clips
            cond = cond | {"fps": torch.full((len(stored),), self.info.fps, device=self.device)}

        def of_window(first: int) -> dict[str, Tensor]:
            seeds = [mix_seed(*draw, 1, first) for draw in draws]
            return given(self.condition, self._seen(stored, first), self.info.shape, own.noise_level, seeds)

        windows = Windows(plan.frames, plan.overlap, of_window) if plan.frames > plan.window else None
        return sample_batch(
            self.denoise,
            self.prior,
            own.sampler,
            cond if windows else cond | of_window(0),
            null,
            self.info.shape,
            [mix_seed(*draw, 0) for draw in draws],
            self.autoencoder,
            section=f"generate.{plan.name}",
            start=self._start(stored),
            windows=windows,
        )

    def _seen(self, stored: Tensor, first: int) -> Tensor:
        """What the window that begins at frame `first` is given of the stage before, (B, C, t, h, w) on the device."""
        frames = self.plan.window
        if isinstance(self.condition, FramesCondition):
            stride = self.condition.key_stride
            first, frames = first // stride, (frames - 1) // stride + 1
        return as_sampled(stored[:, first : first + frames].to(self.device), self.autoencoder)

    def _start(self, stored: Tensor) -> Start | None:
        video = self.settings.video
        if video is None or video.stage != self.plan.name or video.sigma is None:
            return None
        small = self._seen(stored, 0)
        if isinstance(self.condition, FramesCondition):
            clip = small.repeat_interleave(self.condition.key_stride, dim=2)[:, :, : self.info.shape[0]]
        else:
            clip = low_resolution_channels(small, self.info.shape[1:])
        return Start(clip, sigma=video.sigma)


def given(
    condition: Condition, small: Tensor, shape: tuple[int, int, int], level: float, seeds: list[int]
) -> dict[str, Tensor]:
    """The network's keyword arguments for clips of the stage before, small (B, C, t, h, w), in a stage of `shape`.

    level: of the noise augmentation; seeds: of its noise, one per clip. Of a `FramesCondition`, small is the key
    frames.
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
    is_given = condition.key_frames(shape[0]).to(small.device)
    clip = small.new_zeros((batch, channels, *shape))
    clip[:, :, is_given] = small
    return condition.given(clip, is_given.expand(batch, -1), levels, noise)


def taken_shape(model: Path, autoencoder: Autoencoder | None = None) -> tuple[int, int, int]:
    """(frames, height, width), in pixels, of the clips that the stage in `model` takes."""
    info = load_stage_info(model)
    condition, (frames, height, width) = condition_from_config(info.condition), info.shape
    enlarged = autoencoder.downsampling if autoencoder else 1
    if isinstance(condition, FramesCondition):
        return (frames - 1) // condition.key_stride + 1, enlarged * height, enlarged * width
    assert isinstance(condition, LowResolutionCondition)
    return frames, enlarged * height // condition.scale, enlarged * width // condition.scale


def taken_fps(model: Path) -> float | None:
    """Frames per second of the clips that the stage in `model` takes; None where it does not say."""
    info = load_stage_info(model)
    condition = condition_from_config(info.condition)
    if info.fps is None or not isinstance(condition, FramesCondition):
        return info.fps
    return info.fps / condition.key_stride
