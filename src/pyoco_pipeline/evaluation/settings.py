"""Settings of the evaluation and of the digits classifier; reading them costs no import of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pyoco_pipeline.training.settings import Seed, Settings

MetricName = Literal["fvd_digits3d", "is_digits3d", "caption_accuracy", "fid_lite0", "temporal_consistency"]
MIN_CLIPS = 2
MIN_FRAMES = 4  # that Digits3D reads


class EvaluateSettings(Settings):
    """What is measured, and on how many clips."""

    metrics: tuple[MetricName, ...] | Literal["auto"] = "auto"  # auto: all that apply to the clips
    max_reference_clips: int = Field(default=512, ge=MIN_CLIPS)
    fid_frames: int = Field(default=2, ge=1)  # frames of a clip that fid_lite0 sees, evenly spaced
    batch_size: int = Field(default=16, ge=1)  # clips at once
    seed: Seed = 0


class Digits3DTraining(Settings):
    """How Digits3D is trained."""

    steps: int = Field(default=6000, ge=1)
    minutes: float | None = Field(default=None, gt=0)  # stop then; the schedule follows the clock
    batch_size: int = Field(default=256, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    digit_weight: float = Field(default=3.0, gt=0)  # at 1 the digit is not learnt until all else is
    weight_decay: float = Field(default=0.05, ge=0)
    seed: Seed = 0
    sizes: tuple[int, ...] = (16, 24, 32, 32, 48, 64)  # rendered side, drawn evenly per step
    frames: tuple[int, ...] = (8, 16)
    planned_clips: int = Field(default=20000, ge=1)
    test_clips: int = Field(default=1024, ge=1)
    log_every: int = Field(default=200, ge=1)
