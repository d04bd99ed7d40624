"""Known frames: they are returned as they are, and the rest goes with them where its noise goes with theirs."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_diffusion_samplers import GaussianDenoiser
from test_noise import all_priors, assert_covariance, generator, pixels_as_draws
from torch import Tensor

from pyoco_pipeline.diffusion import (
    SOLVERS,
    Churn,
    ClassifierFreeGuidance,
    DiscreteDenoiser,
    KnownFrames,
    TiledDenoiser,
    discrete_sigmas,
    karras_sigmas,
    make_betas,
    noise_around,
    sample,
    sampling_range,
)
from pyoco_pipeline.diffusion.inversion import invert
from pyoco_pipeline.noise import CovarianceNoise, IIDNoise, MixedNoise, NoisePrior, ProgressiveNoise

FRAMES, GIVEN, SIGMA_MAX = 8, 4, 80.0
FIRST = torch.arange(FRAMES) < GIVEN
DATA = 0.25 * CovarianceNoise([0.9**lag for lag in range(FRAMES)]).covariance(
    FRAMES
)  # a process of order one
SOME = torch.tensor([[True, False, False, True, False, False], [False, False, True, True, True, False]])


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    return x / (1 + sigma.view(-1, 1, 1, 1, 1) ** 2)


def clips_with_known_frames(solver: str, known: Tensor, **options: Any) -> Tensor:
    denoise = KnownFrames(shrink, known, SOME)
    options = {"generator": generator(0), "steps": 6} | options
    return sample(denoise, ProgressiveNoise(2.0), known.shape, solver=solver, **options)


# Known frames


@pytest.mark.parametrize(
    ("solver", "options"),
    [*((name, {}) for name in SOLVERS), ("euler", {"churn": Churn(9.0)}), ("heun", {"churn": Churn(9.0)})],
)
def test_known_frames_are_returned_as_they_are(solver: str, options: dict[str, Any]) -> None:
    known = torch.randn(2, 3, 6, 4, 4, generator=generator(1))
    clips, mask = (
        clips_with_known_frames(solver, known, **options),
        SOME[:, None, :, None, None].expand_as(known),
    )
    # Heun's last step leaves the rounding of (x - known)/σ σ.
    torch.testing.assert_close(clips[mask], known[mask], rtol=0, atol=1e-6 if solver == "heun" else 0)
    assert not torch.allclose(clips[~mask], known[~mask], atol=0.1)


def test_what_the_known_clip_holds_elsewhere_has_no_influence() -> None:
    known = torch.randn(2, 3, 6, 4, 4, generator=generator(1))
    other = torch.where(SOME[:, None, :, None, None], known, math.nan)
    assert torch.equal(clips_with_known_frames("heun", known), clips_with_known_frames("heun", other))


def test_the_denoiser_sees_known_frames_at_the_noise_level_of_the_others() -> None:
    known = torch.randn(2, 3, 6, 4, 4, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(known.shape, generator=generator(2), dtype=torch.float64)
    seen: list[tuple[float, Tensor]] = []

    def spy(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((sigma[0].item(), x.clone()))
        return shrink(x, sigma)

    mask = SOME[:, None, :, None, None]
    init = torch.where(mask, known, 0)
    options = {"start": noise, "init": init, "dtype": torch.float64, "steps": 6}
    sample(KnownFrames(spy, known, SOME), IIDNoise(), known.shape, solver="dpmpp_2m", **options)
    assert len(seen) == 6
    for sigma, x in seen:
        torch.testing.assert_close(torch.where(mask, x, 0), torch.where(mask, known + sigma * noise, 0))


def test_all_frames_may_be_known_or_none() -> None:
    known, sigma = torch.randn(2, 3, 6, 4, 4, generator=generator(1)), torch.ones(2)
    x = torch.randn(known.shape, generator=generator(2))
    every = torch.ones(6, dtype=torch.bool)
    assert torch.equal(KnownFrames(shrink, known, every)(x, sigma), known)
    assert torch.equal(KnownFrames(shrink, known, ~every)(x, sigma), shrink(x, sigma))


def test_guidance_stands_within_known_frames() -> None:
    def denoise(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return x * 0 + label.view(-1, 1, 1, 1, 1)

    known, label = torch.randn(2, 3, 6, 4, 4, generator=generator(1)), torch.tensor([3.0, 5.0])
    null = {"label": torch.tensor([-1.0])}
    guided = KnownFrames(ClassifierFreeGuidance(denoise, 2.0, null), known, SOME)
    expected = torch.where(SOME[:, None, :, None, None], known, torch.tensor([7.0, 11.0]).view(2, 1, 1, 1, 1))
    assert torch.equal(guided(torch.randn_like(known), torch.ones(2), label=label), expected)
    for wrong in (
        ClassifierFreeGuidance(KnownFrames(denoise, known, SOME), 2.0, null),
        TiledDenoiser(KnownFrames(denoise, known, SOME), (None, 2, 2)),
    ):
        with pytest.raises(ValueError, match="Guidance and tiles stand within KnownFrames"):
            wrong(torch.randn_like(known), torch.ones(2), label=label)


def test_known_frames_take_over_the_noise_levels_of_the_denoiser() -> None:
    denoise = DiscreteDenoiser(lambda x, t: x, discrete_sigmas(make_betas("linear", 1000)))
    known = KnownFrames(denoise, torch.zeros(2, 3, 6, 4, 4), SOME)
    assert sampling_range(known, None, None) == sampling_range(denoise, None, None)


# The rest, on Gaussian clips whose conditional mean is known. With no other noise than that of the known frames,
# everything is linear in them, and the mean of the rest is the result itself.


class Silent(NoisePrior):
    """The law of a prior without its randomness: every draw is its mean, 0."""

    name, alpha = "silent", None

    def __init__(self, prior: NoisePrior) -> None:
        self.prior = prior

    def sample(self, shape: Any, **options: Any) -> Tensor:  # type: ignore[override]
        return torch.zeros(tuple(shape), dtype=options["dtype"])

    def covariance(self, num_frames: int) -> Tensor:
        return self.prior.covariance(num_frames)

    def _factor(self, num_frames: int) -> Tensor | None:
        raise NotImplementedError

    def _stream(self, white: Any) -> Iterator[Tensor]:
        raise NotImplementedError


def error_of_the_mean(prior: NoisePrior, anew: bool) -> float:
    """Of the first frame after the known ones, in standard deviations of a frame."""
    # Clip k is that of known frames which are the k-th unit vector.
    known = torch.zeros(GIVEN, 1, FRAMES, 1, 1, dtype=torch.float64)
    known[:, 0, :GIVEN, 0, 0] = torch.eye(GIVEN, dtype=torch.float64)
    start = torch.zeros_like(known)
    if not anew:
        of_known = GaussianDenoiser(DATA[:GIVEN, :GIVEN], prior)
        start[:, :, :GIVEN] = invert(of_known, known[:, :, :GIVEN], steps=60) / SIGMA_MAX
        start = noise_around(Silent(prior), start, FIRST)
    denoise = KnownFrames(GaussianDenoiser(DATA, prior), known, FIRST)
    clips = sample(denoise, Silent(prior), known.shape, steps=60, start=start, dtype=torch.float64)
    exact = DATA[GIVEN, :GIVEN] @ torch.linalg.inv(DATA[:GIVEN, :GIVEN])
    off = clips[:, 0, GIVEN, 0, 0] - exact
    return ((off @ DATA[:GIVEN, :GIVEN] @ off) / DATA[0, 0]).sqrt().item()


@pytest.mark.parametrize(
    ("prior", "anew", "around"),
    [
        (IIDNoise(), 0.44, 0.20),
        (MixedNoise(1.0), 0.67, 0.15),
        (ProgressiveNoise(2.0), 0.89, 0.00),
    ],
    ids=repr,
)
def test_the_mean_of_the_rest_is_as_far_from_the_exact_one_as_it_is_said_to_be(
    prior: NoisePrior, anew: float, around: float
) -> None:
    assert error_of_the_mean(prior, anew=True) == pytest.approx(anew, abs=0.01)
    assert error_of_the_mean(prior, anew=False) == pytest.approx(around, abs=0.01)
    assert error_of_the_mean(prior, anew=False) < error_of_the_mean(prior, anew=True) / 2


def test_the_rest_is_correlated_with_the_known_frames_as_the_data_is() -> None:
    # All of it by drawing: known frames of the data, their noise, noise around it, and the clip.
    prior, shape = ProgressiveNoise(2.0), (1, 1, FRAMES, 128, 128)
    factor = torch.linalg.cholesky(DATA)
    white = torch.randn(FRAMES, 128 * 128, generator=generator(3), dtype=torch.float64)
    known = (factor @ white).view(shape)
    of_known = GaussianDenoiser(DATA[:GIVEN, :GIVEN], prior)
    noise = torch.full(shape, math.nan, dtype=torch.float64)
    noise[:, :, :GIVEN] = invert(of_known, known[:, :, :GIVEN], steps=60) / SIGMA_MAX

    def correlation(start: Tensor) -> float:
        denoise = KnownFrames(GaussianDenoiser(DATA, prior), known, FIRST)
        clips = sample(denoise, prior, shape, steps=60, start=start, dtype=torch.float64)
        last, new = clips[0, 0, GIVEN - 1].flatten(), clips[0, 0, GIVEN].flatten()
        return torch.corrcoef(torch.stack([last, new]))[0, 1].item()

    # Fisher's z of 16,384 pixels has the standard deviation 0.0078; five of them are exceeded once in 1.7 million.
    bound = 5 / math.sqrt(128 * 128 - 3)
    around = correlation(noise_around(prior, noise, FIRST, generator=generator(4)))
    anew = correlation(prior.sample(shape, generator=generator(5), dtype=torch.float64))
    assert abs(math.atanh(around) - math.atanh(0.9)) < bound + 0.02  # 0.02: what the method itself is off by
    assert abs(math.atanh(anew)) < bound + 0.02


# Noise around known noise


@pytest.mark.parametrize("prior", all_priors(), ids=repr)
def test_noise_around_noise_of_the_prior_has_the_law_of_the_prior(prior: NoisePrior) -> None:
    mask = torch.tensor([True, False, True, False])
    noise = prior.sample((2, 2, 4, 64, 64), generator=generator(6), dtype=torch.float64)
    drawn = noise_around(
        prior, torch.where(mask.view(1, 1, 4, 1, 1), noise, math.nan), mask, generator=generator(7)
    )
    assert torch.equal(drawn[:, :, mask], noise[:, :, mask])
    assert prior == MixedNoise(math.inf) or not torch.allclose(drawn, noise, atol=0.1)
    assert_covariance(pixels_as_draws(drawn), prior.covariance(4) + 1e-12)


def test_the_mask_of_known_noise_may_differ_from_clip_to_clip_and_a_clip_not_by_its_batch() -> None:
    prior, noise = ProgressiveNoise(2.0), torch.randn(2, 3, 6, 4, 4, generator=generator(8))
    both = noise_around(prior, noise, SOME, generator=[generator(9), generator(10)])
    one = noise_around(prior, noise[1:], SOME[1:], generator=[generator(10)])
    assert torch.equal(both[1], one[0])
    assert torch.equal(both[0, :, SOME[0]], noise[0, :, SOME[0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(noise_around(prior, noise[1:], SOME[1:], generator=[generator(10)]), one)


def test_noise_around_nothing_is_a_draw_and_around_all_is_what_is_known() -> None:
    prior, noise = MixedNoise(1.0), torch.randn(2, 3, 6, 4, 4, generator=generator(8))
    none, drawn = torch.zeros(6, dtype=torch.bool), prior.sample(noise.shape, generator=generator(9))
    assert torch.equal(noise_around(prior, noise, none, generator=generator(9)), drawn)
    assert torch.equal(noise_around(prior, noise, ~none), noise)


# What is refused, and sample's own arguments


@pytest.mark.parametrize(
    ("known", "is_known", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.ones(3, dtype=torch.bool), r"known has shape \(2, 3, 4, 4\)"),
        (
            torch.zeros(2, 3, 6, 4, 4),
            torch.ones(5, dtype=torch.bool),
            r"is_known has shape \(5,\) of torch.bool",
        ),
        (
            torch.zeros(2, 3, 6, 4, 4),
            torch.ones(6),
            r"of torch.float32: expected \(6,\) or \(2, 6\) of torch.bool",
        ),
        (torch.zeros(2, 3, 6, 4, 4), torch.ones(1, 6, dtype=torch.bool), r"expected \(6,\) or \(2, 6\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(known: Tensor, is_known: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KnownFrames(shrink, known, is_known)


def test_a_given_start_is_the_noise_that_sample_starts_from() -> None:
    prior, shape = ProgressiveNoise(2.0), (2, 1, 5, 4, 4)
    noise = prior.sample(shape, generator=generator(11))
    assert torch.equal(
        sample(shrink, prior, shape, start=noise), sample(shrink, prior, shape, generator=generator(11))
    )


@pytest.mark.parametrize("sigma_max", [0.5, 5.0])
def test_a_clip_to_edit_starts_at_sigma_max_with_the_noise_of_the_prior(sigma_max: float) -> None:
    prior, clip = ProgressiveNoise(2.0), torch.randn(2, 1, 5, 4, 4, generator=generator(12))
    seen: list[Tensor] = []

    def spy(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return shrink(x, sigma)

    options = {"solver": "dpmpp_2m", "steps": 4, "sigma_max": sigma_max}
    clips = sample(spy, prior, clip.shape, init=clip, generator=generator(13), **options)
    noise = prior.sample(clip.shape, generator=generator(13))
    torch.testing.assert_close(seen[0], clip + sigma_max * noise)
    expected = SOLVERS["dpmpp_2m"](
        shrink, clip + sigma_max * noise, karras_sigmas(4, sigma_max=sigma_max), prior=prior
    )
    torch.testing.assert_close(clips, expected)


@pytest.mark.parametrize("name", ["start", "init"])
def test_a_start_of_another_shape_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} has shape \(1, 1, 5, 4, 4\): expected \(2, 1, 5, 4, 4\)"):
        sample(shrink, IIDNoise(), (2, 1, 5, 4, 4), **{name: torch.zeros(1, 1, 5, 4, 4)})
