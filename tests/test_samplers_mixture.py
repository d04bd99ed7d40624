"""Solvers on a mixture of Gaussians over the frames: a law that is not Gaussian, whose score is known.

Component k has weight w_k, mean μ_k and covariance Σ_k. In noise of covariance σ²S it is N(μ_k, C_k) with
C_k = Σ_k + σ²S, and the denoiser is D(x) = Σ_k r_k(x) (μ_k + Σ_k C_k⁻¹ (x - μ_k)), r_k being the posterior weights.
"""

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import pytest
import torch
from test_noise import FALSE_ALARM, generator, pixels_as_draws
from torch import Tensor

from pyoco_pipeline.diffusion import SOLVERS, Churn, karras_sigmas, sample, sample_dpmpp_2m_sde
from pyoco_pipeline.noise import IIDNoise, MixedNoise, NoisePrior, ProgressiveNoise

FRAMES = 3
PRIORS = [IIDNoise(), MixedNoise(1.0), ProgressiveNoise(2.0)]
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[0.7, 0.5, 0.2], [-0.6, -0.7, -0.4], [0.2, -0.6, 0.9]], dtype=torch.float64)
COVARIANCES = torch.stack(
    [
        0.10 * torch.eye(FRAMES, dtype=torch.float64),
        0.15 * MixedNoise(1.5).covariance(FRAMES),
        0.20 * ProgressiveNoise(0.5).covariance(FRAMES),
    ]
)
MEAN = WEIGHTS @ MEANS
SECOND_MOMENT = torch.einsum("k,kst->st", WEIGHTS, COVARIANCES + MEANS[:, :, None] * MEANS[:, None, :])
COVARIANCE = SECOND_MOMENT - torch.outer(MEAN, MEAN)


class MixtureDenoiser:
    """The exact denoiser of the mixture, pixel by pixel, at one σ for the batch."""

    def __init__(self, prior: NoisePrior) -> None:
        self.noise = prior.covariance(FRAMES)

    def log_densities(self, draws: Tensor, sigma: float) -> Tensor:
        """ln w_k N(x; μ_k, C_k) of draws (n, T): (n, K)."""
        noisy = torch.distributions.MultivariateNormal(
            MEANS.to(draws), (COVARIANCES + sigma**2 * self.noise).to(draws), validate_args=False
        )
        return noisy.log_prob(draws[:, None]) + WEIGHTS.log().to(draws)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        level, draws = sigma[0].item(), pixels_as_draws(x)
        gains = COVARIANCES @ torch.linalg.inv(COVARIANCES + level**2 * self.noise)
        offsets = MEANS - torch.einsum("kst,kt->ks", gains, MEANS)
        denoised = torch.einsum("kst,nt->nks", gains.to(x), draws) + offsets.to(x)
        shares = self.log_densities(draws, level).softmax(dim=1)
        batch, channels, frames, height, width = x.shape
        x0 = torch.einsum("nk,nks->ns", shares, denoised)
        return x0.view(batch, channels, height, width, frames).movedim(-1, 2)


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_the_denoiser_is_x_plus_sigma_squared_s_times_the_score(prior: NoisePrior) -> None:
    sigma, denoise = 0.6, MixtureDenoiser(prior)
    draws = torch.randn(50, FRAMES, dtype=torch.float64, generator=generator(0), requires_grad=True)
    log_density = denoise.log_densities(draws, sigma).logsumexp(dim=1)
    (score,) = torch.autograd.grad(log_density.sum(), draws)
    x = draws.detach().view(50, 1, FRAMES, 1, 1)
    expected = draws + sigma**2 * score @ prior.covariance(FRAMES)
    torch.testing.assert_close(pixels_as_draws(denoise(x, torch.full((50,), sigma))), expected)


# The law of the samples


def assert_moments(draws: Tensor, allowance: float) -> None:
    """n independent draws (n, T) have the mixture's mean and second moments, up to `allowance`.

    An average of n terms is within z standard errors of its expectation, by the central limit theorem, but for a
    probability that over all averages adds up to FALSE_ALARM; z = 5.3.
    """
    draws = draws.double()
    upper = torch.triu_indices(FRAMES, FRAMES)
    terms = torch.cat([draws, draws[:, upper[0]] * draws[:, upper[1]]], dim=1)
    expected = torch.cat([MEAN, SECOND_MOMENT[upper[0], upper[1]]])
    z = -NormalDist().inv_cdf(FALSE_ALARM / (2 * len(expected)))
    bound = allowance + z * terms.std(dim=0) / math.sqrt(len(terms))
    deviation = (terms.mean(dim=0) - expected).abs()
    assert (deviation <= bound).all(), f"off by {(deviation / bound).max():.2f} times the bound"


# Of 20,000 draws, z standard errors are up to 0.026. Enough steps for solvers to be off by less, at most 0.014
# (measured with 400,000 draws; the most is Euler with churn).
STEPS = {"euler": 200, "euler_ancestral": 400, "dpmpp_2m_sde": 100}
RUNS: list[tuple[str, dict[str, Any]]] = [
    *((solver, {}) for solver in SOLVERS),
    ("euler", {"churn": Churn(s_churn=5.0)}),
    ("heun", {"churn": Churn(s_churn=5.0)}),
    ("dpmpp_2m_sde", {"eta": 0.5}),
    ("euler_ancestral", {"eta": 0.5}),
]


