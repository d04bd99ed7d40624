"""The parameters of `generate`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pyoco_pipeline.cascade.stages import StageName
from pyoco_pipeline.config.image import ClipShapeSettings
from pyoco_pipeline.training.settings import (
    NoiseSettings,
    Positive,
    Seed,
    Settings,
    Share,
)


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
    """How clips are sampled: solver, schedule (EDM, eq. 5) and guidance."""

    solver: Literal["euler", "heun", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "deis", "euler_ancestral"] = (
        "heun"
    )
    steps: Positive = 18
    # None: the ends of what the model was trained on, for EDM 0.002 and 80.
    sigma_min: float | None = Field(None, gt=0)
    sigma_max: float | None = Field(None, gt=0)
    rho: float = Field(7.0, gt=0)
    churn: ChurnSettings = ChurnSettings()  # of euler and heun
    # Of dpmpp_2m_sde and euler_ancestral, the share of the SDE's noise; None: 1.
    eta: float | None = Field(None, ge=0, le=1)
    guidance_scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0  # 1: none
    guidance_interval: tuple[float, float] = (0.0, float("inf"))  # sigma
    dynamic_threshold: float | None = Field(None, gt=0, le=1)  # percentile, of pixel models; None: none

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} is not below sigma_max={self.sigma_max}")
        low, high = self.guidance_interval
        if not 0 <= low < high:
            raise ValueError(
                f"guidance_interval={self.guidance_interval} is not (low, high) with 0 <= low < high"
            )
        return self

    @model_validator(mode="after")
    def _options_of_the_solver(self) -> Self:
        if self.churn.s_churn > 0 and self.solver not in ("euler", "heun"):
            raise ValueError(
                f"churn.s_churn={self.churn.s_churn} with solver={self.solver}, which has no churn: set it to 0, "
                "or take euler or heun"
            )
        if self.eta is not None and self.solver not in ("dpmpp_2m_sde", "euler_ancestral"):
            raise ValueError(
                f"eta={self.eta} with solver={self.solver}, which injects no such noise: leave eta out, or take "
                "dpmpp_2m_sde or euler_ancestral"
            )
        return self


class ExpertSettings(Settings):
    """A model for a range of noise levels (eDiff-I)."""

    # Folder of a trained stage, or of the image model; None: the stage that finetune_video trained.
    model: str | None = None
    sigma_min: float = Field(0.0, ge=0)
    sigma_max: float = Field(float("inf"), gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} is not below sigma_max={self.sigma_max}")
        return self


class OverlapSettings(Settings):
    """How much neighbouring tiles share."""

    frames: int = Field(0, ge=0)
    height: int = Field(0, ge=0)
    width: int = Field(0, ge=0)


class LaterStageSettings(Settings):
    """How a stage behind the base samples."""

    sampler: SamplerSettings = SamplerSettings(solver="dpmpp_2m", steps=10)
    # Of the noise augmentation of what it is given: 0 none; up to the stage's condition.max_noise_level.
    noise_level: Share = 0.1
    noise: NoiseSettings | None = None  # None: the prior that the stage was trained with
    allow_other_prior: bool = False  # to sample with another prior than trained with
    batch_size: Positive = 4
    # Parts of a clip that the network sees at a time; None: all of it. Noise is drawn for the whole clip either way.
    tile: ClipShapeSettings | None = None
    overlap: OverlapSettings = OverlapSettings()  # of neighbouring tiles
    # In one call of the network: more fill a GPU that small tiles don't, and take its memory.
    tiles_at_once: Positive = 1


class VideoSettings(Settings):
    """Clips of the user that sampling starts from, in place of noise alone."""

    clips: str  # a folder of videos, or of clips as this project writes them
    # The stage that they go into: base to edit them, a later one to be continued as what the stage before it made.
    stage: StageName = "base"
    sigma: float | None = Field(
        None, gt=0
    )  # of the noise that they are put under: the lower, the more is kept
    keep_frames: Annotated[tuple[int, ...], Field(min_length=1)] | None = (
        None  # these stay, the others are made anew
    )

    @model_validator(mode="after")
    def _one_use(self) -> Self:
        if self.stage == "base" and (self.sigma is None) == (self.keep_frames is None):
            raise ValueError(
                "stage=base needs sigma, to edit the clips, or keep_frames, to make the others anew"
            )
        if self.stage != "base" and self.keep_frames is not None:
            raise ValueError(f"keep_frames is for stage=base, not {self.stage}")
        if self.keep_frames is not None and min(self.keep_frames) < 0:
            raise ValueError(f"keep_frames={self.keep_frames}: frames are counted from 0")
        return self


class GenerateSettings(Settings):
    """What is generated."""

    prompts: Annotated[tuple[str, ...], Field(min_length=1)] | None = (
        None  # captions; None: captions of test clips
    )
    num_clips: Positive  # prompts are repeated or cut to this many
    sampler: SamplerSettings = SamplerSettings()
    experts: tuple[ExpertSettings, ...] = ()  # their ranges lie end to end; (): one model for all
    keep_experts: Positive = 1  # how many are in memory at a time
    noise: NoiseSettings | None = None  # None: the prior that the model was trained with
    allow_other_prior: bool = False  # to sample with another prior than trained with
    batch_size: Positive = 16
    num_processes: Positive | Literal["auto"] = (
        "auto"  # that share the clips; auto: one per GPU, or one on the CPU
    )
    precision: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 on a GPU, float32 on a CPU
    compile: bool = False  # worth it for more than some hundred clips
    cuda_graphs: bool = (
        False  # one launch for each call of the network: several times faster for small ones, on a GPU
    )
    tune_convolutions: bool = (
        False  # cuDNN times its algorithms first: faster; last bits may differ between runs
    )
    video_format: Literal["mp4", "webp"] = "mp4"
    num_videos: Positive = 12  # how many are written for people
    seed: Seed = 0
    num_frames: Positive | None = (
        None  # of the base stage's clips, more than it was trained on; None: as many
    )
    overlap: int | None = Field(None, ge=0)  # frames that its windows share then; None: half of a window
    video: VideoSettings | None = None  # None: from noise
    last_stage: StageName | None = None  # of the cascade; None: all
    interpolation: LaterStageSettings = LaterStageSettings()
    sr256: LaterStageSettings = LaterStageSettings()
    sr1024: LaterStageSettings = LaterStageSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.overlap is not None and self.num_frames is None:
            raise ValueError(
                f"overlap={self.overlap} is of windows, which only num_frames makes: give both or neither"
            )
        if self.video is not None and self.num_frames is not None:
            raise ValueError(
                "num_frames does not go with video, whose clips have frames of their own: leave one out"
            )
        return self

    def later(self, stage: str) -> LaterStageSettings:
        """The settings of a stage behind the base."""
        return getattr(self, stage)
