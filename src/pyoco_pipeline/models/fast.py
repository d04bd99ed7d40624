"""Twins of diffusers' modules that keep activations channels-last and norm, activation and addition in one pass.

A twin has the state dict of the module whose place it takes, and its results up to rounding. Diffusers' own modules
copy channels-last activations into the other layout in four places, norm in float32 under autocast, and gate in three
passes over halves of rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from pyoco_pipeline.models.fused import geglu, group_norm_silu, layer_norm


class FastGroupNorm(nn.GroupNorm):
    """Group norm whose result has the input's dtype, under autocast autocast's."""

    def forward(self, x: Tensor) -> Tensor:
        return group_norm_silu(lower(x), self.num_groups, self.weight, self.bias, self.eps, silu=False)


class GroupNormSiLU(nn.GroupNorm):
    """Group norm, then SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return group_norm_silu(lower(x), self.num_groups, self.weight, self.bias, self.eps)


class FastLayerNorm(nn.LayerNorm):
    """Layer norm over channels whose result has the input's dtype, under autocast autocast's."""

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(lower(input), self.weight, self.bias, self.eps)


class FastGEGLU(GEGLU):
    """A linear layer to twice the channels, of which GELU of one half gates the other."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return geglu(self.proj(hidden_states))


class FastResnetBlock2D(ResnetBlock2D):
    """A residual block; the first convolution's bias and the time embedding join in the second norm."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        x = lower(input_tensor)
        h = _norm_silu(self.norm1, x)
        resample = self.upsample or self.downsample
        if resample is not None:
            x, h = resample(x), resample(h)
        h, add = _conv_and_bias(self.conv1, h)
        scale_shift = None
        if self.time_emb_proj is not None and temb is not None:
            embedded = self.time_emb_proj(temb if self.skip_time_act else F.silu(temb))  # (N, C) or (N, 2 C)
            if self.time_embedding_norm == "scale_shift":
                scale_shift = embedded.chunk(2, dim=1)
            else:
                add = embedded if add is None else embedded + add
        if add is not None and add.ndim == 1:
            add = add.expand(h.shape[0], -1)
        norm = self.norm2
        h = group_norm_silu(
            h, norm.num_groups, norm.weight, norm.bias, norm.eps, add=add, scale_shift=scale_shift
        )
        h = self.conv2(self.dropout(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        x = x + h
        return x if self.output_scale_factor == 1 else x / self.output_scale_factor


class FastUpsample2D(Upsample2D):
    """Nearest-neighbour upsampling by two, then a convolution."""

    def forward(
        self, hidden_states: Tensor, output_size: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        n, c, h, w = hidden_states.shape
        if output_size is not None:
            x = F.interpolate(hidden_states, size=output_size, mode="nearest")
        elif hidden_states.is_contiguous():
            x = F.interpolate(hidden_states, scale_factor=2.0, mode="nearest")
        else:  # torch's own kernel for this layout has bounds on the size
            positions = hidden_states.permute(0, 2, 3, 1)[:, :, None, :, None, :]
            x = positions.expand(n, h, 2, w, 2, c).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
        if not self.use_conv:
            return x
        return self.conv(x) if self.name == "conv" else self.Conv2d_0(x)


class FastTransformer2DModel(Transformer2DModel):
    """A spatial transformer over positions."""

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        x = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        if residual.is_contiguous():
            x = x.contiguous()
        return (x if self.use_linear_projection else self.proj_out(x)) + residual


def use_twins(model: nn.Module) -> None:
    """Put the twin in the place of every module of `model` that has one; weights, names and hooks stay."""
    for module in model.modules():
        twin = _twin(module)
        if twin is not None:
            module.__class__ = twin


def _twin(module: nn.Module) -> type[nn.Module] | None:
    kind = type(module)
    if kind is nn.GroupNorm:
        return FastGroupNorm if module.affine else None
    if kind is nn.LayerNorm:
        plain = module.weight is not None and module.bias is not None and module.weight.ndim == 1
        return FastLayerNorm if plain else None
    if kind is GEGLU:
        return FastGEGLU
    if kind is ResnetBlock2D:
        known = isinstance(module.nonlinearity, nn.SiLU)
        return (
            FastResnetBlock2D if known and module.time_embedding_norm in ("default", "scale_shift") else None
        )
    if kind is Upsample2D:
        plain = module.norm is None and not module.use_conv_transpose and module.interpolate
        return FastUpsample2D if plain else None
    if kind is Transformer2DModel:
        return FastTransformer2DModel if module.is_input_continuous else None
    return None


def lower_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Hold weights as autocast to `dtype` casts them for every call; for sampling, and with the same results.

    Those of convolutions and linear layers; not biases, which some kernels add in float32, nor those of a UNet's first
    convolution, from which diffusers takes a network's dtype.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and not name.endswith("conv_in"):
            module.weight.data = module.weight.data.to(dtype)


def lower(x: Tensor) -> Tensor:
    """x as autocast computes with it, so that no activation stays in float32."""
    device = x.device.type
    if (
        x.dtype == torch.float32
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    ):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _conv_and_bias(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution and the bias that is still to be added; on a CPU, and where an adapter sits in it, none is."""
    if not x.is_cuda or type(conv) is not nn.Conv2d:
        return conv(x), None
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups), conv.bias
