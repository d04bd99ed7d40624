"""The parameters of a stage of `finetune_video`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pyoco_pipeline.config.image import ClipShapeSettings, UNetSettings
from pyoco_pipeline.training.settings import (
    NoiseSettings,
    Positive,
    Settings,
    Share,
    SigmaSettings,
    TrainSettings,
)


class LoraSettings(Settings):
    """Low-rank additions to the image model's attention (LoRA): W + alpha/rank * B A."""

    rank: Positive = 8
    alpha: float = Field(8.0, gt=0, allow_inf_nan=False)


class FramesConditionSettings(Settings):
    """A stage that is given some frames: temporal interpolation, prediction, in-painting in time."""

    kind: Literal["frames"]
    key_stride: int = Field(ge=2)  # of interpolation: the given frames are key_stride apart
    # Shares of training clips, in any unit: which frames are given.
    masks: dict[
        Literal["interpolation", "prediction", "inpainting", "nothing", "everything"],
        Annotated[float, Field(ge=0, allow_inf_nan=False)],
    ] = Field({"interpolation": 1.0})
    max_noise_level: Share = 0.3  # of the given frames in training: 0 none, 1 nothing but noise
    noise: NoiseSettings = NoiseSettings(kind="iid")  # which that is

    @model_validator(mode="after")
    def _some_mask(self) -> Self:
        if not sum(self.masks.values()) > 0:
            raise ValueError("masks are all 0: give at least one of them a share")
        return self


class LowResolutionConditionSettings(Settings):
    """A stage that is given the clip `scale` times smaller: spatial super-resolution."""

    kind: Literal["low_resolution"]
    scale: int = Field(ge=2)
    max_noise_level: Share = 0.5  # of the small clip in training: 0 none, 1 nothing but noise
    noise: NoiseSettings = NoiseSettings(kind="iid")  # which that is


class StageSettings(Settings):
    """One stage of the cascade."""

    # What it starts from: None, the inflated model; scratch, with `unet`; or a folder: of a trained stage (for an
    # expert, the shared model), or of an image model in diffusers' format, which is inflated.
    init: str | None = None
    unet: UNetSettings | None = None  # of init: scratch
    clips: str | None = None  # another folder or URL of ingested clips; None: those of ingest
    clip: ClipShapeSettings | None = None  # of the ingested clips, what the stage makes; None: as they are
    crop: ClipShapeSettings | None = None  # of that, what a training step sees; None: the whole
    # What it is given besides text; None: nothing.
    condition: (
        Annotated[FramesConditionSettings | LowResolutionConditionSettings, Field(discriminator="kind")]
        | None
    ) = None
    trainable: Literal["all", "temporal", "temporal+cross_attention", "lora"] = "all"
    lora: LoraSettings = LoraSettings()  # of trainable: lora

    noise: NoiseSettings = NoiseSettings()
    sigma: SigmaSettings = SigmaSettings()
    sigma_data: float = Field(0.5, gt=0)
    train: TrainSettings

    @model_validator(mode="after")
    def _unet_of_scratch(self) -> Self:
        if (self.init == "scratch") != (self.unet is not None):
            raise ValueError(
                f"init={self.init} with{'' if self.unet else 'out'} unet: scratch needs it, others have one"
            )
        return self