def mixture_clips(prior: NoisePrior, solver: str, **options: Any) -> Tensor:
    steps = STEPS.get(solver, 50)
    return sample(
        MixtureDenoiser(prior), prior, (1, 1, FRAMES, 100, 200), solver=solver, steps=steps, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "options"), RUNS)
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_samples_have_the_mean_and_covariance_of_the_mixture(
    prior: NoisePrior, solver: str, options: dict[str, Any]
) -> None:
    clips = mixture_clips(prior, solver, generator=generator(1), **options)
    assert_moments(pixels_as_draws(clips), allowance=0.015)


def test_iid_noise_injected_into_correlated_noise_would_be_seen() -> None:
    # The counterpart of the test above.
    prior = MixedNoise(1.0)
    start = 80 * prior.sample((1, 1, FRAMES, 100, 200), generator=generator(3))
    clips = sample_dpmpp_2m_sde(
        MixtureDenoiser(prior), start, karras_sigmas(50), prior=IIDNoise(), generator=generator(4)
    )
    with pytest.raises(AssertionError, match="times the bound"):
        assert_moments(pixels_as_draws(clips), allowance=0.015)


# Order of convergence

LEVELS = (80.0, 0.05)  # σ from and to; the step to 0 is D itself, for every solver
POINTS = 40


def start_points(prior: NoisePrior) -> Tensor:
    shape = (POINTS, 1, FRAMES, 1, 1)
    return LEVELS[0] * prior.sample(shape, generator=generator(2), dtype=torch.float64)


@functools.cache
def exact_solution(prior: NoisePrior) -> Tensor:
    """By the classical Runge-Kutta method in λ = -ln σ, where dx/dλ = D - x."""
    denoise, x, steps = MixtureDenoiser(prior), start_points(prior), 800
    h = math.log(LEVELS[0] / LEVELS[1]) / steps

    def slope(x: Tensor, lam: float) -> Tensor:
        return denoise(x, torch.full((POINTS,), math.exp(-lam), dtype=torch.float64)) - x

    for i in range(steps):
        lam = i * h - math.log(LEVELS[0])
        k1 = slope(x, lam)
        k2 = slope(x + h / 2 * k1, lam + h / 2)
        k3 = slope(x + h / 2 * k2, lam + h / 2)
        k4 = slope(x + h * k3, lam + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def karras_levels(steps: int) -> Tensor:
    return karras_sigmas(steps + 1, sigma_min=LEVELS[1], sigma_max=LEVELS[0])[:-1]


def uneven_levels(steps: int) -> Tensor:
    """In ln σ, every second step is twice as long; to an even number of steps."""
    lengths = torch.tensor([1.0, 2.0], dtype=torch.float64).repeat(steps // 2).cumsum(0)
    shares = torch.cat([lengths.new_zeros(1), lengths / lengths[-1]])
    return LEVELS[0] * (LEVELS[1] / LEVELS[0]) ** shares


def errors(
    prior: NoisePrior, solver: str, steps: list[int], levels: Callable[[int], Tensor] = karras_levels
) -> Tensor:
    """The root mean square error over the points, for each number of steps."""
    results = []
    for count in steps:
        end = SOLVERS[solver](MixtureDenoiser(prior), start_points(prior), levels(count), prior=prior)
        results.append((end - exact_solution(prior)).square().mean().sqrt())
    return torch.stack(results)


def fitted_slope(steps: list[int], values: Tensor) -> float:
    x, y = torch.tensor(steps, dtype=torch.float64).log(), values.log()
    x = x - x.mean()
    return (x @ (y - y.mean()) / (x @ x)).item()


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpmpp_3m", 3), ("deis", 3)]
)
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_the_error_falls_with_the_order_of_the_solver(prior: NoisePrior, solver: str, order: int) -> None:
    steps = [64, 96, 128, 192, 256]
    assert fitted_slope(steps, errors(prior, solver, steps)) == pytest.approx(-order, abs=0.15)


@pytest.mark.parametrize(("solver", "order"), [("dpmpp_2m", 2), ("dpmpp_3m", 3), ("deis", 3)])
def test_uneven_steps_keep_the_order_of_a_multistep_solver(solver: str, order: int) -> None:
    steps = [64, 96, 128, 192, 256]
    slope = fitted_slope(steps, errors(MixedNoise(1.0), solver, steps, uneven_levels))
    assert slope == pytest.approx(-order, abs=0.15)


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_at_twenty_steps_a_higher_order_is_nearer(prior: NoisePrior) -> None:
    error = {
        solver: errors(prior, solver, [20]).item() for solver in ("euler", "dpmpp_2m", "dpmpp_3m", "deis")
    }
    assert error["dpmpp_2m"] < error["euler"] / 2
    assert error["dpmpp_3m"] < error["dpmpp_2m"]
    assert error["deis"] < error["dpmpp_2m"]
