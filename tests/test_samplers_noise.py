"""Solvers that inject noise: it is the prior's, in the amount that keeps the law of the clips.

Data of covariance Σ over the frames in noise of covariance σ²S has the covariance Σ + σ²S at every σ. With Gaussian
data a solver is linear in the start and in each draw, so the covariance it ends with is known without drawing.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_diffusion_samplers import DATA, FRAMES, PRIORS, GaussianDenoiser, only_noise
from test_noise import assert_covariance, generator, pixels_as_draws
from test_samplers_mixture import fitted_slope
from torch import Tensor

from pyoco_pipeline.diffusion import SOLVERS, Churn, karras_sigmas, sample, solvers_with
from pyoco_pipeline.noise import IIDNoise, MixedNoise, NoisePrior

INJECTING = [
    ("euler", {"churn": Churn(s_churn=20.0)}),
    ("heun", {"churn": Churn(s_churn=20.0)}),
    ("euler_ancestral", {}),
    ("euler_ancestral", {"eta": 0.4}),
    ("dpmpp_2m_sde", {}),
    ("dpmpp_2m_sde", {"eta": 0.4}),
]


class UnitDraws(NoisePrior):
    """Instead of noise, the unit vectors of the frames: in draw k for clip k, so that its response can be read off."""

    name = "unit"
    alpha = None

    def __init__(self) -> None:
        self.draws = 0

    def sample(self, shape: Any, **_: Any) -> Tensor:  # type: ignore[override]
        self.draws += 1
        noise = torch.zeros(tuple(shape), dtype=torch.float64)
        noise[self.draws, 0, :, :, 0] = torch.eye(FRAMES, dtype=torch.float64)
        return noise

    def covariance(self, num_frames: int) -> Tensor:
        raise NotImplementedError

    def _factor(self, num_frames: int) -> Tensor | None:
        raise NotImplementedError

    def _stream(self, white: Any) -> Iterator[Tensor]:
        raise NotImplementedError


def final_covariance(prior: NoisePrior, solver: str, sigmas: Tensor, **options: Any) -> Tensor:
    """(T, T) of the solver's result, from a start that has the right law, Σ + σ²S at σ = sigmas[0]."""
    start = torch.zeros(len(sigmas), 1, FRAMES, FRAMES, 1, dtype=torch.float64)
    start[0, 0, :, :, 0] = torch.eye(FRAMES, dtype=torch.float64)
    end = SOLVERS[solver](GaussianDenoiser(DATA, prior), start, sigmas, prior=UnitDraws(), **options)
    first, *responses = end[:, 0, :, :, 0]
    noise = prior.covariance(FRAMES)
    covariance = first @ (DATA + sigmas[0] ** 2 * noise) @ first.T
    return covariance + sum(response @ noise @ response.T for response in responses)


def covariance_error(prior: NoisePrior, solver: str, steps: int, **options: Any) -> Tensor:
    sigmas = karras_sigmas(steps + 1, sigma_min=0.05, sigma_max=80.0)[:-1]
    exact = DATA + 0.05**2 * prior.covariance(FRAMES)
    return (final_covariance(prior, solver, sigmas, **options) - exact).norm() / exact.norm()


# The covariance that a solver ends with


@pytest.mark.parametrize(
    ("solver", "options", "order"),
    [
        ("euler_ancestral", {}, 1),
        ("euler_ancestral", {"eta": 0.4}, 1),
        ("dpmpp_2m_sde", {}, 2),
        ("dpmpp_2m_sde", {"eta": 0.4}, 2),
    ],
)
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_the_covariance_converges_with_the_order_of_the_solver(
    prior: NoisePrior, solver: str, options: dict[str, Any], order: int
) -> None:
    steps = [64, 128, 256]
    errors = torch.stack([covariance_error(prior, solver, count, **options) for count in steps])
    assert fitted_slope(steps, errors) == pytest.approx(-order, abs=0.1)
    assert errors[-1] < 0.04


@pytest.mark.parametrize(("solver", "options"), INJECTING)
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_where_there_is_only_noise_every_level_has_the_prior_covariance(
    prior: NoisePrior, solver: str, options: dict[str, Any]
) -> None:
    # With D = 0 every step is exact, however long. At the end, σ = 1, clips are draws of the prior.
    sigmas = [10.0, 6.0, 5.5, 2.0, 1.0]
    start = 10 * prior.sample((2, 2, FRAMES, 64, 64), generator=generator(0))
    end = SOLVERS[solver](only_noise, start, sigmas, prior=prior, generator=generator(1), **options)
    assert not torch.allclose(end, start / 10, atol=0.1)
    assert_covariance(pixels_as_draws(end), prior.covariance(FRAMES))


