"""Solvers on correlated Gaussian clips, whose denoiser and whose ODE have closed forms.

Data of covariance Σ over the frames in noise of covariance σ²S has the denoiser D(x; σ) = Σ (Σ + σ²S)⁻¹ x.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_noise import assert_covariance, generator, pixels_as_draws
from torch import Tensor

from pyoco_pipeline.diffusion import (
    SOLVERS,
    Churn,
    karras_sigmas,
    sample,
    sample_euler,
    sample_heun,
    solvers_with,
)
from pyoco_pipeline.noise import (
    CovarianceNoise,
    IIDNoise,
    MixedNoise,
    NoisePrior,
    ProgressiveNoise,
)

FRAMES = 5
SIGMA_MAX = 80.0
DATA = 0.25 * CovarianceNoise([1.0, 0.6, 0.1, -0.2, -0.2]).covariance(FRAMES)
PRIORS = [IIDNoise(), MixedNoise(1.0), ProgressiveNoise(2.0)]
FULL_CHURN = Churn(s_churn=1e9)  # every step at the largest γ, √2 - 1


def along_frames(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (T, T) times x (B, C, T, H, W) on the frame axis."""
    return torch.einsum("st,bcthw->bcshw", matrix.to(x), x)


class GaussianDenoiser:
    """The exact denoiser of Gaussian clips, and a record of the noise levels it was asked at."""

    def __init__(self, data: Tensor, prior: NoisePrior) -> None:
        self.data, self.noise = data, prior.covariance(len(data))
        self.levels: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),)
        self.levels.append(sigma[0].item())
        return along_frames(self.data @ torch.linalg.inv(self.data + self.levels[-1] ** 2 * self.noise), x)


