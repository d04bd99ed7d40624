"""Settings of the noise analysis; reading them costs no import of torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pyoco_pipeline.training.settings import Positive, Seed, Settings

MIN_CLIPS = 8  # fewer say nothing about how much clips differ, which all intervals come from


class AnalyseNoiseSettings(Settings):
    """Which clips are inverted, how exactly, and how the results are judged."""

    split: Literal["train", "test"] = "train"
    num_clips: int = Field(48, ge=MIN_CLIPS)  # evenly spaced over the split
    text: Literal["caption", "none"] = "caption"  # what the image model is told of a frame
    steps: int = Field(32, ge=2)  # of Heun's method, 2 evaluations each
    # None: the ends of what the model was trained on, for EDM 0.002 and 80.
    sigma_min: float | None = Field(None, gt=0)
    sigma_max: float | None = Field(None, gt=0)
    rho: float = Field(7.0, gt=0)
    batch_size: Positive = 128  # frames at once
    confidence: float = Field(0.95, gt=0, lt=1)  # of the intervals
    resamples: int = Field(1000, ge=100)  # of the clips, for the bootstrap
    plotted_clips: int = Field(12, ge=2)  # in the t-SNE and PCA plots
    seed: Seed = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} is not below sigma_max={self.sigma_max}")
        return self
