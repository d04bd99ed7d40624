"""Multistep solvers: their coefficients on any grid, their first and last steps, and diffusers' results."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DEISMultistepScheduler, EDMDPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from test_diffusion_samplers import DATA, FRAMES, GaussianDenoiser, only_noise
from test_noise import generator
from torch import Tensor

from pyoco_pipeline.diffusion import (
    karras_sigmas,
    sample_deis,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m,
    sample_euler,
    sample_euler_ancestral,
)
from pyoco_pipeline.diffusion.multistep import _lagrange_weights, _moments
from pyoco_pipeline.noise import IIDNoise, MixedNoise

MULTISTEP = [sample_dpmpp_2m, sample_dpmpp_3m, sample_deis, sample_dpmpp_2m_sde]
UNEVEN = [20.0, 12.0, 11.0, 4.0, 3.9, 1.0, 0.2, 0.15, 0.02]


def start(value: float = 1.0) -> Tensor:
    return torch.full((1, 1, 1, 1, 1), value, dtype=torch.float64)


# Coefficients


@given(st.floats(-30, 30).filter(lambda a: a != 0))
def test_moments_are_the_integrals_of_the_exponential_times_powers(a: float) -> None:
    # Simpson's rule on 2,000 intervals is off by at most (a/2000)⁴ eᵃ/180 or so.
    s = torch.linspace(0, 1, 2001, dtype=torch.float64)
    rule = torch.full_like(s, 2 / 6000)
    rule[1::2], rule[0], rule[-1] = 4 / 6000, 1 / 6000, 1 / 6000
    for k, moment in enumerate(_moments(a, 3)):
        assert moment == pytest.approx((rule * (a * s).exp() * s**k).sum().item(), rel=1e-8)


@given(st.floats(-1, 1).filter(lambda a: a != 0))
def test_moments_of_short_steps_keep_their_digits(a: float) -> None:
    # By parts, ∫ eᵃˢ sᵏ = (eᵃ - k ∫ eᵃˢ sᵏ⁻¹)/a; here multiplied by a, as dividing by a small one is what loses digits.
    m = _moments(a, 3)
    assert a * m[0] == pytest.approx(math.expm1(a), rel=1e-14, abs=1e-300)
    for k in (1, 2):
        assert a * m[k] + k * m[k - 1] == pytest.approx(math.exp(a), rel=1e-14)


@pytest.mark.parametrize("nodes", [[0.0], [0.0, -0.3], [0.0, -0.3, -5.0], [0.0, -2.0, -2.1]])
def test_weights_integrate_the_polynomial_through_the_nodes(nodes: list[float]) -> None:
    moments = [1.7, 0.6, -0.4][: len(nodes)]
    weights = _lagrange_weights(nodes, moments)
    for power, moment in enumerate(moments):
        integral = sum(w * node**power for w, node in zip(weights, nodes, strict=True))
        assert integral == pytest.approx(moment, abs=1e-12)


def quadratic(lam: float) -> float:
    return 0.3 - 0.8 * lam + 0.5 * lam**2


def test_3m_is_exact_from_the_third_step_on_where_d_is_quadratic_in_log_sigma() -> None:
    # dx/dλ = D - x with D = q(λ) is solved by x = p(λ) + c e^-λ with p = q - q' + q'': what the lower-order first
    # steps are off by shrinks in proportion to σ, and nothing is added to it.
    def exact(sigma: float) -> float:
        lam = -math.log(sigma)
        return quadratic(lam) - (-0.8 + lam) + 1.0 + 3.0 * sigma

    errors = []
    for end in range(2, len(UNEVEN) + 1):
        levels = UNEVEN[:end]
        x = sample_dpmpp_3m(
            lambda x, sigma: torch.full_like(x, quadratic(-math.log(sigma.item()))),
            start(exact(levels[0])),
            levels,
            prior=IIDNoise(),
        )
        errors.append((x.item() - exact(levels[-1])) / levels[-1])
    assert abs(errors[0]) > 1e-3
    assert errors[1:] != pytest.approx([errors[0]] * (len(errors) - 1))
    assert errors[2:] == pytest.approx([errors[1]] * (len(errors) - 2), rel=1e-9)


def test_deis_is_exact_from_the_third_step_on_where_epsilon_is_quadratic_in_log_sigma() -> None:
    # dx/dσ = q(ln σ) is solved by x = σ (q - q' + q''), primes by ln σ.
    def exact(sigma: float) -> float:
        log = math.log(sigma)
        return sigma * (quadratic(log) - (-0.8 + log) + 1.0) + 3.0

    errors = []
    for end in range(2, len(UNEVEN) + 1):
        levels = UNEVEN[:end]
        x = sample_deis(
            lambda x, sigma: x - sigma.item() * quadratic(math.log(sigma.item())),
            start(exact(levels[0])),
            levels,
            prior=IIDNoise(),
        )
        errors.append(x.item() - exact(levels[-1]))
    assert abs(errors[0]) > 1e-3
    assert errors[2:] == pytest.approx([errors[1]] * (len(errors) - 2), rel=1e-9)


# The first and the last step


@pytest.mark.parametrize("solver", [sample_dpmpp_2m, sample_dpmpp_3m, sample_deis])
def test_a_first_step_is_one_of_euler(solver: Callable[..., Tensor]) -> None:
    denoise, x = (
        GaussianDenoiser(DATA, MixedNoise(1.0)),
        torch.randn(1, 1, FRAMES, 2, 2, generator=generator(0)),
    )
    one = solver(denoise, x.double(), [3.0, 1.0], prior=IIDNoise())
    torch.testing.assert_close(one, sample_euler(denoise, x.double(), [3.0, 1.0], prior=IIDNoise()))


@pytest.mark.parametrize("solver", MULTISTEP)
def test_the_step_to_zero_is_the_denoised_clip(solver: Callable[..., Tensor]) -> None:
    denoise, x = (
        GaussianDenoiser(DATA, MixedNoise(1.0)),
        torch.randn(1, 1, FRAMES, 2, 2, generator=generator(1)),
    )
    x = x.double()
    options = {"eta": 0.0} if solver is sample_dpmpp_2m_sde else {}
    before = solver(denoise, x, [3.0, 1.0, 0.4], prior=IIDNoise(), **options)
    after = solver(denoise, x, [3.0, 1.0, 0.4, 0.0], prior=IIDNoise(), **options)
    torch.testing.assert_close(after, denoise(before, torch.tensor([0.4])))
    alone = solver(denoise, x, [0.4, 0.0], prior=IIDNoise(), **options)
    torch.testing.assert_close(alone, denoise(x, torch.tensor([0.4])))


@pytest.mark.parametrize("solver", MULTISTEP)
def test_a_step_asks_the_denoiser_once(solver: Callable[..., Tensor]) -> None:
    denoise = GaussianDenoiser(DATA, IIDNoise())
    x = torch.ones(1, 1, FRAMES, 1, 1, dtype=torch.float64)
    solver(denoise, x, UNEVEN, prior=IIDNoise())
    assert denoise.levels == UNEVEN[:-1]


@pytest.mark.parametrize("levels", [[1.0, 2.0], [2.0, 1.0, 1.0, 0.0]])
@pytest.mark.parametrize("solver", [*MULTISTEP, sample_euler_ancestral])
def test_levels_that_do_not_fall_are_refused(solver: Callable[..., Tensor], levels: list[float]) -> None:
    with pytest.raises(ValueError, match=r"sigmas goes from 1 to [12] at step [01]: expected falling levels"):
        solver(only_noise, start(), levels, prior=IIDNoise())


# diffusers


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_2m_and_its_sde_are_those_of_diffusers(eta: float) -> None:
    steps, sigma_data = 12, 0.5
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.002,
        sigma_max=80.0,
        sigma_data=sigma_data,
        solver_order=2,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    denoise, prior = GaussianDenoiser(DATA, IIDNoise()), IIDNoise()
    x = theirs = 80 * prior.sample((1, 1, FRAMES, 8, 8), generator=generator(2))
    draws = generator(3)
    for sigma, t in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        total = sigma**2 + sigma_data**2
        c_skip, c_out = sigma_data**2 / total, sigma * sigma_data / total.sqrt()
        output = (denoise(theirs, sigma[None]) - c_skip * theirs) / c_out
        theirs = scheduler.step(output, t, theirs, generator=draws).prev_sample
    ours = sample_dpmpp_2m_sde(denoise, x, karras_sigmas(steps), prior=prior, generator=generator(3), eta=eta)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_deis_takes_the_steps_of_diffusers() -> None:
    # Theirs is on the axis of a DDPM schedule, where x is divided by √(1 + σ²), and is given ε.
    scheduler = DEISMultistepScheduler(solver_order=3)
    scheduler.sigmas = torch.tensor(UNEVEN, dtype=torch.float64)
    denoise = GaussianDenoiser(DATA, IIDNoise())
    x = torch.randn(1, 1, FRAMES, 2, 2, generator=generator(4), dtype=torch.float64) * UNEVEN[0]
    epsilons = []
    for i, sigma in enumerate(UNEVEN[:-1]):
        before = sample_deis(denoise, x, UNEVEN[: i + 1], prior=IIDNoise()) if i else x
        epsilons.append((before - denoise(before, torch.tensor([sigma]))) / sigma)
        if i < 2:
            continue
        scheduler._step_index = i
        theirs = scheduler.multistep_deis_third_order_update(
            epsilons[-3:], sample=before / math.sqrt(1 + sigma**2)
        )
        ours = sample_deis(denoise, x, UNEVEN[: i + 2], prior=IIDNoise())
        torch.testing.assert_close(ours, theirs * math.sqrt(1 + UNEVEN[i + 1] ** 2))
