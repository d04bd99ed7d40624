"""Sampling: noise of a prior, a schedule of noise levels, and a solver by its name."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise
from pyoco_pipeline.diffusion.multistep import (
    sample_deis,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m,
)
from pyoco_pipeline.diffusion.sigma import karras_sigmas
from pyoco_pipeline.diffusion.single_step import (
    NO_CHURN,
    Churn,
    sample_euler,
    sample_euler_ancestral,
    sample_heun,
)
from pyoco_pipeline.diffusion.solver import Solver
from pyoco_pipeline.noise import Generators, NoisePrior

SOLVERS: dict[str, Solver] = {
    "euler": sample_euler,
    "heun": sample_heun,
    "dpmpp_2m": sample_dpmpp_2m,
    "dpmpp_3m": sample_dpmpp_3m,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "deis": sample_deis,
    "euler_ancestral": sample_euler_ancestral,
}


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
    eta: float | None = None,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    start: Tensor | None = None,
    init: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """Clips (B, C, T, H, W) from noise of the prior, on the schedule of `karras_sigmas`.

    solver: a key of SOLVERS. churn: for euler and heun. eta: for dpmpp_2m_sde and euler_ancestral, the share of the
        SDE's noise, in [0, 1]; None is the solver's own, 1.
    generator: one, or B of them to make a clip's noise independent of its batch.
    dtype: of the solver's state and of the result, float32 or float64. cond: passed to denoise.
    start: noise of unit variance, of that shape, to start from; None draws it from the prior.
    init: clean clips of that shape, to start from init + sigma_max noise: what of them is kept the more, the lower
        sigma_max (SDEdit, Meng et al., arXiv 2108.01073). None starts from noise alone.
    Raises ValueError on an unknown solver, churn or eta for one that has none, another dtype or shape, and where prior
    or schedule refuse their arguments.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}: expected one of {', '.join(SOLVERS)}.")
    options = _solver_options(solver, churn, eta)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype}: expected torch.float32 or torch.float64.")
    sigmas = karras_sigmas(steps, sigma_min, sigma_max, rho)
    if start is None:
        noise = prior.sample(shape, generator=generator, device=device, dtype=dtype)
    else:
        noise = _of_shape("start", start, shape).to(device=device, dtype=dtype)
    x = sigma_max * noise
    if init is not None:
        x = x + _of_shape("init", init, shape).to(x)
    return SOLVERS[solver](denoise, x, sigmas, prior=prior, generator=generator, **options, **cond)


def solvers_with(option: str) -> list[str]:
    """The solvers that take `option`, churn or eta."""
    return [name for name, solver in SOLVERS.items() if option in inspect.signature(solver).parameters]


def _of_shape(name: str, clips: Tensor, shape: Sequence[int]) -> Tensor:
    if tuple(clips.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(clips.shape)}: expected {tuple(shape)}.")
    return clips


def _solver_options(solver: str, churn: Churn, eta: float | None) -> dict[str, Any]:
    """What is asked for, as keyword arguments of the solver; ValueError for what it doesn't have."""
    asked: dict[str, Any] = {}
    if churn.s_churn > 0:
        asked["churn"] = churn
    if eta is not None:
        asked["eta"] = eta
    for option, value in asked.items():
        if solver not in (having := solvers_with(option)):
            raise ValueError(
                f"{option} is {value} and solver {solver}, which has none: leave {option} out, or take one of "
                f"{', '.join(having)}."
            )
    return asked
