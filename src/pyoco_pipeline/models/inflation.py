"""Inflation: an image UNet of diffusers becomes a video network that equals it frame by frame when new.

Shapes: x (B, C, T, H, W); inside, frames lie on the batch axis, (B*T, C, H, W). The image model keeps its own
parameter names and configuration; the temporal modules stand beside it and act on the outputs of its layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.temporal import TemporalAttention, TemporalConv

ImageUNet: TypeAlias = UNet2DModel | UNet2DConditionModel


@dataclass(frozen=True)
class InflationOptions:
    """Which temporal modules are put in.

    convolution: after every residual block; attention: after every spatial attention block; head_dim: of the
    temporal attention, in channels (even, and a divisor of each attention block's width; 0 means half of the width,
    at most 64).
    """

    convolution: bool = True
    attention: bool = True
    head_dim: int = 0


class FrameByFrame(nn.Module):
    """An image UNet that takes clips: every frame is an image of its own."""

    def __init__(self, image_model: ImageUNet) -> None:
        super().__init__()
        self.image_model = image_model

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.image_model.dtype

    def forward(self, x: Tensor, timestep: Tensor, **cond: Any) -> UNet2DOutput:
        """x: (B, C, T, H, W); timestep: (B,); cond: the image model's keyword arguments, batch first.

        Returns an object whose `.sample` is (B, C, T, H, W).
        """
        batch, _, frames = x.shape[:3]

        def per_frame(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch:
                return value.repeat_interleave(frames, dim=0)
            if isinstance(value, dict):
                return {key: per_frame(item) for key, item in value.items()}
            return value

        images = x.transpose(1, 2).flatten(0, 1)
        out = self.image_model(images, per_frame(timestep), **per_frame(cond)).sample
        return UNet2DOutput(sample=out.unflatten(0, (batch, frames)).transpose(1, 2))


class VideoUNet(FrameByFrame):
    """An image UNet with temporal modules after its residual and attention blocks.

    A clip of one frame bypasses them: it gets exactly the image model.
    """

    def __init__(self, image_model: ImageUNet, options: InflationOptions = InflationOptions()) -> None:
        super().__init__(image_model)
        self.options = options
        self.num_frames = 1
        self.temporal = nn.ModuleDict()
        for path, module in image_model.named_modules():
            temporal = self._temporal_module(path, module)
            if temporal is not None:
                key = path.replace(".", "/")
                self.temporal[key] = temporal
                # A bound method, not a closure, so that a deep copy's hooks are its own.
                module.register_forward_hook(partial(self._after, key))

    def _temporal_module(self, path: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, ResnetBlock2D) and self.options.convolution:
            return TemporalConv(module.out_channels, module.norm2.num_groups)
        if not self.options.attention:
            return None
        if isinstance(module, Transformer2DModel):
            return TemporalAttention(module.in_channels, self._head_dim(path, module.in_channels))
        # UNet2DModel has bare attention blocks; those inside a transformer belong to its block.
        if isinstance(module, Attention) and "transformer_blocks" not in path:
            channels = module.to_q.in_features
            return TemporalAttention(channels, self._head_dim(path, channels))
        return None

    def _head_dim(self, path: str, channels: int) -> int:
        head_dim = self.options.head_dim or min(64, channels // 2)
        if channels % head_dim or head_dim % 2:
            raise UserError(
                f"inflate.head_dim={head_dim} does not fit {path} with {channels} channels: "
                "give an even divisor of every attention block's width, or 0."
            )
        return head_dim

    def _after(self, key: str, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if self.num_frames == 1:
            return output
        module = self.temporal[key]
        if isinstance(output, Tensor):
            return module(output, self.num_frames)
        if isinstance(output, tuple):
            return (module(output[0], self.num_frames), *output[1:])
        return replace(output, sample=module(output.sample, self.num_frames))

    def forward(self, x: Tensor, timestep: Tensor, **cond: Any) -> UNet2DOutput:
        """As `FrameByFrame.forward`; the frames of a clip see each other."""
        self.num_frames = x.shape[2]
        return super().forward(x, timestep, **cond)


def inflate(image_model: ImageUNet, **options: Any) -> VideoUNet:
    """Put temporal modules into an image UNet (Make-A-Video; PYoCo, sec. 4); see `InflationOptions`.

    The result equals the image model frame by frame. Raises UserError for a model of another class.
    """
    if not isinstance(image_model, UNet2DModel | UNet2DConditionModel):
        raise UserError(
            f"inflation takes diffusers' UNet2DModel or UNet2DConditionModel, not {type(image_model).__name__}"
        )
    return VideoUNet(image_model, InflationOptions(**options))


def options_dict(model: VideoUNet) -> dict[str, Any]:
    """The options a model was inflated with, as JSON-able values."""
    return asdict(model.options)
