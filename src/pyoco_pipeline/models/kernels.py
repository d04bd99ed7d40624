"""Triton kernels behind `fused`, with their gradients; imported only where Triton is installed.

Group norm is linear in x once its statistics are known, so each image and channel has one pair (A, B) with
norm(x + add) = A x + B. A pass sums x and x² per channel, one small program per image makes A and B of the sums,
and a second pass writes SiLU(A x + B). The gradient takes two passes in the same way.

Shapes: x (N, P, C) contiguous; sums of part s of the positions (N, S, C); per image and channel (N, C), float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

_BLOCK_P, _BLOCK_C = 16, 128
_PROGRAMS = 1024  # enough for every multiprocessor of a large GPU to have several


@triton.jit
def _silu_gradient(z):
    s = tl.sigmoid(z)
    return s * (1 + z * (1 - s))


@triton.jit
def _sums_kernel(x_ptr, s1_ptr, s2_ptr, P, C, part, BP: tl.constexpr, BC: tl.constexpr):
    n, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    first, last = split * part, tl.minimum(split * part + part, P)
    s1 = tl.zeros([BP, BC], tl.float32)
    s2 = tl.zeros([BP, BC], tl.float32)
    for p0 in range(first, last, BP):
        p = p0 + tl.arange(0, BP)
        mask = (p < last)[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + (n * P + p)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
        s1 += x
        s2 += x * x
    at = (n * tl.num_programs(1) + split) * C + c
    tl.store(s1_ptr + at, tl.sum(s1, 0), mask=c < C)
    tl.store(s2_ptr + at, tl.sum(s2, 0), mask=c < C)


@triton.jit
def _coefficients_kernel(
    s1_ptr, s2_ptr, add_ptr, w_ptr, b_ptr, A_ptr, B_ptr, total_ptr, mean_ptr, rstd_ptr, P, C, S, w_row, eps,
    HAS_ADD: tl.constexpr, G: tl.constexpr, K: tl.constexpr, GP: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    g, k = tl.arange(0, GP)[:, None], tl.arange(0, KP)[None, :]
    c, mask = g * K + k, (g < G) & (k < K)
    s1 = tl.zeros([GP, KP], tl.float32)
    s2 = tl.zeros([GP, KP], tl.float32)
    for s in range(S):
        s1 += tl.load(s1_ptr + (n * S + s) * C + c, mask=mask, other=0.0)
        s2 += tl.load(s2_ptr + (n * S + s) * C + c, mask=mask, other=0.0)
    add = tl.zeros([GP, KP], tl.float32)
    if HAS_ADD:
        add = tl.load(add_ptr + n * C + c, mask=mask, other=0.0)
    count = P * K
    mean = tl.sum(s1 + P * add, 1) / count
    # Of x + add: the sum of squares, about the group's mean.
    centred = add - mean[:, None]
    square = tl.where(mask, s2 + 2 * centred * s1 + P * centred * centred, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(square, 1) / count + eps)
    A = tl.load(w_ptr + n * w_row + c, mask=mask, other=0.0) * rstd[:, None]
    B = tl.load(b_ptr + n * w_row + c, mask=mask, other=0.0) + centred * A
    tl.store(A_ptr + n * C + c, A, mask=mask)
    tl.store(B_ptr + n * C + c, B, mask=mask)
    tl.store(total_ptr + n * C + c, s1, mask=mask)
    group = tl.arange(0, GP)
    tl.store(mean_ptr + n * G + group, mean, mask=group < G)
    tl.store(rstd_ptr + n * G + group, rstd, mask=group < G)


@triton.jit
def _apply_kernel(
    x_ptr, A_ptr, B_ptr, y_ptr, P, C, part, SILU: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    n, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    A = tl.load(A_ptr + n * C + c, mask=c < C, other=0.0)[None, :]
    B = tl.load(B_ptr + n * C + c, mask=c < C, other=0.0)[None, :]
    first, last = split * part, tl.minimum(split * part + part, P)
    for p0 in range(first, last, BP):
        p = p0 + tl.arange(0, BP)
        mask = (p < last)[:, None] & (c < C)[None, :]
        at = (n * P + p)[:, None] * C + c[None, :]
        z = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) * A + B
        y = z * tl.sigmoid(z) if SILU else z
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_sums_kernel(
    dy_ptr,
    x_ptr,
    A_ptr,
    B_ptr,
    s1_ptr,
    s2_ptr,
    P,
    C,
    part,
    SILU: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Sums of dz and of dz x, with z = A x + B."""
    n, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    A = tl.load(A_ptr + n * C + c, mask=c < C, other=0.0)[None, :]
    B = tl.load(B_ptr + n * C + c, mask=c < C, other=0.0)[None, :]
    first, last = split * part, tl.minimum(split * part + part, P)
    s1 = tl.zeros([BP, BC], tl.float32)
    s2 = tl.zeros([BP, BC], tl.float32)
    for p0 in range(first, last, BP):
        p = p0 + tl.arange(0, BP)
        mask = (p < last)[:, None] & (c < C)[None, :]
        at = (n * P + p)[:, None] * C + c[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dz = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if SILU:
            dz *= _silu_gradient(x * A + B)
        s1 += dz
        s2 += dz * x
    at = (n * tl.num_programs(1) + split) * C + c
    tl.store(s1_ptr + at, tl.sum(s1, 0), mask=c < C)
    tl.store(s2_ptr + at, tl.sum(s2, 0), mask=c < C)


@triton.jit
def _gradient_coefficients_kernel(
    s1_ptr, s2_ptr, add_ptr, w_ptr, A_ptr, total_ptr, mean_ptr, rstd_ptr,
    K0_ptr, K1_ptr, dw_ptr, db_ptr, dadd_ptr, P, C, S, w_row,
    HAS_ADD: tl.constexpr, G: tl.constexpr, K: tl.constexpr, GP: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """dx = A dz + K0 + K1 x, from the two sums that group norm's gradient takes off."""
    n = tl.program_id(0).to(tl.int64)
    g, k = tl.arange(0, GP)[:, None], tl.arange(0, KP)[None, :]
    c, mask = g * K + k, (g < G) & (k < K)
    group = tl.arange(0, GP)
    sum_dz = tl.zeros([GP, KP], tl.float32)
    sum_dzx = tl.zeros([GP, KP], tl.float32)
    for s in range(S):
        sum_dz += tl.load(s1_ptr + (n * S + s) * C + c, mask=mask, other=0.0)
        sum_dzx += tl.load(s2_ptr + (n * S + s) * C + c, mask=mask, other=0.0)
    mean = tl.load(mean_ptr + n * G + group, mask=group < G, other=0.0)[:, None]
    rstd = tl.load(rstd_ptr + n * G + group, mask=group < G, other=0.0)[:, None]
    centred = tl.zeros([GP, KP], tl.float32) - mean
    if HAS_ADD:
        centred += tl.load(add_ptr + n * C + c, mask=mask, other=0.0)
    w = tl.load(w_ptr + n * w_row + c, mask=mask, other=0.0)
    dw = rstd * (sum_dzx + centred * sum_dz)
    m1 = (tl.sum(w * sum_dz, 1) / (P * K))[:, None]
    m2 = (tl.sum(w * dw, 1) / (P * K))[:, None]
    K1 = tl.zeros([GP, KP], tl.float32) - rstd * rstd * m2
    K0 = K1 * centred - rstd * m1
    tl.store(K0_ptr + n * C + c, K0, mask=mask)
    tl.store(K1_ptr + n * C + c, K1, mask=mask)
    tl.store(dw_ptr + n * C + c, dw, mask=mask)
    tl.store(db_ptr + n * C + c, sum_dz, mask=mask)
    A = tl.load(A_ptr + n * C + c, mask=mask, other=0.0)
    total = tl.load(total_ptr + n * C + c, mask=mask, other=0.0)
    tl.store(dadd_ptr + n * C + c, A * sum_dz + P * K0 + K1 * total, mask=mask)


@triton.jit
def _gradient_kernel(
    dy_ptr, x_ptr, A_ptr, B_ptr, K0_ptr, K1_ptr, dx_ptr, P, C, part,
    SILU: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    n, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    A = tl.load(A_ptr + n * C + c, mask=c < C, other=0.0)[None, :]
    B = tl.load(B_ptr + n * C + c, mask=c < C, other=0.0)[None, :]
    K0 = tl.load(K0_ptr + n * C + c, mask=c < C, other=0.0)[None, :]
    K1 = tl.load(K1_ptr + n * C + c, mask=c < C, other=0.0)[None, :]
    first, last = split * part, tl.minimum(split * part + part, P)
    for p0 in range(first, last, BP):
        p = p0 + tl.arange(0, BP)
        mask = (p < last)[:, None] & (c < C)[None, :]
        at = (n * P + p)[:, None] * C + c[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dz = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if SILU:
            dz *= _silu_gradient(x * A + B)
        tl.store(dx_ptr + at, (A * dz + K0 + K1 * x).to(dx_ptr.dtype.element_ty), mask=mask)


def _grid(images: int, positions: int, channels: int) -> tuple[tuple[int, int, int], int]:
    """Programs over images, parts of the positions and blocks of channels; and the length of a part."""
    blocks = triton.cdiv(channels, _BLOCK_C)
    parts = max(1, min(_PROGRAMS // (images * blocks), triton.cdiv(positions, 4 * _BLOCK_P)))
    part = triton.cdiv(triton.cdiv(positions, parts), _BLOCK_P) * _BLOCK_P
    return (images, triton.cdiv(positions, part), blocks), part


def _group_sizes(channels: int, groups: int) -> dict[str, int]:
    width = channels // groups
    return {
        "G": groups,
        "K": width,
        "GP": triton.next_power_of_2(groups),
        "KP": triton.next_power_of_2(width),
    }


def _floats(number: int, like: Tensor, *shape: int) -> list[Tensor]:
    # One allocation each: what an operator returns may not share memory.
    return [like.new_empty(shape, dtype=torch.float32) for _ in range(number)]


_BLOCKS = {"BP": _BLOCK_P, "BC": _BLOCK_C}


@triton_op("pyoco::norm_silu", mutates_args={})
def norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y (N, P, C) of x (N, P, C), and what the gradient needs: A, B, the sums of x (N, C), mean and 1/std (N, G).

    weight, bias: (C,) or (N, C) float32; add: (N, C) float32 or None.
    """
    images, positions, channels = x.shape
    grid, part = _grid(images, positions, channels)
    s1, s2 = _floats(2, x, images, grid[1], channels)
    A, B, total = _floats(3, x, images, channels)
    mean, rstd = _floats(2, x, images, groups)
    y = torch.empty_like(x)
    wrap_triton(_sums_kernel)[grid](x, s1, s2, positions, channels, part, **_BLOCKS)
    wrap_triton(_coefficients_kernel)[(images,)](
        s1, s2, x if add is None else add, weight, bias, A, B, total, mean, rstd,
        positions, channels, grid[1], channels if weight.ndim == 2 else 0, eps,
        HAS_ADD=add is not None, **_group_sizes(channels, groups),
    )  # fmt: skip
    wrap_triton(_apply_kernel)[grid](x, A, B, y, positions, channels, part, SILU=silu, **_BLOCKS)
    return y, A, B, total, mean, rstd


@triton_op("pyoco::norm_silu_gradient", mutates_args={})
def norm_silu_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, add: Tensor | None, A: Tensor, B: Tensor, total: Tensor, mean: Tensor,
    rstd: Tensor, groups: int, silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to x (N, P, C), and to weight, bias and add, each (N, C)."""
    images, positions, channels = x.shape
    grid, part = _grid(images, positions, channels)
    s1, s2 = _floats(2, x, images, grid[1], channels)
    K0, K1, dw, db, dadd = _floats(5, x, images, channels)
    dx = torch.empty_like(x)
    wrap_triton(_gradient_sums_kernel)[grid](
        dy, x, A, B, s1, s2, positions, channels, part, SILU=silu, **_BLOCKS
    )
    wrap_triton(_gradient_coefficients_kernel)[(images,)](
        s1, s2, x if add is None else add, weight, A, total, mean, rstd, K0, K1, dw, db, dadd,
        positions, channels, grid[1], channels if weight.ndim == 2 else 0,
        HAS_ADD=add is not None, **_group_sizes(channels, groups),
    )  # fmt: skip
    wrap_triton(_gradient_kernel)[grid](
        dy, x, A, B, K0, K1, dx, positions, channels, part, SILU=silu, **_BLOCKS
    )
    return dx, dw, db, dadd


def _keep(ctx, inputs, output):
    x, weight, _, add, ctx.groups, _, ctx.silu = inputs
    ctx.save_for_backward(x, weight, add, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx, dy, *_):
    x, weight, add, *kept = ctx.saved_tensors
    dx, dw, db, dadd = norm_silu_gradient(dy.contiguous(), x, weight, add, *kept, ctx.groups, ctx.silu)
    if weight.ndim == 1:
        dw, db = dw.sum(0), db.sum(0)
    return dx, dw, db, (None if add is None else dadd), None, None, None


norm_silu.register_autograd(_gradient, setup_context=_keep)


@triton.jit
def _scores(q, k, T, scale, TP: tl.constexpr):
    """Softmax of q kᵀ over the first T columns, (TP, TP) float32."""
    s = tl.dot(q, tl.trans(k)) * scale
    s = tl.where(tl.arange(0, TP)[None, :] < T, s, float("-inf"))
    p = tl.exp(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, T, P, H, scale, D: tl.constexpr, TP: tl.constexpr, DP: tl.constexpr
):
    b, p, h = (tl.program_id(0) // P).to(tl.int64), tl.program_id(0) % P, tl.program_id(1)
    t, d = tl.arange(0, TP), tl.arange(0, DP)
    at = (((b * T + t) * P + p) * H + h)[:, None] * D + d[None, :]
    mask = (t < T)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + at, mask=mask, other=0.0)
    k = tl.load(k_ptr + at, mask=mask, other=0.0)
    v = tl.load(v_ptr + at, mask=mask, other=0.0)
    weights = _scores(q, k, T, scale, TP)
    tl.store(o_ptr + at, tl.dot(weights.to(v.dtype), v).to(o_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _attend_gradient_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, dq_ptr, dk_ptr, dv_ptr, T, P, H, scale,
    D: tl.constexpr, TP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    b, p, h = (tl.program_id(0) // P).to(tl.int64), tl.program_id(0) % P, tl.program_id(1)
    t, d = tl.arange(0, TP), tl.arange(0, DP)
    at = (((b * T + t) * P + p) * H + h)[:, None] * D + d[None, :]
    mask = (t < T)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + at, mask=mask, other=0.0)
    k = tl.load(k_ptr + at, mask=mask, other=0.0)
    v = tl.load(v_ptr + at, mask=mask, other=0.0)
    do = tl.load(do_ptr + at, mask=mask, other=0.0)
    weights = _scores(q, k, T, scale, TP)
    dv = tl.dot(tl.trans(weights.to(do.dtype)), do)
    dp = tl.dot(do, tl.trans(v))
    ds = (weights * (dp - tl.sum(dp * weights, 1)[:, None]) * scale).to(q.dtype)
    tl.store(dq_ptr + at, tl.dot(ds, k).to(dq_ptr.dtype.element_ty), mask=mask)
    tl.store(dk_ptr + at, tl.dot(tl.trans(ds), q).to(dk_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=mask)


def _attention_sizes(frames: int, dim: int) -> dict[str, int]:
    # A matrix unit takes blocks of 16.
    return {
        "D": dim,
        "TP": max(16, triton.next_power_of_2(frames)),
        "DP": max(16, triton.next_power_of_2(dim)),
    }


@triton_op("pyoco::attend_frames", mutates_args={})
def attend_frames(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over T; q, k, v and the result (B, T, P, H, D) contiguous."""
    batch, frames, positions, heads, dim = q.shape
    out = torch.empty_like(q)
    wrap_triton(_attend_kernel)[(batch * positions, heads)](
        q, k, v, out, frames, positions, heads, dim**-0.5, **_attention_sizes(frames, dim), num_warps=1
    )
    return out


@triton_op("pyoco::attend_frames_gradient", mutates_args={})
def attend_frames_gradient(do: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend_frames` with respect to q, k and v; the weights are computed again."""
    batch, frames, positions, heads, dim = q.shape
    dq, dk, dv = torch.empty_like(q), torch.empty_like(q), torch.empty_like(q)
    wrap_triton(_attend_gradient_kernel)[(batch * positions, heads)](
        do,
        q,
        k,
        v,
        dq,
        dk,
        dv,
        frames,
        positions,
        heads,
        dim**-0.5,
        **_attention_sizes(frames, dim),
        num_warps=1,
    )
    return dq, dk, dv


def _keep_qkv(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _attention_gradient(ctx, do):
    return attend_frames_gradient(do.contiguous(), *ctx.saved_tensors)


attend_frames.register_autograd(_attention_gradient, setup_context=_keep_qkv)
