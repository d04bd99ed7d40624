"""EDM's denoiser, loss and noise levels, against the identities that define them."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyoco_pipeline.diffusion import EDMDenoiser, LogNormalSigma, edm_loss, karras_sigmas

FALSE_ALARM = 1e-6
SIGMAS = [0.002, 0.1, 0.5, 3.0, 80.0]
SIGMA_DATA = 0.5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class RecordingNetwork:
    """Returns `answer(x)` and keeps what it was called with."""

    def __init__(self, answer: Any = torch.zeros_like) -> None:
        self.answer = answer

    def __call__(self, x: Tensor, timestep: Tensor, **cond: Any) -> SimpleNamespace:
        self.x, self.timestep, self.cond = x, timestep, cond
        return SimpleNamespace(sample=self.answer(x))


def clips(seed: int) -> Tensor:
    return torch.randn(len(SIGMAS), 2, 3, 4, 4, generator=generator(seed))


# Preconditioning, table 1


def test_a_network_of_zeros_leaves_c_skip_times_x() -> None:
    x, sigma = clips(0), torch.tensor(SIGMAS)
    denoised = EDMDenoiser(RecordingNetwork(), SIGMA_DATA)(x, sigma)
    for clip, noisy, level in zip(denoised, x, SIGMAS, strict=True):
        torch.testing.assert_close(clip, noisy * SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2))


def test_the_network_moves_the_result_by_c_out_times_its_output() -> None:
    x, sigma = clips(0), torch.tensor(SIGMAS)
    skip = EDMDenoiser(RecordingNetwork(), SIGMA_DATA)(x, sigma)
    moved = EDMDenoiser(RecordingNetwork(torch.ones_like), SIGMA_DATA)(x, sigma) - skip
    for clip, level in zip(moved, SIGMAS, strict=True):
        c_out = level * SIGMA_DATA / math.sqrt(level**2 + SIGMA_DATA**2)
        torch.testing.assert_close(clip, torch.full_like(clip, c_out), rtol=1e-4, atol=1e-6)


def test_the_network_sees_unit_variance_and_a_quarter_of_ln_sigma_in_thousandths() -> None:
    network = RecordingNetwork()
    x, sigma = clips(0), torch.tensor(SIGMAS)
    EDMDenoiser(network, SIGMA_DATA)(x, sigma, text="a cat")
    for seen, noisy, level in zip(network.x, x, SIGMAS, strict=True):
        torch.testing.assert_close(seen, noisy / math.sqrt(level**2 + SIGMA_DATA**2))
    torch.testing.assert_close(network.timestep, torch.tensor([1000 * math.log(s) / 4 for s in SIGMAS]))
    assert network.cond == {"text": "a cat"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_network_input_and_denoised_clip_are_float32(dtype: torch.dtype) -> None:
    network = RecordingNetwork(lambda x: x.bfloat16())
    x = torch.ones(2, 1, 1, 2, 2, dtype=dtype)
    denoised = EDMDenoiser(network)(x, torch.ones(2, dtype=dtype))
    assert network.x.dtype == network.timestep.dtype == denoised.dtype == torch.float32


def test_one_sigma_per_clip_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"sigma has shape \(1,\): expected \(2,\)"):
        EDMDenoiser(RecordingNetwork())(torch.zeros(2, 1, 1, 2, 2), torch.ones(1))


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.inf, math.nan])
def test_sigma_data_is_positive_and_finite(sigma_data: float) -> None:
    with pytest.raises(ValueError, match="sigma_data is"):
        EDMDenoiser(RecordingNetwork(), sigma_data)


# Loss, eq. 8


def test_the_loss_weight_times_c_out_squared_is_one() -> None:
    # λ c_out² = 1 (eq. 8), so that an output which is off by δ costs δ² at every σ. The clean clip here is
    # what a network of constant 2 predicts exactly, and 5 is 3 too much. At a lower σ such a clip is so large
    # that float32 rounds δ away.
    sigma = torch.tensor([0.1, 0.5, 3.0, 20.0, 80.0], dtype=torch.float64)
    level = sigma.view(-1, 1, 1, 1, 1)
    total = (level**2 + SIGMA_DATA**2).sqrt()
    noise = torch.randn(5, 1, 2, 3, 3, generator=generator(1), dtype=torch.float64)
    c_skip, c_out = SIGMA_DATA**2 / total**2, level * SIGMA_DATA / total
    x0 = (c_skip * level * noise + 2 * c_out) / (1 - c_skip)
    denoise = EDMDenoiser(RecordingNetwork(lambda x: torch.full_like(x, 5.0)), SIGMA_DATA)
    loss = edm_loss(denoise, x0, noise, sigma, SIGMA_DATA)
    torch.testing.assert_close(loss, torch.full_like(loss, 9.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("level", SIGMAS)
def test_an_untrained_network_of_zeros_starts_at_a_loss_of_one(level: float) -> None:
    # The target has unit variance: n of its squares have a mean within 2√(t/n) + 2t/n of 1 with probability
    # 1 - 2e^-t (Laurent and Massart 2000, lemma 1).
    shape = (1, 1, 1, 200, 200)
    x0 = SIGMA_DATA * torch.randn(shape, generator=generator(2))
    noise = torch.randn(shape, generator=generator(3))
    loss = edm_loss(EDMDenoiser(RecordingNetwork(), SIGMA_DATA), x0, noise, torch.tensor([level]), SIGMA_DATA)
    t, n = math.log(2 / FALSE_ALARM), x0.numel()
    assert abs(loss.item() - 1) <= 2 * math.sqrt(t / n) + 2 * t / n


def test_the_loss_is_the_weighted_mean_square_per_clip() -> None:
    x0, noise = clips(4), clips(5)
    sigma = torch.tensor(SIGMAS)
    error = torch.arange(1.0, 6.0).view(-1, 1, 1, 1, 1)
    loss = edm_loss(lambda x, s: x0 + error, x0, noise, sigma, SIGMA_DATA)
    expected = [
        (s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2 * e**2
        for s, e in zip(SIGMAS, range(1, 6), strict=True)
    ]
    assert loss.shape == (len(SIGMAS),)
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-4, atol=0)


def test_the_denoiser_is_given_the_noisy_clip_and_the_conditions() -> None:
    x0, noise, sigma, seen = clips(4), clips(5), torch.tensor(SIGMAS), {}

    def denoise(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        seen.update(cond, x=x, sigma=sigma)
        return x

    edm_loss(denoise, x0, noise, sigma, text="a cat")
    for noisy, clip, eps, level in zip(seen["x"], x0, noise, SIGMAS, strict=True):
        torch.testing.assert_close(noisy, clip + level * eps)
    assert torch.equal(seen["sigma"], sigma)
    assert seen["text"] == "a cat"


def test_noise_has_the_shape_of_the_clips() -> None:
    with pytest.raises(ValueError, match="noise has shape"):
        edm_loss(lambda x, s: x, torch.zeros(2, 1, 3, 4, 4), torch.zeros(2, 1, 1, 4, 4), torch.ones(2))


# Noise levels


def test_training_noise_levels_are_log_normal() -> None:
    # Dvoretzky-Kiefer-Wolfowitz: the empirical distribution function of n draws is within √(ln(2/δ)/2n) of
    # the true one with probability 1 - δ.
    n = 100_000
    sigma = LogNormalSigma(mean=-0.7, std=1.9).sample(n, generator(6))
    assert sigma.shape == (n,)
    assert sigma.dtype == torch.float32
    levels = torch.special.ndtr((sigma.double().log().sort().values + 0.7) / 1.9)
    distance = (levels - torch.arange(1, n + 1, dtype=torch.float64) / n).abs().max() + 1 / n
    assert distance <= math.sqrt(math.log(2 / FALSE_ALARM) / (2 * n)) + 1 / n


def test_a_noise_level_with_its_own_generator_does_not_depend_on_its_batch() -> None:
    together = LogNormalSigma().sample(3, [generator(seed) for seed in range(3)])
    assert torch.equal(together[1:2], LogNormalSigma().sample(1, [generator(1)]))
    with pytest.raises(ValueError, match="generator holds 2"):
        LogNormalSigma().sample(3, [generator(seed) for seed in range(2)])


@pytest.mark.parametrize(("mean", "std"), [(math.nan, 1.0), (math.inf, 1.0), (0.0, -1.0), (0.0, math.inf)])
def test_the_log_normal_law_is_finite(mean: float, std: float) -> None:
    with pytest.raises(ValueError, match=r"(mean|std) is .*expected a finite number"):
        LogNormalSigma(mean, std)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(1e-3, 0.5), st.floats(1.0, 200.0), st.floats(1.0, 10.0))
def test_the_schedule_is_eq_5(steps: int, sigma_min: float, sigma_max: float, rho: float) -> None:
    sigmas = karras_sigmas(steps, sigma_min, sigma_max, rho)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (steps + 1,)
    assert sigmas[-1] == 0
    for i in range(steps):
        share = i / (steps - 1) if steps > 1 else 0.0
        start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        assert sigmas[i].item() == pytest.approx((start + share * (end - start)) ** rho, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 4, "sigma_min": 0.0}, "sigma_min is 0.0"),
        ({"steps": 4, "sigma_min": 5.0, "sigma_max": 1.0}, "sigma_min is 5.0 and sigma_max 1.0"),
        ({"steps": 4, "sigma_max": math.inf}, "sigma_max inf"),
        ({"steps": 4, "rho": 0.0}, "rho is 0.0"),
    ],
)
def test_a_schedule_that_is_none_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        karras_sigmas(**arguments)
