"""What the solvers of the probability-flow ODE dx/dσ = (x - D(x; σ))/σ and of its SDEs share (EDM, arXiv 2206.00364).

They are the same under frame-correlated noise: with noise of covariance σ²S, Tweedie's formula is
D(x) = x + σ² S ∇log p(x; σ), and D absorbs S. What remains to be drawn is the start and the noise that a solver
injects on its way, and both come from one prior.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise
from pyoco_pipeline.noise import Generators, NoisePrior

# What a solver may take beside the arguments of `Solver`: churn (`Churn`) or eta, its share of the SDE's noise.
OPTIONS = ("churn", "eta")


class Solver(Protocol):
    """From x (B, C, T, H, W) at noise level sigmas[0] to sigmas[-1]; x at the last level is returned.

    denoise:    denoise(x, sigma, **cond) -> x0, with sigma (B,) of x's dtype.
    sigmas:     noise levels (N + 1,), positive but for the last, which may be 0; else ValueError.
    prior:      the law that injected noise is drawn from, the same as that of the start.
    generator:  for injected noise; one, or B of them.
    cond:       passed to denoise. ValueError for an option that the solver does not have.
    """

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        *,
        prior: NoisePrior,
        generator: Generators = None,
        **cond: Any,
    ) -> Tensor: ...


def steps_between(sigmas: Tensor | Sequence[float], cond: dict[str, Any]) -> list[tuple[float, float]]:
    """(σ_i, σ_{i+1}) of every step, as numbers: a tensor on a GPU would be waited for at every step."""
    for option in OPTIONS:
        if option in cond:
            raise ValueError(f"{option} is given: this solver has no such option.")
    levels = [float(s) for s in (sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas)]
    positive = all(0 < s < math.inf for s in levels[:-1])
    if len(levels) < 2 or not positive or not 0 <= levels[-1] < math.inf:
        raise ValueError(f"sigmas is {levels}: expected at least two levels, positive but for the last.")
    return list(pairwise(levels))


def falling_steps(sigmas: Tensor | Sequence[float], cond: dict[str, Any]) -> list[tuple[float, float]]:
    """`steps_between` of levels that fall; else ValueError."""
    steps = steps_between(sigmas, cond)
    for i, (sigma, sigma_next) in enumerate(steps):
        if sigma_next >= sigma:
            raise ValueError(
                f"sigmas goes from {sigma:g} to {sigma_next:g} at step {i}: expected falling levels."
            )
    return steps


def checked_eta(eta: float) -> float:
    """The share of the SDE's noise that is injected: 0 none (the ODE), 1 all of it; else ValueError."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}: expected a number from 0 (no injected noise) to 1.")
    return eta


def add_noise(x: Tensor, std: float, prior: NoisePrior, generator: Generators) -> Tensor:
    """x with noise of the prior of that standard deviation; at 0 nothing is drawn."""
    if std == 0:
        return x
    return x + std * prior.sample(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def denoised(denoise: Denoise, x: Tensor, sigma: float, cond: dict[str, Any]) -> Tensor:
    """D(x; σ), of x's dtype."""
    sigma_per_clip = torch.full(x.shape[:1], sigma, dtype=x.dtype, device=x.device)
    return denoise(x, sigma_per_clip, **cond).to(x.dtype)


def derivative(denoise: Denoise, x: Tensor, sigma: float, cond: dict[str, Any]) -> Tensor:
    """dx/dσ = (x - D(x; σ))/σ (EDM, Algorithm 2, line 7): the noise ε that D sees in x."""
    return (x - denoised(denoise, x, sigma, cond)) / sigma
