"""Triton kernels behind `fused`, with their gradients; imported only where Triton is installed.

Group norm is linear in x once its statistics are known: norm(x + add) = A x + B, one pair per image and channel. A
program reads the channels of a few whole groups of one image to sum them, and writes SiLU(A x + B) of what it still
holds, or, of an image too large for that or padded groups, reads again. The gradient goes in two passes.

To torch.compile they are opaque operators, for it would compile each kernel anew for each place where it stands;
without it they are called directly, which costs a fraction of an operator's call.
Shapes: x (N, P, C) contiguous; add, and per-image weight and bias, (N, C) float32; mean and 1/std (N, G) float32.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

# The fastest of 20 on an H100; of images of _LARGE_P positions on, of 18 on an H200.
_BLOCK_C, _BLOCK_P, _WARPS = 64, 64, 4
_LARGE_P, _LARGE_BLOCK_P = 2048, 128
# What a program holds to read it once: so many values of bfloat16; four times as many were slower than to read twice.
# It takes 16 to 32 channels beside each other, or one group; groups as wide as a power of two alone were measured.
_HELD, _LEAST_C, _MOST_C = 16384, 16, 32


@triton.jit
def _silu_gradient(z):
    s = tl.sigmoid(z)
    return s * (1 + z * (1 - s))


@triton.jit
def _of_group(v, GB: tl.constexpr, KP: tl.constexpr):
    """The sum of v (GB * KP) over each group, at each of its channels."""
    total = tl.sum(tl.reshape(v, [GB, KP]), 1)
    return tl.reshape(tl.broadcast_to(total[:, None], [GB, KP]), [GB * KP])


@triton.jit
def _norm_silu_kernel(
    x_ptr, w_ptr, b_ptr, add_ptr, y_ptr, mean_ptr, rstd_ptr, P, C, w_row, eps,
    HAS_ADD: tl.constexpr, SILU: tl.constexpr,
    G: tl.constexpr, K: tl.constexpr, GB: tl.constexpr, KP: tl.constexpr, BP: tl.constexpr, HOLDS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(G, GB)  # of one image, beside each other, so that they share what the cache reads of it
    n = (tl.program_id(0) // blocks).to(tl.int64)
    i = tl.arange(0, GB * KP)
    g, k = tl.program_id(0) % blocks * GB + i // KP, i % KP
    c, valid = g * K + k, (g < G) & (k < K)
    if HOLDS:  # BP positions are all
        p = tl.arange(0, BP)
        mask = (p < P)[:, None] & valid[None, :]
        at = (n * P + p)[:, None] * C + c[None, :]
        held = tl.load(x_ptr + at, mask=mask, other=0.0)
        x = held.to(tl.float32)
        s1, s2 = tl.sum(x, 0), tl.sum(x * x, 0)
    else:
        s1 = tl.zeros([GB * KP], tl.float32)
        s2 = tl.zeros([GB * KP], tl.float32)
        for p0 in range(0, P, BP):
            p = p0 + tl.arange(0, BP)
            mask = (p < P)[:, None] & valid[None, :]
            x = tl.load(x_ptr + (n * P + p)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
            s1 += tl.sum(x, 0)
            s2 += tl.sum(x * x, 0)
    add = tl.zeros([GB * KP], tl.float32)
    if HAS_ADD:
        add = tl.load(add_ptr + n * C + c, mask=valid, other=0.0)
    mean = _of_group(s1 + P * add, GB, KP) / (P * K)
    centred = add - mean
    # Of x + add - mean, the sum of squares.
    square = tl.where(valid, s2 + 2 * centred * s1 + P * centred * centred, 0.0)
    rstd = 1 / tl.sqrt(_of_group(square, GB, KP) / (P * K) + eps)
    tl.store(mean_ptr + n * G + g, mean, mask=valid & (k == 0))
    tl.store(rstd_ptr + n * G + g, rstd, mask=valid & (k == 0))
    A = tl.load(w_ptr + n * w_row + c, mask=valid, other=0.0) * rstd
    B = tl.load(b_ptr + n * w_row + c, mask=valid, other=0.0) + centred * A
    if HOLDS:
        z = held.to(tl.float32) * A[None, :] + B[None, :]
        y = z * tl.sigmoid(z) if SILU else z
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        for p0 in range(0, P, BP):
            p = p0 + tl.arange(0, BP)
            mask = (p < P)[:, None] & valid[None, :]
            at = (n * P + p)[:, None] * C + c[None, :]
            z = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) * A[None, :] + B[None, :]
            y = z * tl.sigmoid(z) if SILU else z
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _norm_silu_gradient_kernel(
    dy_ptr, x_ptr, w_ptr, b_ptr, add_ptr, mean_ptr, rstd_ptr, dx_ptr, dw_ptr, db_ptr, dadd_ptr, P, C, w_row,
    HAS_ADD: tl.constexpr, SILU: tl.constexpr,
    G: tl.constexpr, K: tl.constexpr, GB: tl.constexpr, KP: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """With z = A x + B: dx = A dz + K0 + K1 x, where K0 and K1 come of the group's sums of dz and dz x."""
    n = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, GB * KP)
    g, k = tl.program_id(1) * GB + i // KP, i % KP
    c, valid = g * K + k, (g < G) & (k < K)
    mean = tl.load(mean_ptr + n * G + g, mask=valid, other=0.0)
    rstd = tl.load(rstd_ptr + n * G + g, mask=valid, other=0.0)
    w = tl.load(w_ptr + n * w_row + c, mask=valid, other=0.0)
    centred = -mean
    if HAS_ADD:
        centred += tl.load(add_ptr + n * C + c, mask=valid, other=0.0)
    A = w * rstd
    B = tl.load(b_ptr + n * w_row + c, mask=valid, other=0.0) + centred * A
    sum_x = tl.zeros([GB * KP], tl.float32)
    sum_dz = tl.zeros([GB * KP], tl.float32)
    sum_dzx = tl.zeros([GB * KP], tl.float32)
    for p0 in range(0, P, BP):
        p = p0 + tl.arange(0, BP)
        mask = (p < P)[:, None] & valid[None, :]
        at = (n * P + p)[:, None] * C + c[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dz = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if SILU:
            dz *= _silu_gradient(x * A[None, :] + B[None, :])
        sum_x += tl.sum(x, 0)
        sum_dz += tl.sum(dz, 0)
        sum_dzx += tl.sum(dz * x, 0)
    dw = rstd * (sum_dzx + centred * sum_dz)
    m1 = _of_group(w * sum_dz, GB, KP) / (P * K)
    m2 = _of_group(w * dw, GB, KP) / (P * K)
    K1 = -rstd * rstd * m2
    K0 = K1 * centred - rstd * m1
    tl.store(dw_ptr + n * C + c, dw, mask=valid)
    tl.store(db_ptr + n * C + c, sum_dz, mask=valid)
    if HAS_ADD:
        tl.store(dadd_ptr + n * C + c, A * sum_dz + P * K0 + K1 * sum_x, mask=valid)
    for p0 in range(0, P, BP):
        p = p0 + tl.arange(0, BP)
        mask = (p < P)[:, None] & valid[None, :]
        at = (n * P + p)[:, None] * C + c[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dz = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if SILU:
            dz *= _silu_gradient(x * A[None, :] + B[None, :])
        dx = A[None, :] * dz + K0[None, :] + K1[None, :] * x
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def _norm_sizes(x: Tensor, groups: int, block_p: int) -> tuple[int, dict[str, int]]:
    """The number of blocks of whole groups of an image, and the kernels' sizes."""
    _, positions, channels = x.shape
    width = channels // groups
    padded = triton.next_power_of_2(width)
    taken = max(1, _BLOCK_C // padded)
    rows = min(block_p, triton.next_power_of_2(positions))
    sizes = {"G": groups, "K": width, "GB": taken, "KP": padded, "BP": rows, "num_warps": _WARPS}
    return triton.cdiv(groups, taken), sizes


def _held_sizes(x: Tensor, groups: int) -> tuple[int, dict[str, int]] | None:
    """As `_norm_sizes`, of programs that hold all positions of their channels; None where reading twice is faster."""
    _, positions, channels = x.shape
    width, rows = channels // groups, triton.next_power_of_2(positions)
    values = rows * x.element_size() // 2  # of a channel
    if width & (width - 1) or max(width, _LEAST_C) * values > _HELD:
        return None
    taken = max(width, min(_MOST_C, _HELD // values))
    sizes = {"G": groups, "K": width, "GB": taken // width, "KP": width, "BP": rows}
    return triton.cdiv(channels, taken), sizes | {"num_warps": max(4, taken * values // 2048)}


def _norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y (N, P, C) of x (N, P, C), and what the gradient needs: mean and 1/std (N, G).

    weight, bias: (C,) or (N, C) float32; add: (N, C) float32 or None.
    """
    images, positions, channels = x.shape
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty((images, groups), dtype=torch.float32) for _ in range(2))
    held = _held_sizes(x, groups)
    large = positions >= _LARGE_P and channels <= groups * _BLOCK_C
    blocks, sizes = held or _norm_sizes(x, groups, _LARGE_BLOCK_P if large else _BLOCK_P)
    w_row = channels if weight.ndim == 2 else 0
    _norm_silu_kernel[(images * blocks,)](
        x, weight, bias, add, y, mean, rstd, positions, channels, w_row, eps,
        HAS_ADD=add is not None, SILU=silu, HOLDS=held is not None, **sizes,
    )  # fmt: skip
    return y, mean, rstd


def _norm_silu_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, mean: Tensor, rstd: Tensor,
    groups: int, silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to x, and (N, C) to weight, bias and add; without add the last is empty."""
    images, positions, channels = x.shape
    dx = torch.empty_like(x)
    dw, db = (x.new_empty((images, channels), dtype=torch.float32) for _ in range(2))
    dadd = torch.empty_like(dw if add is not None else dw[:0])
    blocks, sizes = _norm_sizes(x, groups, _BLOCK_P)
    w_row = channels if weight.ndim == 2 else 0
    _norm_silu_gradient_kernel[(images, blocks)](
        dy, x, weight, bias, add, mean, rstd, dx, dw, db, dadd, positions, channels, w_row,
        HAS_ADD=add is not None, SILU=silu, **sizes,
    )  # fmt: skip
    return dx, dw, db, dadd


def _keep(ctx, inputs, output):
    x, weight, bias, add, ctx.groups, _, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, add, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(gradient, ctx, dy, *_):
    x, weight, bias, add, mean, rstd = ctx.saved_tensors
    dx, dw, db, dadd = gradient(dy.contiguous(), x, weight, bias, add, mean, rstd, ctx.groups, ctx.silu)
    if weight.ndim == 1:
        dw, db = dw.sum(0), db.sum(0)
    return dx, dw, db, (None if add is None else dadd), None, None, None


_norm_silu_op = custom_op("pyoco::norm_silu", _norm_silu, mutates_args=())
_norm_silu_gradient_op = custom_op("pyoco::norm_silu_gradient", _norm_silu_gradient, mutates_args=())
_norm_silu_op.register_autograd(partial(_backward, _norm_silu_gradient_op), setup_context=_keep)


@_norm_silu_op.register_fake
def _(x, weight, bias, add, groups, eps, silu):
    statistic = (x.shape[0], groups)
    return torch.empty_like(x), *(x.new_empty(statistic, dtype=torch.float32) for _ in range(2))


@_norm_silu_gradient_op.register_fake
def _(dy, x, weight, bias, add, mean, rstd, groups, silu):
    dw, db = (x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), dw, db, torch.empty_like(dw if add is not None else dw[:0])


class _NormSiLU(torch.autograd.Function):
    forward, setup_context = staticmethod(_norm_silu), staticmethod(_keep)
    backward = staticmethod(partial(_backward, _norm_silu_gradient))


def norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    """SiLU(GroupNorm(x + add)) of x (N, P, C) contiguous.

    weight, bias: (C,) or (N, C) float32; add: (N, C) float32 or None.
    """
    call = _norm_silu_op if torch.compiler.is_compiling() else _NormSiLU.apply
    return call(x, weight, bias, add, groups, eps, silu)[0]


@triton.jit
def _rotated(x, cos, sin, TP: tl.constexpr, DP: tl.constexpr):
    """Each pair of neighbours of x (TP, DP) turned by its angle; the angles are (TP, DP / 2)."""
    even, odd = tl.split(tl.reshape(x.to(tl.float32), [TP, DP // 2, 2]))
    turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    return tl.reshape(turned, [TP, DP]).to(x.dtype)


@triton.jit
def _scores(q, k, T, scale, TP: tl.constexpr):
    """Softmax of q kᵀ over the first T columns, (TP, TP) float32."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    s = tl.where(tl.arange(0, TP)[None, :] < T, s, float("-inf"))
    p = tl.exp(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit
def _attend_kernel(
    qkv_ptr, cos_ptr, sin_ptr, o_ptr, T, P, H, scale, D: tl.constexpr, TP: tl.constexpr, DP: tl.constexpr
):
    b, p, h = (tl.program_id(0) // P).to(tl.int64), tl.program_id(0) % P, tl.program_id(1)
    t, d, pair = tl.arange(0, TP), tl.arange(0, DP), tl.arange(0, DP // 2)
    row, mask = ((b * T + t) * P + p)[:, None], (t < T)[:, None] & (d < D)[None, :]
    at = (row * 3 * H + h) * D + d[None, :]
    angle, known = t[:, None] * (D // 2) + pair[None, :], (t < T)[:, None] & (pair < D // 2)[None, :]
    cos = tl.load(cos_ptr + angle, mask=known, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=known, other=0.0)
    q = _rotated(tl.load(qkv_ptr + at, mask=mask, other=0.0), cos, sin, TP, DP)
    k = _rotated(tl.load(qkv_ptr + at + H * D, mask=mask, other=0.0), cos, sin, TP, DP)
    v = tl.load(qkv_ptr + at + 2 * H * D, mask=mask, other=0.0)
    out = tl.dot(_scores(q, k, T, scale, TP).to(v.dtype), v, input_precision="ieee")
    tl.store(o_ptr + (row * H + h) * D + d[None, :], out.to(o_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _attend_gradient_kernel(
    do_ptr, qkv_ptr, cos_ptr, sin_ptr, dqkv_ptr, T, P, H, scale,
    D: tl.constexpr, TP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    b, p, h = (tl.program_id(0) // P).to(tl.int64), tl.program_id(0) % P, tl.program_id(1)
    t, d, pair = tl.arange(0, TP), tl.arange(0, DP), tl.arange(0, DP // 2)
    row, mask = ((b * T + t) * P + p)[:, None], (t < T)[:, None] & (d < D)[None, :]
    at = (row * 3 * H + h) * D + d[None, :]
    angle, known = t[:, None] * (D // 2) + pair[None, :], (t < T)[:, None] & (pair < D // 2)[None, :]
    cos = tl.load(cos_ptr + angle, mask=known, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=known, other=0.0)
    q = _rotated(tl.load(qkv_ptr + at, mask=mask, other=0.0), cos, sin, TP, DP)
    k = _rotated(tl.load(qkv_ptr + at + H * D, mask=mask, other=0.0), cos, sin, TP, DP)
    v = tl.load(qkv_ptr + at + 2 * H * D, mask=mask, other=0.0)
    do = tl.load(do_ptr + (row * H + h) * D + d[None, :], mask=mask, other=0.0)
    weights = _scores(q, k, T, scale, TP)
    dv = tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision="ieee")
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = (weights * (dp - tl.sum(dp * weights, 1)[:, None]) * scale).to(q.dtype)
    dq = _rotated(tl.dot(ds, k, input_precision="ieee"), cos, -sin, TP, DP)
    dk = _rotated(tl.dot(tl.trans(ds), q, input_precision="ieee"), cos, -sin, TP, DP)
    kind = dqkv_ptr.dtype.element_ty
    tl.store(dqkv_ptr + at, dq.to(kind), mask=mask)
    tl.store(dqkv_ptr + at + H * D, dk.to(kind), mask=mask)
    tl.store(dqkv_ptr + at + 2 * H * D, dv.to(kind), mask=mask)


def _attention_sizes(frames: int, dim: int) -> dict[str, int]:
    # A matrix unit takes blocks of 16.
    padded = {"TP": max(16, triton.next_power_of_2(frames)), "DP": max(16, triton.next_power_of_2(dim))}
    return {"D": dim, "num_warps": 1, **padded}


def _attend(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, frames, positions, _, heads, dim = qkv.shape
    out = qkv.new_empty((batch, frames, positions, heads, dim))
    sizes = _attention_sizes(frames, dim)
    _attend_kernel[(batch * positions, heads)](
        qkv, cos, sin, out, frames, positions, heads, dim**-0.5, **sizes
    )
    return out


def _attend_gradient(do: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient with respect to qkv; the weights are computed again."""
    batch, frames, positions, _, heads, dim = qkv.shape
    dqkv = torch.empty_like(qkv)
    sizes = _attention_sizes(frames, dim)
    _attend_gradient_kernel[(batch * positions, heads)](
        do, qkv, cos, sin, dqkv, frames, positions, heads, dim**-0.5, **sizes
    )
    return dqkv


def _keep_qkv(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _attend_backward(gradient, ctx, do):
    return gradient(do.contiguous(), *ctx.saved_tensors), None, None


_attend_op = custom_op("pyoco::attend_frames", _attend, mutates_args=())
_attend_gradient_op = custom_op("pyoco::attend_frames_gradient", _attend_gradient, mutates_args=())
_attend_op.register_autograd(partial(_attend_backward, _attend_gradient_op), setup_context=_keep_qkv)


@_attend_op.register_fake
def _(qkv, cos, sin):
    return qkv.new_empty((*qkv.shape[:3], *qkv.shape[4:]))


@_attend_gradient_op.register_fake
def _(do, qkv, cos, sin):
    return torch.empty_like(qkv)


class _Attend(torch.autograd.Function):
    forward, setup_context = staticmethod(_attend), staticmethod(_keep_qkv)
    backward = staticmethod(partial(_attend_backward, _attend_gradient))


def attend_frames(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Softmax attention over T (B, T, P, H, D) of qkv (B, T, P, 3, H, D) contiguous, turned by angles (T, D / 2)."""
    call = _attend_op if torch.compiler.is_compiling() else _Attend.apply
    return call(qkv, cos, sin)
