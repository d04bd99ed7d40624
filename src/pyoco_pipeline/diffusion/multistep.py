"""Solvers that reuse the denoised clips of earlier steps: DPM-Solver++ (arXiv 2211.01095) and DEIS (arXiv 2204.13902).

With λ = -ln σ, a step of length h = λ' - λ is exactly
    x' = e⁻ʰ x + ∫₀¹ h e^(-h(1-s)) D(λ + sh) ds    of dx/dλ = D - x,
    x' = x - σ ∫₀¹ h e^(-hs) ε(λ + sh) ds          of dx/dσ = ε = (x - D)/σ.
DPM-Solver++ puts a polynomial in λ through the last D, DEIS one through the last ε. The first steps, with fewer values
to go through, are of lower order, which is why the first noise level has to be high: there D hardly changes. The
step to σ = 0, infinitely long in λ, is D itself.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise
from pyoco_pipeline.diffusion.solver import add_noise, checked_eta, denoised, falling_steps
from pyoco_pipeline.noise import Generators, NoisePrior


@torch.no_grad()
def sample_dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    prior: NoisePrior,
    generator: Generators = None,
    **cond: Any,
) -> Tensor:
    """DPM-Solver++(2M), second order (Lu et al., arXiv 2211.01095, Algorithm 2); arguments as in `Solver`.

    Raises ValueError too where sigmas does not fall.
    """
    return _dpmpp_2m(denoise, x, sigmas, prior, generator, 0.0, cond)


@torch.no_grad()
def sample_dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    prior: NoisePrior,
    generator: Generators = None,
    eta: float = 1.0,
    **cond: Any,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al., arXiv 2211.01095); arguments as in `Solver`.

    eta: in [0, 1]; 1 is the paper's solver, of the reverse SDE, 0 `sample_dpmpp_2m`.
    Raises ValueError too where sigmas does not fall.
    """
    return _dpmpp_2m(denoise, x, sigmas, prior, generator, checked_eta(eta), cond)


@torch.no_grad()
def sample_dpmpp_3m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    prior: NoisePrior,
    generator: Generators = None,
    **cond: Any,
) -> Tensor:
    """DPM-Solver++(3M), third order (Lu et al., arXiv 2211.01095); arguments as in `Solver`.

    The polynomial is integrated exactly. Where it is written with a D2 that is a divided difference, half of the
    second derivative (diffusers, k-diffusion), the term is half of what it should be, and the order 2. With ten
    steps or fewer, 2M is nearer to the solution.
    Raises ValueError too where sigmas does not fall.
    """
    past: deque[tuple[float, Tensor]] = deque(maxlen=3)
    for sigma, sigma_next in falling_steps(sigmas, cond):
        past.appendleft((-math.log(sigma), denoised(denoise, x, sigma, cond)))
        if sigma_next == 0:
            return past[0][1]
        h = math.log(sigma / sigma_next)
        decay = sigma_next / sigma
        x = decay * x + _integral(past, h, [h * decay * m for m in _moments(h, len(past))])
    return x


@torch.no_grad()
def sample_deis(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    prior: NoisePrior,
    generator: Generators = None,
    **cond: Any,
) -> Tensor:
    """tAB-DEIS through three ε, third order (Zhang & Chen, arXiv 2204.13902); arguments as in `Solver`.

    t is ln σ, as in diffusers, where the paper has the time of a VP or VE process: the integrals have a closed form.
    Raises ValueError too where sigmas does not fall.
    """
    past: deque[tuple[float, Tensor]] = deque(maxlen=3)
    for sigma, sigma_next in falling_steps(sigmas, cond):
        x0 = denoised(denoise, x, sigma, cond)
        if sigma_next == 0:
            return x0
        past.appendleft((-math.log(sigma), (x - x0) / sigma))
        h = math.log(sigma / sigma_next)
        x = x + _integral(past, h, [-sigma * h * m for m in _moments(-h, len(past))])
    return x


def _dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    prior: NoisePrior,
    generator: Generators,
    eta: float,
    cond: dict[str, Any],
) -> Tensor:
    """The line through the last two D, taken at the middle of the step as in the paper's algorithm."""
    previous: tuple[float, Tensor] | None = None  # length of the last step, and D at its start
    for sigma, sigma_next in falling_steps(sigmas, cond):
        x0 = denoised(denoise, x, sigma, cond)
        if sigma_next == 0:
            return x0
        h = math.log(sigma / sigma_next)
        middle = x0 if previous is None else x0 + h / (2 * previous[0]) * (x0 - previous[1])
        # With eta, D and x relax (1 + eta) times as fast, and noise keeps the level at σ'.
        x = math.exp(-(1 + eta) * h) * x - math.expm1(-(1 + eta) * h) * middle
        x = add_noise(x, sigma_next * math.sqrt(-math.expm1(-2 * eta * h)), prior, generator)
        previous = h, x0
    return x


def _integral(past: Sequence[tuple[float, Tensor]], h: float, moments: Sequence[float]) -> Tensor:
    """∫ of the polynomial through the values of `past`, newest first, at their λ; moments: ∫ of 1, s, s², …"""
    nodes = [(lam - past[0][0]) / h for lam, _ in past]
    weights = _lagrange_weights(nodes, moments)
    # One term after another: stacking the clips would take three times their memory.
    total = weights[0] * past[0][1]
    for weight, (_, value) in zip(weights[1:], list(past)[1:], strict=True):
        total = total + weight * value
    return total


def _lagrange_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """w with Σ w_j f(nodes_j) = ∫ f for every polynomial f of degree below len(nodes); moments: ∫ sᵏ."""
    weights = []
    for j, node in enumerate(nodes):
        coefficients = [1.0]  # of Π (s - node_m)/(node_j - node_m), lowest power first
        for other in (*nodes[:j], *nodes[j + 1 :]):
            shifted, same = [0.0, *coefficients], [*coefficients, 0.0]
            coefficients = [(a - other * b) / (node - other) for a, b in zip(shifted, same, strict=True)]
        weights.append(sum(c * m for c, m in zip(coefficients, moments, strict=True)))
    return weights


def _moments(a: float, count: int) -> list[float]:
    """∫₀¹ eᵃˢ sᵏ ds for k = 0 … count - 1."""
    if abs(a) < 1:  # where the recursion below would lose digits
        return [sum(a**n / (math.factorial(n) * (n + k + 1)) for n in range(20)) for k in range(count)]
    moments = [math.expm1(a) / a]
    for k in range(1, count):
        moments.append((math.exp(a) - k * moments[-1]) / a)
    return moments
