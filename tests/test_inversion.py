"""Inversion on Gaussian clips, whose flow is known: x(σ) = x0 √((v + σ²)/v) for each principal axis of variance v."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import make_unet, text_condition
from torch import Tensor

from pyoco_pipeline.diffusion import Discrete, EDMDenoiser
from pyoco_pipeline.diffusion.inversion import invert, reconstruct
from pyoco_pipeline.models import FrameByFrame
from pyoco_pipeline.noise import CovarianceNoise, ProgressiveNoise

VARIANCE = 0.25
SIGMA_MAX = 80.0


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """Exact for independent pixels of N(0, VARIANCE), as an image model's is that sees each frame alone."""
    level = sigma.view(-1, 1, 1, 1, 1)
    return x * VARIANCE / (VARIANCE + level**2)


def clips(count: int = 4, frames: int = 3, seed: int = 0, **noise: Any) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    prior = noise.get("prior", ProgressiveNoise(1.0))
    return math.sqrt(VARIANCE) * prior.sample((count, 2, frames, 8, 8), generator=draw, dtype=torch.float64)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_inversion_follows_the_exact_flow_with_an_error_of_second_order() -> None:
    x0 = clips()
    exact = x0 * math.sqrt((VARIANCE + SIGMA_MAX**2) / VARIANCE)
    steps = [40, 80, 160, 320]
    errors = [relative_error(invert(gaussian_denoiser, x0, steps=n), exact) for n in steps]
    assert errors[-1] < 1e-3
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(1.8 < order < 2.4 for order in orders), (errors, orders)


def test_what_is_sampled_back_from_the_noise_is_the_clip_with_an_error_of_second_order() -> None:
    x0 = clips()
    steps = [40, 80, 160, 320]
    errors = [
        relative_error(reconstruct(gaussian_denoiser, invert(gaussian_denoiser, x0, steps=n), steps=n), x0)
        for n in steps
    ]
    assert errors[-1] < 1e-3
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(order > 1.8 for order in orders), (errors, orders)


def test_noise_maps_have_unit_variance_and_the_correlation_of_the_frames() -> None:
    """The flow of one frame is a factor, so maps keep the frames' correlation; 4 standard errors of each entry."""
    prior = CovarianceNoise([1.0, 0.6, 0.1, -0.2])
    x0 = clips(200, 4, prior=prior)
    maps = invert(gaussian_denoiser, x0, steps=60) / SIGMA_MAX
    draws = maps.movedim(2, -1).reshape(-1, 4)
    expected = prior.covariance(4)
    # Var(xy) = 1 + ρ² for unit variances.
    error = ((1 + expected**2) / len(draws)).sqrt()
    assert ((draws.T @ draws / len(draws) - expected).abs() < 4 * error + 2e-3).all()


@pytest.mark.parametrize("kind", ["edm", "epsilon", "v_prediction"])
def test_a_network_is_inverted_through_its_denoiser_whatever_it_predicts(kind: str) -> None:
    network = FrameByFrame(make_unet())
    if kind == "edm":
        denoise: Any = EDMDenoiser(network)
    else:
        denoise = Discrete(kind, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).denoiser(
            network
        )
    levels = {"sigma_min": denoise.sigma_min, "sigma_max": denoise.sigma_max}
    x0 = 0.5 * torch.randn(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cond = text_condition(2)
    errors = []
    for steps in (20, 80):
        x = invert(denoise, x0, steps=steps, **levels, **cond)
        assert x.dtype == x0.dtype
        errors.append(relative_error(reconstruct(denoise, x, steps=steps, **levels, **cond), x0))
    assert errors[1] < errors[0] / 8, errors  # of second order: 16
    assert errors[1] < 0.1, errors  # weights are random, which no step size suits


def test_a_frame_of_a_clip_is_inverted_as_if_it_were_alone() -> None:
    denoise = EDMDenoiser(FrameByFrame(make_unet()))
    x0, cond = clips(2, 3)[:, :1].repeat(1, 3, 1, 1, 1), text_condition(2)
    whole = invert(denoise, x0, steps=4, **cond)
    alone = invert(denoise, x0[:, :, 1:2], steps=4, **cond)
    torch.testing.assert_close(whole[:, :, 1:2], alone, rtol=1e-4, atol=1e-4)


def test_clips_that_are_not_finite_and_a_single_step_are_refused() -> None:
    x0 = clips()
    with pytest.raises(ValueError, match="steps is 1: expected at least 2"):
        invert(gaussian_denoiser, x0, steps=1)
    x0[0, 0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="x0 holds values that are not finite"):
        invert(gaussian_denoiser, x0)
