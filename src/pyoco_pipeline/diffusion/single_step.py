"""Solvers that know one step at a time: Euler and Heun with optional churn (EDM, arXiv 2206.00364), ancestral Euler."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise
from pyoco_pipeline.diffusion.solver import (
    add_noise,
    checked_eta,
    denoised,
    derivative,
    falling_steps,
    steps_between,
)
from pyoco_pipeline.noise import Generators, NoisePrior


@dataclass(frozen=True)
class Churn:
    """Noise added before each step, EDM Algorithm 2; the default adds none. ValueError outside the ranges."""

    s_churn: float = 0.0  # total amount over all steps, at least 0; a step raises σ by at most a factor of √2
    s_tmin: float = 0.0  # only at noise levels σ from here …
    s_tmax: float = math.inf  # … to here
    s_noise: float = 1.0  # standard deviation of the added noise relative to the exact one, at least 0

    def __post_init__(self) -> None:
        if not 0 <= self.s_churn < math.inf:
            raise ValueError(f"s_churn is {self.s_churn}: expected a finite number of at least 0.")
        if not 0 <= self.s_noise < math.inf:
            raise ValueError(f"s_noise is {self.s_noise}: expected a finite number of at least 0.")
        if not 0 <= self.s_tmin <= self.s_tmax:
            raise ValueError(f"s_tmin is {self.s_tmin} and s_tmax {self.s_tmax}: expected 0 <= min <= max.")

    def gamma(self, sigma: float, steps: int) -> float:
        """Relative increase of σ before the step at `sigma`, one of `steps`: γ_i of Algorithm 2."""
        return min(self.s_churn / steps, math.sqrt(2) - 1) if self.s_tmin <= sigma <= self.s_tmax else 0.0


NO_CHURN = Churn()


@torch.no_grad()
def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    prior: NoisePrior,
    generator: Generators = None,
    churn: Churn = NO_CHURN,
    **cond: Any,
) -> Tensor:
    """Euler steps: EDM Algorithm 2 (Karras et al. 2022) without lines 9-11; arguments as in `Solver`."""
    steps = steps_between(sigmas, cond)
    for sigma, sigma_next in steps:
        x_hat, sigma_hat = _churned(x, sigma, len(steps), churn, prior, generator)
        x0 = denoised(denoise, x_hat, sigma_hat, cond)
        # x̂ + (σ - σ̂) d, written so that rounding at a large σ̂ does not stay in x.
        x = x0 + (sigma_next / sigma_hat) * (x_hat - x0)
    return x


@torch.no_grad()
def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    prior: NoisePrior,
    generator: Generators = None,
    churn: Churn = NO_CHURN,
    **cond: Any,
) -> Tensor:
    """Heun's second-order steps: EDM Algorithm 2 (Karras et al. 2022); arguments as in `Solver`."""
    steps = steps_between(sigmas, cond)
    for sigma, sigma_next in steps:
        x_hat, sigma_hat = _churned(x, sigma, len(steps), churn, prior, generator)
        d = derivative(denoise, x_hat, sigma_hat, cond)
        x = x_hat + (sigma_next - sigma_hat) * d
        if sigma_next > 0:
            d_next = derivative(denoise, x, sigma_next, cond)
            x = x_hat + (sigma_next - sigma_hat) * (d + d_next) / 2
    return x


@torch.no_grad()
def sample_euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    prior: NoisePrior,
    generator: Generators = None,
    eta: float = 1.0,
    **cond: Any,
) -> Tensor:
    """Euler steps below the next level and noise back up to it; arguments as in `Solver`.

    eta: in [0, 1]; 1 is DDPM's ancestral sampling (Ho et al. 2020), 0 `sample_euler`; in between, DDIM's η (Song et
        al., arXiv 2010.02502, eq. 16, on the σ axis).
    Raises ValueError too where sigmas does not fall.
    """
    checked_eta(eta)
    for sigma, sigma_next in falling_steps(sigmas, cond):
        sigma_up = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        sigma_down = math.sqrt(sigma_next**2 - sigma_up**2)
        x0 = denoised(denoise, x, sigma, cond)
        x = add_noise(x0 + (sigma_down / sigma) * (x - x0), sigma_up, prior, generator)
    return x


def _churned(
    x: Tensor, sigma: float, steps: int, churn: Churn, prior: NoisePrior, generator: Generators
) -> tuple[Tensor, float]:
    """x raised from σ to σ̂ = (1 + γ) σ (Algorithm 2, lines 4-6)."""
    sigma_hat = (1 + churn.gamma(sigma, steps)) * sigma
    std = math.sqrt(sigma_hat**2 - sigma**2) * churn.s_noise
    return add_noise(x, std, prior, generator), sigma_hat
