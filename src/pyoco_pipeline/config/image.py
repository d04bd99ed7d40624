"""The parameters of `pretrain_image` and `inflate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pyoco_pipeline.training.settings import (
    ParametrisationSettings,
    Positive,
    Seed,
    Settings,
    SigmaSettings,
    TrainSettings,
)


class UNetSettings(Settings):
    """The image UNet of `init: scratch`: diffusers' UNet2DConditionModel."""

    block_out_channels: tuple[Positive, ...]
    layers_per_block: Positive = 1
    attention_levels: tuple[bool, ...]  # per level, whether its blocks have attention
    attention_heads: Positive = 4
    norm_groups: Positive = 8
    patch: Literal[1, 2, 4] = 1  # side of the blocks of pixels that are one position (space-to-depth)

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


class ClipShapeSettings(Settings):
    """Frames and size of clips; None: those of the whole."""

    frames: Positive | None = None
    height: Positive | None = None
    width: Positive | None = None

    def shape(self) -> tuple[int | None, int | None, int | None]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width


class PretrainImageSettings(Settings):
    """The image model: where its weights come from and how they are trained on."""

    init: str  # shipped | scratch | a diffusers folder
    unet: UNetSettings  # used by scratch
    clip: ClipShapeSettings | None = (
        None  # size of the frames, smaller by area than ingested; None: as they are
    )
    # What the network predicts; None: what its folder says (stage.json, scheduler/), and EDM for scratch.
    parametrisation: ParametrisationSettings | None = None
    sigma: SigmaSettings = SigmaSettings()
    sigma_data: float = Field(0.5, gt=0)
    train: TrainSettings


class InflateSettings(Settings):
    """What is put into the image model: temporal modules, and inputs of its own."""

    convolution: bool = True  # after every residual block
    attention: bool = True  # after every attention block
    # Downsampling levels that get it, 0 the finest; None: all.
    attention_levels: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    heads: int = Field(0, ge=0)  # of temporal attention; give this or head_dim or neither
    head_dim: int = Field(0, ge=0)  # 0: what fits, up to half of a block's width and 64
    position: Literal["rotary", "sinusoidal", "relative"] = (
        "rotary"  # relative: learned, for up to max_frames
    )
    max_frames: int = Field(0, ge=0)  # longest clip with relative positions
    concat_channels: int = Field(0, ge=0)  # of clips that are concatenated to the noisy one
    noise_level: bool = False  # embed the level of noise augmentation
    fps: bool = False  # embed the frame rate
    seed: Seed = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heads and self.head_dim:
            raise ValueError(f"heads={self.heads} and head_dim={self.head_dim}: give one of them")
        if (self.position == "relative") != (self.max_frames > 0):
            raise ValueError(
                f"max_frames={self.max_frames} with position={self.position}: relative needs one above 0, others none"
            )
        return self

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `inflate`."""
        return self.model_dump(exclude={"seed"})
