"""The options of inflation, checked once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pyoco_pipeline.errors import UserError


@dataclass(frozen=True)
class InflationOptions:
    """What is put into an image model. Raises UserError for values that don't fit, by their keys.

    convolution: temporal convolution after every residual block.
    attention: temporal attention after every spatial attention block, or after those of `attention_levels` only.
    attention_levels: downsampling levels, 0 the finest; None: all.
    heads, head_dim: of the temporal attention; one of them, which must fit each attention block's width, with an even
        head_dim. Both 0: the largest head_dim that fits and is at most 64 and half of the width.
    position: rotary takes any number of frames; sinusoidal also says which frame is which, of those that it was trained
        on; relative learns a bias per distance, for clips of at most `max_frames`.
    concat_channels: how many channels the clips have that are concatenated to the noisy one, beyond those that the
        image model takes; for a model of blocks of p × p pixels, p² times as many.
    noise_level, fps: whether these numbers are embedded and added to the time embedding.
    """

    convolution: bool = True
    attention: bool = True
    attention_levels: tuple[int, ...] | None = None
    heads: int = 0
    head_dim: int = 0
    position: str = "rotary"
    max_frames: int = 0
    concat_channels: int = 0
    noise_level: bool = False
    fps: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.attention_levels, list):  # as JSON and YAML give it
            object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "attention_levels":
                levels = value if isinstance(value, tuple) else ()
                fits = value is None or (len(levels) > 0 and all(type(n) is int and n >= 0 for n in levels))
            else:
                fits = type(value) is type(field.default) and not (type(value) is int and value < 0)
            if not fits:
                raise UserError(
                    f"inflate.{field.name}={value!r} is not a possible value: see InflationOptions."
                )
        if self.heads and self.head_dim:
            raise UserError(
                f"inflate.heads={self.heads} and inflate.head_dim={self.head_dim}: give one of them."
            )
        if self.position not in ("rotary", "sinusoidal", "relative"):
            raise UserError(f"inflate.position={self.position!r} is none of rotary, sinusoidal, relative.")
        if (self.position == "relative") != (self.max_frames > 0):
            raise UserError(
                f"inflate.max_frames={self.max_frames} with inflate.position={self.position}: relative positions need "
                "a largest number of frames, others have none (0)."
            )
