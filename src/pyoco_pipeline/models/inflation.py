"""Inflation: an image UNet of diffusers becomes a video network that equals it frame by frame when new.

The image model keeps its own parameter names and configuration; the temporal modules stand beside it and act on the
outputs of its layers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.conditioning import SCALARS, ScalarEmbedding, widen_conv_in
from pyoco_pipeline.models.frame_by_frame import (
    RESIDUAL_BLOCKS,
    FrameByFrame,
    ImageUNet,
    per_frame,
    spatial_blocks,
)
from pyoco_pipeline.models.inflation_options import InflationOptions
from pyoco_pipeline.models.relative_attention import RelativeTemporalAttention
from pyoco_pipeline.models.temporal import TemporalAttention, TemporalConv

_BLOCKS = {  # of diffusers; an autoencoder's blocks, for one, are others
    "down": {
        "DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D",
        "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D", "KDownBlock2D", "KCrossAttnDownBlock2D",
    },
    "up": {
        "UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D",
        "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D", "KUpBlock2D", "KCrossAttnUpBlock2D",
    },
}  # fmt: skip


class VideoUNet(FrameByFrame):
    """An image UNet with temporal modules after its residual and attention blocks.

    A clip of one frame bypasses them: it gets exactly the image model. image_model: already as wide as
    `options.concat_channels` needs it (`inflate` sees to that); the hooks put on it make it this network's own.
    """

    def __init__(self, image_model: ImageUNet, options: InflationOptions) -> None:
        super().__init__(image_model)
        _check_supported(image_model)
        self.options = options
        self.num_frames = 1
        self.temporal = nn.ModuleDict()
        for path, block in spatial_blocks(image_model):
            temporal = self._temporal_module(path, block)
            if temporal is not None:
                key = path.replace(".", "/")
                self.temporal[key] = temporal
                # A bound method, not a closure, so that a deep copy's hooks are its own.
                block.register_forward_hook(partial(self._after, key))
        self._check_levels()
        width = image_model.time_embedding.linear_2.out_features
        names = [name for name in SCALARS if getattr(options, name)]
        self.conditioning = nn.ModuleDict({name: ScalarEmbedding(width) for name in names})
        self.embedded: Tensor | None = None  # (B*T, width), of the call under way
        if names:
            image_model.time_embedding.register_forward_hook(self._add_embedded)

    def _temporal_module(self, path: str, block: nn.Module) -> nn.Module | None:
        options = self.options
        if isinstance(block, RESIDUAL_BLOCKS):
            channels = block.conv2.out_channels  # not always block.out_channels
            groups = math.gcd(channels, block.norm2.num_groups)
            return TemporalConv(channels, groups) if options.convolution else None
        levels = options.attention_levels
        if not options.attention or (levels is not None and _level(self.image_model, path) not in levels):
            return None
        channels = _width(block)
        head_dim = _head_dim(options, path, channels)
        if options.position == "relative":
            return RelativeTemporalAttention(channels, head_dim, options.max_frames)
        return TemporalAttention(channels, head_dim, absolute=options.position == "sinusoidal")

    def layers(self) -> list[nn.Module]:
        """As `FrameByFrame.layers`, and the temporal modules."""
        return [*super().layers(), *self.temporal.values()]

    def _check_levels(self) -> None:
        wanted = self.options.attention_levels
        blocks = [(p, b) for p, b in spatial_blocks(self.image_model) if not isinstance(b, RESIDUAL_BLOCKS)]
        found = {_level(self.image_model, path) for path, _ in blocks}
        missing = sorted(set(wanted or ()) - found)
        if missing and self.options.attention:
            raise UserError(
                f"inflate.attention_levels has {missing[0]}, where the image model has no attention: it has some at "
                f"levels {sorted(found)}."
            )

    def _after(self, key: str, _block: nn.Module, _inputs: Any, output: Any) -> Any:
        if self.num_frames == 1:
            return output
        if isinstance(output, Tensor):
            return self._over_time(key, output)
        if isinstance(output, tuple):
            return (self._over_time(key, output[0]), *output[1:])
        return replace(output, sample=self._over_time(key, output.sample))

    def _over_time(self, key: str, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not x.requires_grad and x.device.type == "cpu":
            # The first module behind frozen ones. Torch 2.13's group norm for channels-last data on a CPU writes into
            # its input's gradient whether there is one or not, and crashes.
            x = x.detach().requires_grad_()
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(self.temporal[key], x, self.num_frames, use_reentrant=False)
        return self.temporal[key](x, self.num_frames)

    def _add_embedded(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output if self.embedded is None else output + self.embedded.to(output.dtype)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        *,
        concat: Tensor | None = None,
        noise_level: Tensor | None = None,
        fps: Tensor | None = None,
        **cond: Any,
    ) -> Any:
        """As `FrameByFrame.forward`; the frames of a clip see each other.

        concat: (B, C', T, H, W), put behind x's channels; noise_level: (B,) in [0, 1]; fps: (B,), not used for clips of
        one frame. Raises UserError where one is missing or too many, and for clips longer than `max_frames`.
        """
        batch, _, frames = x.shape[:3]
        if self.options.max_frames and frames > self.options.max_frames:
            raise UserError(
                f"a clip has {frames} frames, the model's relative positions go up to inflate.max_frames="
                f"{self.options.max_frames}: cut the clip, or inflate with position=rotary."
            )
        x = self._with_concat(x, concat)
        self.embedded = self._embed({"noise_level": noise_level, "fps": fps}, batch, frames)
        self.num_frames = frames
        try:
            return super().forward(x, timestep, **cond)
        finally:  # so that the image model, called by itself, stays one
            self.num_frames, self.embedded = 1, None

    def _with_concat(self, x: Tensor, concat: Tensor | None) -> Tensor:
        if concat is not None and _but_channels(concat) != _but_channels(x):
            raise UserError(
                f"concat has shape {tuple(concat.shape)}, which does not fit clips of {tuple(x.shape)}."
            )
        wide = x if concat is None else torch.cat((x, concat.to(x.dtype)), dim=1)
        takes = self.image_model.conv_in.in_channels
        missing = concat is None and self.options.concat_channels > 0
        if not self._is_hinted and (missing or self.patch_for(wide.shape[1]) == 0):
            raise UserError(
                f"the network takes {takes} channels, x has {x.shape[1]} and concat "
                f"{0 if concat is None else concat.shape[1]}: give both as it was inflated (inflate.concat_channels="
                f"{self.options.concat_channels})."
            )
        return wide

    def _embed(self, given: dict[str, Tensor | None], batch: int, frames: int) -> Tensor | None:
        total: Tensor | None = None
        for name, value in given.items():
            if name not in self.conditioning:
                if value is not None:
                    raise UserError(f"{name} is given to a network inflated with inflate.{name}=false.")
                continue
            if name == "fps" and frames == 1:
                continue
            if value is None:
                raise UserError(f"{name} is missing: the network was inflated with inflate.{name}=true.")
            images = per_frame(name, SCALARS[name](value.float()), batch, frames)
            embedded = self.conditioning[name](images.expand(batch * frames))
            total = embedded if total is None else total + embedded
        return total


def inflate(image_model: ImageUNet, **options: Any) -> VideoUNet:
    """Put temporal modules into an image UNet (Make-A-Video; PYoCo, sec. 4); see `InflationOptions`.

    The result equals the image model frame by frame, and takes it over. Raises UserError for a model of another class
    or with a configuration that is not supported, and for options that don't fit it.
    """
    if not isinstance(image_model, UNet2DModel | UNet2DConditionModel):
        raise UserError(
            f"inflation takes diffusers' UNet2DModel or UNet2DConditionModel, not {type(image_model).__name__}"
        )
    chosen = InflationOptions(**options)
    _check_supported(image_model)
    if chosen.concat_channels:
        widen_conv_in(image_model, chosen.concat_channels)
    return VideoUNet(image_model, chosen)


def options_dict(model: VideoUNet) -> dict[str, Any]:
    """The options a model was inflated with, as JSON-able values."""
    return asdict(model.options)


def _check_supported(image_model: ImageUNet) -> None:
    config = image_model.config
    for side, known in _BLOCKS.items():
        for block in getattr(image_model, f"{side}_blocks"):
            if type(block).__name__ not in known:
                raise UserError(f"{side}_block_types has {type(block).__name__}, which can't be inflated.")
    if config.get(
        "dual_cross_attention"
    ):  # diffusers' blocks give its transformer arguments that it does not take
        raise UserError("dual_cross_attention=true can't be inflated: diffusers itself no longer runs it.")
    if any(_is_hooked(block) for _, block in spatial_blocks(image_model)):
        raise UserError(
            "this image model is inflated already: load it anew, or copy it before it is inflated."
        )


def _but_channels(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:1], *x.shape[2:])


def _is_hooked(block: nn.Module) -> bool:
    functions = (getattr(hook, "func", None) for hook in block._forward_hooks.values())
    return any(getattr(function, "__func__", None) is VideoUNet._after for function in functions)


def _level(image_model: ImageUNet, path: str) -> int:
    """How often the input of a block was downsampled, as diffusers counts levels."""
    last = len(image_model.down_blocks) - 1
    side, index = path.split(".")[:2]
    if side == "mid_block":
        return last
    return int(index) if side == "down_blocks" else last - int(index)


def _width(block: Any) -> int:
    if isinstance(block, Transformer2DModel):
        return block.in_channels
    attention = block if isinstance(block, Attention) else block.attn2
    return attention.to_q.in_features


def _head_dim(options: InflationOptions, path: str, channels: int) -> int:
    if not options.heads and not options.head_dim:
        divisors = [d for d in range(2, min(64, channels // 2) + 1, 2) if channels % d == 0]
        return max(divisors, default=channels)
    key = "heads" if options.heads else "head_dim"
    number = getattr(options, key)
    head_dim = channels // number if options.heads else number
    if channels % number or head_dim % 2:
        raise UserError(
            f"inflate.{key}={number} does not fit {path} with {channels} channels: give a divisor of every attention "
            "block's width with an even head_dim, or 0."
        )
    return head_dim