@pytest.mark.parametrize(("solver", "options"), INJECTING)
def test_iid_noise_injected_into_correlated_noise_would_be_seen(solver: str, options: dict[str, Any]) -> None:
    # The counterpart of the test above.
    start = 10 * MixedNoise(1.0).sample((2, 2, FRAMES, 64, 64), generator=generator(2))
    sigmas = [10.0, 6.0, 5.5, 2.0, 1.0]
    end = SOLVERS[solver](only_noise, start, sigmas, prior=IIDNoise(), generator=generator(3), **options)
    with pytest.raises(AssertionError, match="times the bound"):
        assert_covariance(pixels_as_draws(end), MixedNoise(1.0).covariance(FRAMES))


# Eta


@pytest.mark.parametrize(("solver", "ode"), [("euler_ancestral", "euler"), ("dpmpp_2m_sde", "dpmpp_2m")])
def test_eta_zero_is_the_solver_of_the_ode(solver: str, ode: str) -> None:
    prior, shape = MixedNoise(1.0), (1, 1, FRAMES, 2, 2)
    start = 80 * prior.sample(shape, generator=generator(4), dtype=torch.float64)
    denoise, draws = GaussianDenoiser(DATA, prior), UnitDraws()
    clips = SOLVERS[solver](denoise, start, karras_sigmas(6), prior=draws, eta=0.0)
    assert draws.draws == 0
    torch.testing.assert_close(clips, SOLVERS[ode](denoise, start, karras_sigmas(6), prior=prior))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("solver", solvers_with("eta"))
def test_eta_is_the_share_of_the_noise(solver: str, eta: float) -> None:
    # From σ = 2 to 1 with D = 0, the variance 1 at the end is what is left of the start, a² 2², and what is new.
    new = {
        "euler_ancestral": eta**2 * (1 - 1 / 4),  # DDIM's η scales the standard deviation of DDPM
        "dpmpp_2m_sde": 1 - (1 / 2) ** (2 * eta),  # the SDE's η its diffusion: the start decays by 2^-(1+η)
    }
    start = torch.zeros(2, 1, FRAMES, FRAMES, 1, dtype=torch.float64)
    start[0, 0, :, :, 0] = torch.eye(FRAMES, dtype=torch.float64)
    end = SOLVERS[solver](only_noise, start, [2.0, 1.0], prior=UnitDraws(), eta=eta)
    kept, drawn = (end[:, 0, 0, 0, 0] ** 2).tolist()
    assert drawn == pytest.approx(new[solver])
    assert 4 * kept + drawn == pytest.approx(1.0)


@pytest.mark.parametrize("solver", solvers_with("eta"))
def test_eta_is_one_unless_given_and_the_step_to_zero_adds_none(solver: str) -> None:
    prior, shape = MixedNoise(1.0), (1, 1, FRAMES, 2, 2)

    def clips(**options: Any) -> Tensor:
        denoise = GaussianDenoiser(DATA, prior)
        return sample(denoise, prior, shape, solver=solver, steps=5, generator=generator(5), **options)

    assert torch.equal(clips(), clips(eta=1.0))
    assert not torch.equal(clips(), clips(eta=0.9))
    draws = UnitDraws()
    start = torch.zeros(4, 1, FRAMES, FRAMES, 1, dtype=torch.float64)
    SOLVERS[solver](only_noise, start, [4.0, 2.0, 1.0, 0.0], prior=draws)
    assert draws.draws == 2


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("solver", solvers_with("eta"))
def test_eta_out_of_range_is_refused(solver: str, eta: float) -> None:
    with pytest.raises(ValueError, match=f"eta is {eta}: expected a number from 0"):
        SOLVERS[solver](only_noise, torch.zeros(1, 1, 1, 1, 1), [1.0, 0.0], prior=IIDNoise(), eta=eta)


# The batch


@pytest.mark.parametrize(("solver", "options"), [*((name, {}) for name in SOLVERS), *INJECTING])
def test_a_clip_with_its_own_generator_does_not_depend_on_its_batch(
    solver: str, options: dict[str, Any]
) -> None:
    prior, shape = MixedNoise(1.0), (1, FRAMES, 4, 4)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1, 1) ** 2)

    def clips(*seeds: int) -> Tensor:
        generators = [generator(seed) for seed in seeds]
        shape_of_all = (len(seeds), *shape)
        return sample(denoise, prior, shape_of_all, solver=solver, steps=5, generator=generators, **options)

    assert torch.equal(clips(0, 1, 2)[1], clips(1)[0])
    assert not torch.equal(clips(0), clips(1))
