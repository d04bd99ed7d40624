"""A Triton kernel that draws mixed and progressive noise in one pass over memory; imported only on a CUDA GPU.

torch.randn and a product with the covariance's factor read and write the clip three times; here each pixel's frames
follow one another in registers. Random numbers are Philox's, by (seed, place in the clip), so that a clip does not
depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


@triton.jit
def _next(carry, z, i, shared, fresh, PROGRESSIVE: tl.constexpr):
    """The noise that z, the i-th draw of a pixel, makes, and what is carried on to the next."""
    noise = shared * carry + fresh * z
    if PROGRESSIVE:
        noise = tl.where(i == 0, z, noise)
        return noise, noise
    return noise, tl.where(i == 0, z, carry)


@triton.jit
def _correlated_kernel(
    out_ptr, seed_ptr, T, HW, CHW, shared, fresh, PROGRESSIVE: tl.constexpr, BLOCK: tl.constexpr
):
    clip = tl.program_id(0).to(tl.int64)
    seed = tl.load(seed_ptr + clip)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < CHW
    first = out_ptr + clip * CHW * T + (pixel // HW).to(tl.int64) * HW * T + pixel % HW
    kind = out_ptr.dtype.element_ty
    # Of mixed noise the draw before frame 0 is what all frames share.
    lead = 0 if PROGRESSIVE else 1
    carry = tl.zeros([BLOCK], tl.float32)
    for i in range(0, T + lead, 4):
        z0, z1, z2, z3 = tl.randn4x(seed, pixel + (i // 4) * CHW)
        noise, carry = _next(carry, z0, i, shared, fresh, PROGRESSIVE)
        t = i - lead
        tl.store(first + t * HW, noise.to(kind), mask=inside & (t >= 0) & (t < T))
        noise, carry = _next(carry, z1, i + 1, shared, fresh, PROGRESSIVE)
        tl.store(first + (t + 1) * HW, noise.to(kind), mask=inside & (t + 1 < T))
        noise, carry = _next(carry, z2, i + 2, shared, fresh, PROGRESSIVE)
        tl.store(first + (t + 2) * HW, noise.to(kind), mask=inside & (t + 2 < T))
        noise, carry = _next(carry, z3, i + 3, shared, fresh, PROGRESSIVE)
        tl.store(first + (t + 3) * HW, noise.to(kind), mask=inside & (t + 3 < T))


def draw_correlated(
    shape: Sequence[int],
    shared: float,
    fresh: float,
    *,
    progressive: bool,
    generators: Sequence[torch.Generator] | torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Noise (B, C, T, H, W): each frame is shared times the one before it (mixed: times a common one) plus fresh noise.

    generators: one, or one per clip, on `device`. dtype: float32 or narrower.
    """
    batch, channels, frames, height, width = shape
    out = torch.empty(tuple(shape), device=device, dtype=dtype)
    grid = (batch, triton.cdiv(channels * height * width, _BLOCK))
    _correlated_kernel[grid](
        out, _seeds(batch, generators, device), frames, height * width, channels * height * width, shared, fresh,
        PROGRESSIVE=progressive, BLOCK=_BLOCK,
    )  # fmt: skip
    return out


def _seeds(
    batch: int, generators: Sequence[torch.Generator] | torch.Generator | None, device: torch.device
) -> Tensor:
    if generators is None or isinstance(generators, torch.Generator):
        return torch.randint(2**62, (batch,), generator=generators, device=device)
    return torch.cat([torch.randint(2**62, (1,), generator=g, device=device) for g in generators])
