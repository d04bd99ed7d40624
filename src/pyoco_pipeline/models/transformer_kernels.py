"""Triton kernels of layer norm and GEGLU, with their gradients; imported only where Triton is installed.

Each reads and writes once: a row of a layer norm stays in registers. Like those in `kernels`, to torch.compile they are
opaque operators, and without it they are called directly. Shapes: R rows, C channels.
"""

from __future__ import annotations

from functools import cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

# Values that a program holds of one tensor, and channels of a gate's block.
_NORM_TILE, _GATE_TILE, _GATE_COLUMNS = 2048, 1024, 256


@triton.jit
def _layer_norm_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, rstd_ptr, R, C, eps, BR: tl.constexpr, BC: tl.constexpr
):
    row, c = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR), tl.arange(0, BC)
    mask = (row < R)[:, None] & (c < C)[None, :]
    at = row[:, None] * C + c[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    centred = tl.where(mask, x - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    w = tl.load(w_ptr + c, mask=c < C, other=0.0)
    b = tl.load(b_ptr + c, mask=c < C, other=0.0)
    y = centred * rstd[:, None] * w[None, :] + b[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean, mask=row < R)
    tl.store(rstd_ptr + row, rstd, mask=row < R)


@triton.jit
def _layer_norm_gradient_kernel(
    dy_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dwb_ptr, R, C, BR: tl.constexpr, BC: tl.constexpr
):
    """A program takes every so many-th block of rows, and writes its own sums of dw and db."""
    c = tl.arange(0, BC)
    w = tl.load(w_ptr + c, mask=c < C, other=0.0)
    dw = tl.zeros([BR, BC], tl.float32)
    db = tl.zeros([BR, BC], tl.float32)
    for first in range(tl.program_id(0) * BR, R, tl.num_programs(0) * BR):
        row = first + tl.arange(0, BR).to(tl.int64)
        mask = (row < R)[:, None] & (c < C)[None, :]
        at = row[:, None] * C + c[None, :]
        mean = tl.load(mean_ptr + row, mask=row < R, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < R, other=0.0)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        normed = (x - mean[:, None]) * rstd[:, None]
        dw += dy * normed
        db += dy
        dz = dy * w[None, :]
        m1 = tl.sum(dz, 1) / C
        m2 = tl.sum(dz * normed, 1) / C
        dx = rstd[:, None] * (dz - m1[:, None] - normed * m2[:, None])
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    own = dwb_ptr + tl.program_id(0) * 2 * C + c
    tl.store(own, tl.sum(dw, 0), mask=c < C)
    tl.store(own + C, tl.sum(db, 0), mask=c < C)


@triton.jit
def _gate_block(R, C, BR: tl.constexpr, BC: tl.constexpr):
    """Rows, channels and mask of a program's block; neighbouring programs take neighbouring channels."""
    blocks = tl.cdiv(C, BC)
    row = (tl.program_id(0) // blocks).to(tl.int64) * BR + tl.arange(0, BR)
    c = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    return row[:, None], c[None, :], (row < R)[:, None] & (c < C)[None, :]


@triton.jit
def _normal_distribution(z):
    return 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)


@triton.jit
def _geglu_kernel(h_ptr, y_ptr, R, C, BR: tl.constexpr, BC: tl.constexpr):
    row, c, mask = _gate_block(R, C, BR, BC)
    at = row * (2 * C) + c
    a = tl.load(h_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(h_ptr + at + C, mask=mask, other=0.0).to(tl.float32)
    y = a * gate * _normal_distribution(gate)
    tl.store(y_ptr + row * C + c, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _geglu_gradient_kernel(dy_ptr, h_ptr, dh_ptr, R, C, BR: tl.constexpr, BC: tl.constexpr):
    row, c, mask = _gate_block(R, C, BR, BC)
    at = row * (2 * C) + c
    a = tl.load(h_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(h_ptr + at + C, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * C + c, mask=mask, other=0.0).to(tl.float32)
    below = _normal_distribution(gate)
    slope = below + gate * tl.exp(-0.5 * gate * gate) * 0.3989422804014327
    tl.store(dh_ptr + at, (dy * gate * below).to(dh_ptr.dtype.element_ty), mask=mask)
    tl.store(dh_ptr + at + C, (dy * a * slope).to(dh_ptr.dtype.element_ty), mask=mask)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _norm_sizes(channels: int) -> dict[str, int]:
    padded = triton.next_power_of_2(channels)
    return {"BR": max(1, _NORM_TILE // padded), "BC": padded, "num_warps": max(4, padded // 512)}


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y (R, C), and what the gradient needs: mean and 1/std (R,)."""
    rows, channels = x.shape
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty((rows,), dtype=torch.float32) for _ in range(2))
    sizes = _norm_sizes(channels)
    grid = (triton.cdiv(rows, sizes["BR"]),)
    _layer_norm_kernel[grid](x, weight, bias, y, mean, rstd, rows, channels, eps, **sizes)
    return y, mean, rstd


def _layer_norm_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x, and (2, C) to weight and bias."""
    rows, channels = x.shape
    dx = torch.empty_like(x)
    sizes = _norm_sizes(channels)
    # As many programs as run at once: each writes sums.
    programs = min(triton.cdiv(rows, sizes["BR"]), 4 * _processors(x.device))
    dwb = x.new_empty((programs, 2, channels), dtype=torch.float32)
    _layer_norm_gradient_kernel[(programs,)](dy, x, weight, mean, rstd, dx, dwb, rows, channels, **sizes)
    return dx, dwb.sum(0)


def _keep_norm(ctx, inputs, output):
    x, weight, _, _ = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _layer_norm_backward(gradient, ctx, dy, *_):
    dx, dwb = gradient(dy.contiguous(), *ctx.saved_tensors)
    return dx, dwb[0], dwb[1], None


_layer_norm_op = custom_op("pyoco::layer_norm", _layer_norm, mutates_args=())
_layer_norm_gradient_op = custom_op("pyoco::layer_norm_gradient", _layer_norm_gradient, mutates_args=())
_layer_norm_op.register_autograd(
    partial(_layer_norm_backward, _layer_norm_gradient_op), setup_context=_keep_norm
)


@_layer_norm_op.register_fake
def _(x, weight, bias, eps):
    return torch.empty_like(x), *(x.new_empty((x.shape[0],), dtype=torch.float32) for _ in range(2))


@_layer_norm_gradient_op.register_fake
def _(dy, x, weight, mean, rstd):
    return torch.empty_like(x), x.new_empty((2, x.shape[1]), dtype=torch.float32)


class _LayerNorm(torch.autograd.Function):
    forward, setup_context = staticmethod(_layer_norm), staticmethod(_keep_norm)
    backward = staticmethod(partial(_layer_norm_backward, _layer_norm_gradient))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of x (R, C) contiguous, in its dtype; weight, bias: (C,) float32."""
    call = _layer_norm_op if torch.compiler.is_compiling() else _LayerNorm.apply
    return call(x, weight, bias, eps)[0]


def _gate_launch(rows: int, channels: int) -> tuple[tuple[int], dict[str, int]]:
    columns = min(_GATE_COLUMNS, triton.next_power_of_2(channels))
    sizes = {"BR": _GATE_TILE // columns, "BC": columns, "num_warps": 4}
    return (triton.cdiv(rows, sizes["BR"]) * triton.cdiv(channels, columns),), sizes


def _geglu(h: Tensor) -> Tensor:
    rows, channels = h.shape[0], h.shape[1] // 2
    y = h.new_empty((rows, channels))
    grid, sizes = _gate_launch(rows, channels)
    _geglu_kernel[grid](h, y, rows, channels, **sizes)
    return y


def _geglu_gradient(dy: Tensor, h: Tensor) -> Tensor:
    dh = torch.empty_like(h)
    grid, sizes = _gate_launch(*dy.shape)
    _geglu_gradient_kernel[grid](dy, h, dh, *dy.shape, **sizes)
    return dh


def _keep_gate(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _geglu_backward(gradient, ctx, dy):
    return gradient(dy.contiguous(), *ctx.saved_tensors)


_geglu_op = custom_op("pyoco::geglu", _geglu, mutates_args=())
_geglu_gradient_op = custom_op("pyoco::geglu_gradient", _geglu_gradient, mutates_args=())
_geglu_op.register_autograd(partial(_geglu_backward, _geglu_gradient_op), setup_context=_keep_gate)


@_geglu_op.register_fake
def _(h):
    return h.new_empty((h.shape[0], h.shape[1] // 2))


@_geglu_gradient_op.register_fake
def _(dy, h):
    return torch.empty_like(h)


class _GEGLU(torch.autograd.Function):
    forward, setup_context = staticmethod(_geglu), staticmethod(_keep_gate)
    backward = staticmethod(partial(_geglu_backward, _geglu_gradient))


def geglu(h: Tensor) -> Tensor:
    """a GELU(b), with the exact GELU, of h = (a, b) (R, 2 C) contiguous; the result is (R, C)."""
    return (_geglu_op if torch.compiler.is_compiling() else _GEGLU.apply)(h)
