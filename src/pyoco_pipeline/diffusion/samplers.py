"""Solvers of the probability-flow ODE dx/dσ = (x - D(x; σ))/σ, with optional churn (EDM, Karras et al. 2022).

The ODE is the same under frame-correlated noise: with noise of covariance σ²S, Tweedie's formula is
D(x) = x + σ² S ∇log p(x; σ), and D absorbs S. What remains to be drawn is the start and the noise that churn
adds, and both come from one prior.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise
from pyoco_pipeline.diffusion.sigma import karras_sigmas
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


class Solver(Protocol):
    """From x (B, C, T, H, W) at noise level sigmas[0] to sigmas[-1]; x at the last level is returned.

    denoise:    denoise(x, sigma, **cond) -> x0, with sigma (B,) of x's dtype.
    sigmas:     noise levels (N + 1,), positive but for the last, which may be 0; else ValueError.
    prior:      the law that churn noise is drawn from, the same as that of the start.
    generator:  for churn; one, or B of them.
    """

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        *,
        prior: NoisePrior,
        generator: Generators = None,
        churn: Churn = NO_CHURN,
        **cond: Any,
    ) -> Tensor: ...


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
    for sigma, sigma_next, gamma in _steps(sigmas, churn):
        x_hat, sigma_hat = _add_noise(x, sigma, gamma, churn.s_noise, prior, generator)
        d = _derivative(denoise, x_hat, sigma_hat, cond)
        x = x_hat + (sigma_next - sigma_hat) * d
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
    for sigma, sigma_next, gamma in _steps(sigmas, churn):
        x_hat, sigma_hat = _add_noise(x, sigma, gamma, churn.s_noise, prior, generator)
        d = _derivative(denoise, x_hat, sigma_hat, cond)
        x = x_hat + (sigma_next - sigma_hat) * d
        if sigma_next > 0:
            d_next = _derivative(denoise, x, sigma_next, cond)
            x = x_hat + (sigma_next - sigma_hat) * (d + d_next) / 2
    return x


SOLVERS: dict[str, Solver] = {"euler": sample_euler, "heun": sample_heun}


@torch.no_grad()
def sample(
    denoise: Denoise,
    prior: NoisePrior,
    shape: Sequence[int],
    *,
    solver: str = "heun",
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    churn: Churn = NO_CHURN,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    **cond: Any,
) -> Tensor:
    """Clips (B, C, T, H, W) from noise of the prior, on the schedule of `karras_sigmas`.

    solver: a key of SOLVERS. generator: one, or B of them to make a clip's noise independent of its batch.
    dtype: of the solver's state and of the result, float32 or float64. cond: passed to denoise.
    Raises ValueError on an unknown solver, another dtype, and where prior or schedule refuse their arguments.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}: expected one of {', '.join(SOLVERS)}.")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype}: expected torch.float32 or torch.float64.")
    sigmas = karras_sigmas(steps, sigma_min, sigma_max, rho)
    x = sigma_max * prior.sample(shape, generator=generator, device=device, dtype=dtype)
    return SOLVERS[solver](denoise, x, sigmas, prior=prior, generator=generator, churn=churn, **cond)


def _steps(sigmas: Tensor | Sequence[float], churn: Churn) -> list[tuple[float, float, float]]:
    """(σ_i, σ_{i+1}, γ_i) of every step, as numbers: a tensor on a GPU would be waited for at every step."""
    levels = [float(s) for s in (sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas)]
    positive = all(0 < s < math.inf for s in levels[:-1])
    if len(levels) < 2 or not positive or not 0 <= levels[-1] < math.inf:
        raise ValueError(f"sigmas is {levels}: expected at least two levels, positive but for the last.")
    steps = len(levels) - 1
    return [(levels[i], levels[i + 1], churn.gamma(levels[i], steps)) for i in range(steps)]


def _add_noise(
    x: Tensor, sigma: float, gamma: float, s_noise: float, prior: NoisePrior, generator: Generators
) -> tuple[Tensor, float]:
    """x raised from σ to σ̂ = (1 + γ) σ (Algorithm 2, lines 4-6)."""
    if gamma == 0:
        return x, sigma
    sigma_hat = (1 + gamma) * sigma
    noise = prior.sample(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x + math.sqrt(sigma_hat**2 - sigma**2) * s_noise * noise, sigma_hat


def _derivative(denoise: Denoise, x: Tensor, sigma: float, cond: dict[str, Any]) -> Tensor:
    """dx/dσ (Algorithm 2, line 7)."""
    sigma_per_clip = torch.full(x.shape[:1], sigma, dtype=x.dtype, device=x.device)
    return (x - denoise(x, sigma_per_clip, **cond).to(x.dtype)) / sigma
