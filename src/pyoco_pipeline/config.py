"""The parameters of the pipelines as typed settings; one model per `conf/*/parameters_<pipeline>.yml`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pyoco_pipeline.training.settings import (
    NoiseSettings,
    Positive,
    Seed,
    Settings,
    Share,
    SigmaSettings,
    TrainSettings,
)


class MovingDigitsSettings(Settings):
    """The embedded data set."""

    num_train: Positive  # clips
    num_test: Positive
    seed: Seed = 0


class VideoFolderSettings(Settings):
    """A folder of videos with a captions table."""

    root: str  # relative paths are relative to the project
    captions_file: (
        str  # .csv, .jsonl or .parquet inside root; columns path, caption, and if wanted start, end, split
    )
    max_clips_per_row: Positive = 64
    test_share: Share = 0.1  # of the files, where the table has no split column
    max_bad_share: Share = 0.2  # of the rows; more bad ones end the run


class IngestSettings(Settings):
    """Which clips, at which size, and which text encoder embeds their captions."""

    source: Literal["moving_digits", "video_folder"]
    moving_digits: MovingDigitsSettings
    video_folder: VideoFolderSettings
    num_frames: Positive
    height: Positive
    width: Positive
    fps: float = Field(gt=0)
    text_encoder: str = "embedded-minilm"  # or a local transformers folder (T5, CLIP text, BERT)
    max_tokens: Positive = 16


class UNetSettings(Settings):
    """The image UNet of `init: scratch`: diffusers' UNet2DConditionModel."""

    block_out_channels: tuple[Positive, ...]
    layers_per_block: Positive = 1
    attention_levels: tuple[bool, ...]  # per level, whether its blocks have attention
    attention_heads: Positive = 4
    norm_groups: Positive = 8

    @model_validator(mode="after")
    def _one_flag_per_level(self) -> Self:
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} entries, block_out_channels has "
                f"{len(self.block_out_channels)}: give one per level"
            )
        for divisor in ("norm_groups", "attention_heads"):
            if any(width % getattr(self, divisor) for width in self.block_out_channels):
                raise ValueError(
                    f"{divisor}={getattr(self, divisor)} does not divide block_out_channels={self.block_out_channels}"
                )
        return self


class PretrainImageSettings(Settings):
    """The image model: where its weights come from and how they are trained on."""

    init: str  # shipped | scratch | a diffusers folder
    unet: UNetSettings  # used by scratch
    sigma: SigmaSettings = SigmaSettings()
    sigma_data: float = Field(0.5, gt=0)
    train: TrainSettings


class InflateSettings(Settings):
    """Which temporal modules are put into the image model."""

    convolution: bool = True
    attention: bool = True
    head_dim: int = Field(0, ge=0)  # of temporal attention; 0: half of a block's width, at most 64
    seed: Seed = 0

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `inflate`."""
        return self.model_dump(exclude={"seed"})


class StageSettings(Settings):
    """One stage of the cascade."""

    noise: NoiseSettings = NoiseSettings()
    sigma: SigmaSettings = SigmaSettings()
    sigma_data: float = Field(0.5, gt=0)
    train: TrainSettings


class ChurnSettings(Settings):
    """EDM Algorithm 2's churn; 0 is the deterministic solver."""

    s_churn: float = Field(0.0, ge=0)
    s_tmin: float = Field(0.0, ge=0)
    s_tmax: float = Field(float("inf"), gt=0)
    s_noise: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.s_tmin > self.s_tmax:
            raise ValueError(f"s_tmin={self.s_tmin} is above s_tmax={self.s_tmax}")
        return self


class SamplerSettings(Settings):
    """How clips are sampled (EDM, Algorithm 2 and eq. 5)."""

    solver: Literal["euler", "heun"] = "heun"
    steps: Positive = 18
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, gt=0)
    churn: ChurnSettings = ChurnSettings()
    guidance_scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0  # 1: none
    guidance_interval: tuple[float, float] = (0.0, float("inf"))  # sigma

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} is not below sigma_max={self.sigma_max}")
        low, high = self.guidance_interval
        if not 0 <= low < high:
            raise ValueError(
                f"guidance_interval={self.guidance_interval} is not (low, high) with 0 <= low < high"
            )
        return self


class GenerateSettings(Settings):
    """What is generated."""

    prompts: Annotated[tuple[str, ...], Field(min_length=1)] | None = (
        None  # captions; None: captions of test clips
    )
    num_clips: Positive  # prompts are repeated or cut to this many
    sampler: SamplerSettings = SamplerSettings()
    noise: NoiseSettings | None = None  # None: the prior that the model was trained with
    allow_other_prior: bool = False  # to sample with another prior than trained with
    batch_size: Positive = 16
    video_format: Literal["mp4", "webp"] = "mp4"
    num_videos: Positive = 12  # how many are written for people
    seed: Seed = 0


class ReportSettings(Settings):
    """The report."""

    title: str = "pyoco_pipeline"
