"""An image UNet of diffusers on clips: every frame is an image of its own.

Shapes: x (B, C, T, H, W); inside, frames lie on the batch axis, (B*T, C, H, W), the frames of one clip adjacent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_blocks import KAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.fast import use_twins

ImageUNet: TypeAlias = UNet2DModel | UNet2DConditionModel
RESIDUAL_BLOCKS = (ResnetBlock2D, ResnetBlockCondNorm2D)
ATTENTION_BLOCKS = (Transformer2DModel, KAttentionBlock, Attention)


class FrameByFrame(nn.Module):
    """An image UNet that takes clips; modules of it that have a fast twin become it.

    Where the UNet takes p² times a clip's channels, blocks of p × p pixels are its positions (space-to-depth): the same
    model of pixels, since the rearrangement leaves noise and loss as they are, at a p²-th of the positions.

    recomputes, compiled: whether `checkpoint_gradients` and `compile_layers` were called.
    """

    def __init__(self, image_model: ImageUNet) -> None:
        super().__init__()
        use_twins(image_model)
        self.image_model = image_model
        self.recomputes = self.compiled = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.image_model.dtype

    def forward(self, x: Tensor, timestep: Tensor, *, fps: Tensor | None = None, **cond: Any) -> Any:
        """x: (B, C, T, H, W); timestep: (B,); cond: the image model's keyword arguments, see `per_frame`.

        fps: (B,), not used, since an image has none.
        Returns an object whose `.sample` is (B, C, T, H, W); with return_dict=False, as in diffusers, a tuple of it.
        """
        batch, _, frames = x.shape[:3]
        return_dict = cond.pop("return_dict", True)
        images = x.transpose(1, 2).flatten(0, 1)
        patch = self.patch_for(x.shape[1])
        if patch == 0:
            raise UserError(
                f"the network takes {self.image_model.conv_in.in_channels} channels, the clips have {x.shape[1]}: give "
                "clips of as many, or of a square number of times fewer, for blocks of pixels."
            )
        images = F.pixel_unshuffle(images, patch) if patch > 1 else images
        cond = {name: per_frame(name, value, batch, frames) for name, value in cond.items()}
        out = self.image_model(images, per_frame("timestep", timestep, batch, frames), **cond).sample
        out = F.pixel_shuffle(out, patch) if patch > 1 else out
        video = out.unflatten(0, (batch, frames)).transpose(1, 2)
        return UNet2DOutput(sample=video) if return_dict else (video,)

    def patch_for(self, channels: int) -> int:
        """The side of the blocks of pixels that are positions; 0 where none fits so many channels."""
        if self._is_hinted:  # its conv_in takes channels that it makes of the hint
            return 1
        takes, makes = self.image_model.conv_in.in_channels, self.image_model.conv_out.out_channels
        patch = math.isqrt(takes // channels)
        # One that makes no blocks takes none: its further channels are another clip's.
        return patch if takes == channels * patch**2 and (patch == 1 or makes % patch**2 == 0) else 0

    @property
    def _is_hinted(self) -> bool:
        return self.image_model.config.get("addition_embed_type") == "image_hint"

    def compile_layers(self) -> None:
        """Compile each of `layers` by itself, those of one class and shape only once.

        They are variants of one function, each for images, clips, training and sampling, of all networks of a process
        together; torch's limit on variants is raised to 512 for that.
        """
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 512)
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 512)
        self.compiled = True
        self._set_forwards()

    def layers(self) -> list[nn.Module]:
        """The modules that are compiled one by one: residual and attention blocks."""
        return self._spatial()

    def _spatial(self) -> list[nn.Module]:
        return [block for _, block in spatial_blocks(self.image_model)]

    def _set_forwards(self) -> None:
        """Give every layer the forward that is asked for, in place of any that was set on it."""
        call = _forward_compiled if self.compiled else _forward
        recomputed = {id(block) for block in self._spatial()} if self.recomputes else set()
        for layer in self.layers():
            # Partial functions, not closures, so that a deep copy's are its own.
            again = id(layer) in recomputed
            layer.forward = partial(_recomputed, call, layer) if again else partial(call, layer)

    def checkpoint_gradients(self) -> None:
        """Keep only what goes into each residual and attention block, and compute the rest again in the backward pass.

        Diffusers' own checkpointing leaves out bare attention blocks, the middle block and skip blocks.
        """
        self.recomputes = True
        self._set_forwards()


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(module).forward(module, *args, **kwargs)


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(_forward, dynamic=False)


def _forward_compiled(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _compiled()(module, *args, **kwargs)


def _recomputed(forward: Any, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(block, *args, **kwargs)
    return checkpoint(forward, block, *args, use_reentrant=False, **kwargs)


def per_frame(name: str, value: Any, batch: int, frames: int) -> Any:
    """A condition of B clips as one of B*T images.

    Tensors, also those in lists, tuples and dicts, have their first axis looked at, never another:
        (B, ...)           one per clip, repeated for each of its frames
        (B*T, ...)         one per frame, the frames of a clip adjacent
        (1, ...)           one for all clips
        (B, C, T, h, w)    a clip itself, such as a ControlNet's residuals or a hint
    Numbers and tensors without axes are for all. Of `cross_attention_kwargs` only `gligen` holds batches; whatever
    else it holds (LoRA scale, IP-Adapter masks) goes to the attention processors as it is.

    Raises UserError naming the condition when its first axis is none of these.
    """
    if name == "cross_attention_kwargs" and isinstance(value, dict):
        boxes = value.get("gligen")
        return value if boxes is None else {**value, "gligen": per_frame("gligen", boxes, batch, frames)}
    if isinstance(value, dict):
        return {key: per_frame(f"{name}.{key}", item, batch, frames) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(per_frame(f"{name}[{i}]", item, batch, frames) for i, item in enumerate(value))
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.ndim == 5 and (value.shape[0], value.shape[2]) == (batch, frames):
        return value.transpose(1, 2).flatten(0, 1)
    if value.ndim != 5 and value.shape[0] == batch * frames:
        return value
    if value.ndim != 5 and value.shape[0] == batch:
        return value.repeat_interleave(frames, dim=0)
    if value.ndim != 5 and value.shape[0] == 1:
        return value.expand(batch * frames, *value.shape[1:])
    raise UserError(
        f"{name} has shape {tuple(value.shape)}, but there are {batch} clips of {frames} frames: give it a first axis "
        f"of {batch} (per clip), {batch * frames} (per frame) or 1, or the layout ({batch}, C, {frames}, H, W)."
    )


def spatial_blocks(image_model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every residual and attention block; one inside another belongs to the outer one."""
    for name, module in image_model.named_children():
        if name in ("down_blocks", "mid_block", "up_blocks"):
            yield from _outermost(name, module)


def _outermost(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, RESIDUAL_BLOCKS + ATTENTION_BLOCKS):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _outermost(f"{path}.{name}", child)
