"""Group norm with SiLU, layer norm, GEGLU and attention over frames, each in one pass over channels-last data: Triton
on a CUDA GPU.

Elsewhere the same functions are made of torch's own operations. Shapes: N images, P positions, C channels; B clips,
T frames, H heads of D channels.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

# Torch's CUDA builds bring it.
HAS_TRITON = find_spec("triton") is not None
_LONGEST_ROW = 8192  # channels of a layer norm that a program keeps in registers


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    add: Tensor | None = None,
    scale_shift: tuple[Tensor, Tensor] | None = None,
    silu: bool = True,
) -> Tensor:
    """SiLU(GroupNorm(x + add) (1 + scale) + shift) of x (N, C, *positions), in x's dtype; statistics in float32.

    weight, bias: (C,). add, scale, shift: (N, C), the two ways in which a residual block takes its time embedding; None
    leaves them out, silu=False the activation.
    """
    if x.is_cuda and HAS_TRITON:
        from pyoco_pipeline.models.kernels import norm_silu

        weight, bias = weight.float(), bias.float()
        if scale_shift is not None:
            scale, shift = (value.float() for value in scale_shift)
            weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
        flat = x.movedim(1, -1).reshape(x.shape[0], -1, x.shape[1]).contiguous()
        add = None if add is None else add.float().contiguous()
        out = norm_silu(flat, weight, bias, add, groups, eps, silu)
        return out.reshape(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)
    x = F.group_norm(x if add is None else x + _as_positions(add, x), groups, weight, bias, eps)
    if scale_shift is not None:
        x = x * (1 + _as_positions(scale_shift[0], x)) + _as_positions(scale_shift[1], x)
    return F.silu(x) if silu else x


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm of x (..., C) over C, in x's dtype; statistics in float32. weight, bias: (C,)."""
    if x.is_cuda and HAS_TRITON and x.numel() > 0 and x.shape[-1] <= _LONGEST_ROW:
        from pyoco_pipeline.models import transformer_kernels

        flat = x.reshape(-1, x.shape[-1]).contiguous()
        return transformer_kernels.layer_norm(flat, weight.float(), bias.float(), eps).view(x.shape)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(x.dtype)  # autocast's is float32


def geglu(h: Tensor) -> Tensor:
    """a GELU(b) (..., C) of h = (a, b) (..., 2 C), with the exact GELU, in h's dtype (GLU Variants, eq. 6)."""
    if h.is_cuda and HAS_TRITON and h.numel() > 0:
        from pyoco_pipeline.models import transformer_kernels

        flat = h.reshape(-1, h.shape[-1]).contiguous()
        return transformer_kernels.geglu(flat).view(*h.shape[:-1], -1)
    value, gate = h.chunk(2, dim=-1)
    return value * F.gelu(gate)


def attend_over_frames(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Softmax attention over T of qkv (B, T, P, 3, H, D), for each position and head; the result is (B, T, P, H, D).

    cos, sin: (T, D / 2) float32, of the angles that pairs of neighbours in queries and keys are turned by.
    """
    if qkv.is_cuda and HAS_TRITON and qkv.shape[1] <= 32 and qkv.shape[-1] <= 128:
        from pyoco_pipeline.models.kernels import attend_frames

        return attend_frames(qkv.contiguous(), cos, sin)
    q, k, v = qkv.unbind(3)
    return attend(rotate(q, cos, sin), rotate(k, cos, sin), v)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention over T of q, k, v (B, T, P, H, D); bias: (H, T, T), added to the logits."""
    batch, _, positions, *_ = q.shape
    q, k, v = (t.permute(0, 2, 3, 1, 4).flatten(0, 1) for t in (q, k, v))  # (B*P, H, T, D)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return out.unflatten(0, (batch, positions)).permute(0, 3, 1, 2, 4)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of neighbours in x (B, T, P, H, D) turned by angles (T, D / 2)."""
    cos, sin = (f.to(x.dtype)[:, None, None, :] for f in (cos, sin))
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _as_positions(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(*value.shape, *[1] * (x.ndim - 2))