def only_noise(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of a data set of one black clip."""
    return torch.zeros_like(x)


def sqrtm(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return vectors * eigenvalues.clamp(min=0).sqrt() @ vectors.T


def exact_ode(data: Tensor, prior: NoisePrior, start: float, end: float) -> Tensor:
    """(T, T) map of the ODE's solution from σ = start to end.

    In y = S^-½ x the denoiser is A(A + σ²)⁻¹ with A = S^-½ Σ S^-½, and dy/dσ = σ(A + σ²)⁻¹ y is solved by
    y(σ) ∝ (A + σ²)^½.
    """
    root = sqrtm(prior.covariance(len(data)))
    inverse = torch.linalg.inv(root)
    whitened = inverse @ data @ inverse
    eye = torch.eye(len(data), dtype=torch.float64)
    return (
        root @ sqrtm(whitened + end**2 * eye) @ torch.linalg.inv(sqrtm(whitened + start**2 * eye)) @ inverse
    )


def solver_map(solver: Callable[..., Tensor], data: Tensor, prior: NoisePrior, sigmas: Tensor) -> Tensor:
    """(T, T) map that the solver applies, as the solver is linear where the denoiser is."""
    basis = torch.eye(len(data), dtype=torch.float64).view(1, 1, len(data), len(data), 1)
    return solver(GaussianDenoiser(data, prior), basis, sigmas, prior=prior)[0, 0, :, :, 0]


# The law of the samples


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_heun_turns_noise_of_the_prior_into_the_data_covariance(prior: NoisePrior) -> None:
    # Without drawing: the covariance of the result is M σ_max² S Mᵀ. It lacks what the start lacks of the
    # data, a share of 0.25/80² = 4e-5, and has Heun's error at 100 steps, 0.003 as measured.
    transport = solver_map(sample_heun, DATA, prior, karras_sigmas(100))
    covariance = SIGMA_MAX**2 * transport @ prior.covariance(FRAMES) @ transport.T
    torch.testing.assert_close(covariance, DATA, rtol=0, atol=0.01 * 0.25)


@pytest.mark.parametrize("solver", sorted(SOLVERS.keys() - solvers_with("eta")))
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_sampled_clips_have_the_covariance_that_the_solver_maps_the_prior_to(
    prior: NoisePrior, solver: str
) -> None:
    clips = sample(
        GaussianDenoiser(DATA, prior), prior, (2, 2, FRAMES, 64, 64), solver=solver, generator=generator(0)
    )
    transport = solver_map(SOLVERS[solver], DATA, prior, karras_sigmas(18))
    expected = SIGMA_MAX**2 * transport @ prior.covariance(FRAMES) @ transport.T
    assert_covariance(pixels_as_draws(clips), expected)


def test_a_start_of_another_law_misses_the_data_covariance() -> None:
    # The counterpart of the two tests above: the denoiser knows mixed noise, but the start is i.i.d.
    transport = solver_map(sample_heun, DATA, MixedNoise(1.0), karras_sigmas(100))
    covariance = SIGMA_MAX**2 * transport @ transport.T
    assert (covariance - DATA).abs().max() > 0.1 * 0.25


# Order of convergence


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_the_error_falls_with_the_order_of_the_solver(prior: NoisePrior, solver: str, order: int) -> None:
    # From a fixed start at σ = 10 to σ = 0.05, as the step to 0 is one of Euler for both.
    steps = [32, 64, 128, 256]
    exact = exact_ode(DATA, prior, start=10.0, end=0.05)
    errors = []
    for count in steps:
        sigmas = karras_sigmas(count + 1, sigma_min=0.05, sigma_max=10.0)[:-1]
        errors.append((solver_map(SOLVERS[solver], DATA, prior, sigmas) - exact).norm().log())
    x = torch.tensor(steps, dtype=torch.float64).log()
    x, y = x - x.mean(), torch.stack(errors)
    slope = (x @ (y - y.mean()) / (x @ x)).item()
    assert slope == pytest.approx(-order, abs=0.1)


def test_heun_evaluates_twice_but_for_the_step_to_zero() -> None:
    noise = torch.ones(1, 1, FRAMES, 1, 1, dtype=torch.float64)
    sigmas = torch.tensor([4.0, 2.0, 0.0])
    for solver, levels in ((sample_euler, [4.0, 2.0]), (sample_heun, [4.0, 2.0, 2.0])):
        denoise = GaussianDenoiser(DATA, IIDNoise())
        solver(denoise, noise, sigmas, prior=IIDNoise())
        assert denoise.levels == levels


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_denoiser_that_knows_the_clip_is_followed_to_it(solver: str) -> None:
    clip = torch.randn(2, 1, 3, 4, 4, generator=generator(1), dtype=torch.float64)
    result = sample(
        lambda x, sigma: clip, MixedNoise(1.0), clip.shape, solver=solver, steps=5, dtype=torch.float64
    )
    torch.testing.assert_close(result, clip)


# Churn


@pytest.mark.parametrize("solver", [sample_euler, sample_heun])
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_churn_keeps_the_prior_covariance(prior: NoisePrior, solver: Callable[..., Tensor]) -> None:
    # With only noise to find, every step along dx/dσ = x/σ is exact, and x at σ = 1 a draw of the prior.
    sigmas = torch.linspace(10, 1, 9)
    start = 10 * prior.sample((2, 2, FRAMES, 96, 96), generator=generator(2))
    end = solver(only_noise, start, sigmas, prior=prior, generator=generator(3), churn=FULL_CHURN)
    assert not torch.allclose(end, start / 10)
    assert_covariance(pixels_as_draws(end), prior.covariance(FRAMES))


def test_one_full_churn_step_of_iid_noise_would_halve_the_correlation() -> None:
    # σ̂ = √2 σ: half of the variance is new, and with i.i.d. noise so is half of the covariance: S/2 + I/2.
    start = 10 * MixedNoise(1.0).sample((2, 2, FRAMES, 96, 96), generator=generator(4))
    end = sample_euler(
        only_noise, start, [10.0, 1.0], prior=IIDNoise(), generator=generator(5), churn=FULL_CHURN
    )
    expected = torch.full((FRAMES, FRAMES), 0.25, dtype=torch.float64).fill_diagonal_(1.0)
    assert_covariance(pixels_as_draws(end), expected)
    with pytest.raises(AssertionError, match="times the bound"):
        assert_covariance(pixels_as_draws(end), MixedNoise(1.0).covariance(FRAMES))


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_churned_samples_have_the_data_covariance(prior: NoisePrior) -> None:
    # A churned step takes a covariance K at σ to M (K + (σ̂² - σ²) S) Mᵀ at the next σ, M being Heun's map.
    churn, sigmas, noise = Churn(s_churn=40.0), karras_sigmas(64), prior.covariance(FRAMES)
    covariance = SIGMA_MAX**2 * noise
    for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        sigma_hat = sigma * (1 + min(40.0 / 64, math.sqrt(2) - 1))
        step = solver_map(
            sample_heun, DATA, prior, torch.tensor([sigma_hat, sigma_next], dtype=torch.float64)
        )
        covariance = step @ (covariance + (sigma_hat**2 - sigma**2) * noise) @ step.T
    clips = sample(
        GaussianDenoiser(DATA, prior),
        prior,
        (2, 2, FRAMES, 64, 64),
        steps=64,
        churn=churn,
        generator=generator(6),
    )
    assert_covariance(pixels_as_draws(clips), covariance)
    torch.testing.assert_close(covariance, DATA, rtol=0, atol=0.1 * 0.25)


@pytest.mark.parametrize(("s_churn", "gamma"), [(0.4, 0.1), (1.2, 0.3), (40.0, math.sqrt(2) - 1)])
def test_churn_raises_sigma_by_its_share_and_at_most_to_root_two(s_churn: float, gamma: float) -> None:
    denoise = GaussianDenoiser(DATA, IIDNoise())
    noise = torch.ones(1, 1, FRAMES, 1, 1, dtype=torch.float64)
    sample_euler(denoise, noise, [8.0, 4.0, 2.0, 1.0, 0.0], prior=IIDNoise(), churn=Churn(s_churn))
    assert denoise.levels == pytest.approx([s * (1 + gamma) for s in (8.0, 4.0, 2.0, 1.0)])


def test_churn_stays_within_its_noise_levels() -> None:
    denoise = GaussianDenoiser(DATA, IIDNoise())
    noise = torch.ones(1, 1, FRAMES, 1, 1, dtype=torch.float64)
    churn = Churn(s_churn=0.4, s_tmin=2.0, s_tmax=4.0)
    sample_euler(denoise, noise, [8.0, 4.0, 2.0, 1.0, 0.0], prior=IIDNoise(), churn=churn)
    assert denoise.levels == pytest.approx([8.0, 4.4, 2.2, 1.0])


def test_s_noise_is_the_standard_deviation_of_the_noise_that_churn_adds() -> None:
    # With σ̂² = 2σ², the variance after churn is σ²(1 + s²), and the step to σ = 1 divides it by 2σ².
    start = 10 * IIDNoise().sample((2, 2, 1, 96, 96), generator=generator(7))
    churn = Churn(s_churn=1e9, s_noise=1.5)
    end = sample_euler(only_noise, start, [10.0, 1.0], prior=IIDNoise(), generator=generator(8), churn=churn)
    assert_covariance(pixels_as_draws(end), torch.tensor([[(1 + 1.5**2) / 2]], dtype=torch.float64))


@pytest.mark.parametrize(
    "options", [{"s_churn": -1.0}, {"s_churn": math.nan}, {"s_tmin": 2.0, "s_tmax": 1.0}, {"s_noise": -0.1}]
)
def test_churn_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"s_\w+ is"):
        Churn(**options)


# sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conditions_reach_the_denoiser_and_the_result_has_the_dtype_asked_for(dtype: torch.dtype) -> None:
    def denoise(x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        assert x.dtype == sigma.dtype == dtype
        return text.view(-1, 1, 1, 1, 1).expand_as(x).float()

    text = torch.tensor([1.0, 2.0])
    clips = sample(denoise, MixedNoise(1.0), (2, 1, 3, 2, 2), steps=3, dtype=dtype, text=text)
    assert clips.dtype == dtype
    torch.testing.assert_close(clips[1], torch.full_like(clips[1], 2.0))


def test_sampling_keeps_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    clips = sample(lambda x, sigma: weight * torch.zeros_like(x), IIDNoise(), (1, 1, 1, 2, 2), steps=2)
    assert not clips.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "ddim"}, "solver is 'ddim': expected one of euler, heun"),
        ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16"),
        ({"steps": 0}, "steps is 0"),
        (
            {"solver": "deis", "churn": Churn(s_churn=1.0)},
            "churn is .* and solver deis, which has none: .* one of euler, heun",
        ),
        ({"solver": "euler_ancestral", "churn": FULL_CHURN}, "churn is .* and solver euler_ancestral"),
        (
            {"solver": "heun", "eta": 0.0},
            r"eta is 0\.0 and solver heun, which has none: .* one of dpmpp_2m_sde, euler_ancestral",
        ),
        ({"solver": "dpmpp_2m_sde", "eta": 2.0}, r"eta is 2\.0"),
        ({"generator": [generator(0)]}, "generator holds 1: expected one, or 2"),
    ],
)
def test_what_cannot_be_sampled_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(only_noise, MixedNoise(1.0), (2, 1, 3, 2, 2), **options)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.0, 0.0], [-1.0, 0.0], [math.nan, 0.0], [1.0, math.inf]])
def test_a_solver_needs_positive_levels_but_for_the_last(
    sigmas: list[float], solver: Callable[..., Tensor]
) -> None:
    with pytest.raises(ValueError, match="sigmas is"):
        solver(only_noise, torch.zeros(1, 1, 1, 1, 1), sigmas, prior=IIDNoise())


@pytest.mark.parametrize(
    ("solver", "option"),
    [(name, option) for option in ("churn", "eta") for name in sorted(SOLVERS.keys() - solvers_with(option))],
)
def test_an_option_that_a_solver_does_not_have_is_not_taken_for_a_condition(solver: str, option: str) -> None:
    def denoise(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return x

    x, options = torch.zeros(1, 1, 1, 1, 1), {option: 0.5}
    with pytest.raises(ValueError, match=f"{option} is given: this solver has no such option"):
        SOLVERS[solver](denoise, x, [1.0, 0.0], prior=IIDNoise(), **options)
