"""Inversion: the noise from which a deterministic solver would sample a given clip.

The probability-flow ODE dx/dσ = (x - D(x; σ))/σ (EDM, arXiv 2206.00364, eq. 1) is solved from σ = 0 up to σ_max, by the
solver that samples, run backwards (DDIM inversion: Song et al., arXiv 2010.02502, sec. 5.3; there of first order).
"""

from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise
from pyoco_pipeline.diffusion.sigma import karras_sigmas
from pyoco_pipeline.diffusion.single_step import sample_heun
from pyoco_pipeline.diffusion.solver import derivative
from pyoco_pipeline.noise import IIDNoise


@torch.no_grad()
def invert(
    denoise: Denoise,
    x0: Tensor,
    *,
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    **cond: Any,
) -> Tensor:
    """x (B, C, T, H, W) at sigma_max that the ODE joins with clean clips x0, in x0's dtype; 2 steps - 1 evaluations.

    x / sigma_max is the noise map: N(0, I) where denoise is the exact denoiser of the law of x0, up to a share
    Var(x0)/sigma_max² of the clip itself. denoise: on frames as an image model does, the maps of a clip's frames know
    nothing of each other. steps: at least 2; the levels are `karras_sigmas`, rising. cond is passed to denoise.
    Raises ValueError where x0 is not finite, and where the schedule refuses its arguments.
    """
    if not x0.isfinite().all():
        raise ValueError("x0 holds values that are not finite: expected clean clips.")
    rising = _falling_levels(steps, sigma_min, sigma_max, rho).flip(0)
    # Heun's step from σ = 0, where dx/dσ = -σ ∇log p is 0 and D can't be asked.
    x = x0 + sigma_min / 2 * derivative(denoise, x0, sigma_min, cond)
    return sample_heun(denoise, x, rising, prior=IIDNoise(), **cond)


@torch.no_grad()
def reconstruct(
    denoise: Denoise,
    x: Tensor,
    *,
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    **cond: Any,
) -> Tensor:
    """The clips x0 that `invert` took to x, by the same steps downwards; what is missing from them is its error.

    Arguments and errors as for `invert`; the error falls with the square of `steps`.
    """
    falling = _falling_levels(steps, sigma_min, sigma_max, rho)
    x = sample_heun(denoise, x, falling, prior=IIDNoise(), **cond)
    return x - sigma_min / 2 * derivative(denoise, x, sigma_min, cond)


def _falling_levels(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    if steps < 2:
        raise ValueError(f"steps is {steps}: expected at least 2, from σ = 0 to sigma_min and from there on.")
    return karras_sigmas(steps, sigma_min, sigma_max, rho)[:-1]
