"""Networks of DDPM schedules on the sigma axis, against diffusers' own schedulers with the same random network."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXT_DIM, TOKENS, make_unet
from torch import Tensor

from pyoco_pipeline.diffusion import (
    EDM,
    Discrete,
    DiscreteDenoiser,
    EDMDenoiser,
    make_betas,
    parametrisation_from_config,
    sample_euler,
    sampling_range,
)
from pyoco_pipeline.diffusion.discrete import ZERO_SNR_SIGMA
from pyoco_pipeline.models import FrameByFrame
from pyoco_pipeline.noise import IIDNoise

SHAPE = (2, 3, 2, 8, 8)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = [{"beta_schedule": "linear"}, STABLE_DIFFUSION, {"beta_schedule": "squaredcos_cap_v2"}]
NAMES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def scheduler(cls: Any = DDIMScheduler, **config: Any) -> Any:
    """diffusers' scheduler, without the clipping that is part of sampling and not of the denoiser."""
    return cls(**({"clip_sample": False} | config))


def denoiser(network: Any, kind: str, **config: Any) -> DiscreteDenoiser:
    return Discrete(kind, **config).denoiser(network)


def network(**config: Any) -> FrameByFrame:
    return FrameByFrame(make_unet(seed=3, **config))


def condition(seed: int = 5) -> dict[str, Tensor]:
    return {"encoder_hidden_states": normal((SHAPE[0], TOKENS, TEXT_DIM), seed)}


def normal(shape: tuple[int, ...] = SHAPE, seed: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def off_by(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value where that is above 1."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def vp(x: Tensor, sigma: float) -> Tensor:
    """x = x0 + σ ε as diffusers' schedulers hold it: of unit variance."""
    return x / math.sqrt(1 + sigma**2)


# The table of noise levels


@pytest.mark.parametrize("config", SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("zero_snr", [False, True], ids=["plain", "zero_snr"])
def test_the_table_holds_the_noise_levels_of_diffusers_schedule(
    config: dict[str, Any], zero_snr: bool
) -> None:
    bars = scheduler(rescale_betas_zero_snr=zero_snr, **config).alphas_cumprod.double()
    expected = ((1 - bars) / bars).sqrt()
    found = Discrete("v_prediction", rescale_betas_zero_snr=zero_snr, **config).sigmas
    last = -1 if zero_snr else None
    torch.testing.assert_close(found[:last], expected[:last], rtol=1e-6, atol=0)
    assert found.shape == (1000,)
    if zero_snr:
        assert expected[-1] == math.inf
        assert found[-1] == ZERO_SNR_SIGMA


def test_given_betas_take_the_place_of_a_schedule() -> None:
    betas = make_betas("scaled_linear", 1000, 0.00085, 0.012)
    given = Discrete("epsilon", trained_betas=tuple(betas.tolist()))
    assert torch.equal(given.sigmas, Discrete("epsilon", **STABLE_DIFFUSION).sigmas)
    with pytest.raises(ValueError, match="trained_betas has 1000 entries: expected num_train_timesteps=10"):
        Discrete("epsilon", num_train_timesteps=10, trained_betas=given.trained_betas)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 2000), st.sampled_from(SCHEDULES), st.booleans())
def test_a_steps_own_noise_level_gives_exactly_that_step(
    steps: int, config: dict[str, Any], zero_snr: bool
) -> None:
    denoise = denoiser(None, "sample", num_train_timesteps=steps, rescale_betas_zero_snr=zero_snr, **config)
    for dtype in (torch.float32, torch.float64):
        assert denoise.timestep(denoise.sigmas.to(dtype)).tolist() == list(range(steps))


def test_between_two_steps_the_timestep_is_linear_in_ln_sigma() -> None:
    denoise = denoiser(None, "epsilon", **STABLE_DIFFUSION)
    low, high = denoise.sigmas[400:402].tolist()
    share = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    wanted = (math.log(low) + share * math.log(high / low)).exp()
    torch.testing.assert_close(denoise.timestep(wanted), (400 + share).float(), rtol=0, atol=2e-3)


def test_beyond_the_ends_the_timestep_stays_at_the_end() -> None:
    denoise = denoiser(None, "epsilon", **STABLE_DIFFUSION)
    assert denoise.timestep(torch.tensor([1e-6, 0.01, 14.7, 1e6])).tolist() == [0, 0, 999, 999]


# The same clip as diffusers: one step, and twenty


@pytest.mark.parametrize("config", SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("step", [0, 1, 250, 500, 900, 999])
def test_one_denoising_step_is_diffusers(config: dict[str, Any], kind: str, step: int) -> None:
    theirs, unet, cond = scheduler(prediction_type=kind, **config), network(), condition()
    denoise = denoiser(unet, kind, **config)
    sigma = denoise.sigmas[step].item()
    x = normal(dtype=torch.float64) * math.sqrt(1 + sigma**2)
    theirs.set_timesteps(1000)
    with torch.no_grad():
        output = unet(vp(x, sigma).float(), torch.full((2,), step), **cond).sample
        found = denoise(x, torch.full((2,), sigma), **cond)
    expected = theirs.step(output, step, vp(x, sigma).float())
    assert off_by(found, expected.pred_original_sample) <= 1e-4
    if step:
        to = denoise.sigmas[step - 1].item()
        moved = sample_euler(denoise, x, [sigma, to], prior=IIDNoise(), **cond)
        assert off_by(vp(moved, to), expected.prev_sample) <= 1e-4


def ddim(theirs: Any, unet: Any, start: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Twenty steps of diffusers' own DDIM, η = 0."""
    x = start
    with torch.no_grad():
        for step in theirs.timesteps:
            output = unet(x, step.expand(len(x)), **cond).sample[:, : x.shape[1]]
            x = theirs.step(output, int(step), x).prev_sample
    return x


def our_ddim(theirs: Any, denoise: DiscreteDenoiser, start: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """The same steps by Euler's method on the sigma axis, in float32 as diffusers'."""
    end = 0.0 if theirs.config.set_alpha_to_one else denoise.sigmas[0].item()
    sigmas = [*denoise.sigmas[theirs.timesteps].tolist(), end]
    x = math.sqrt(1 + sigmas[0] ** 2) * start
    return vp(sample_euler(denoise, x, sigmas, prior=IIDNoise(), **cond), end)


LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
TRAILING = {"timestep_spacing": "trailing"}


@pytest.mark.parametrize("config", SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", [LEADING, TRAILING], ids=["leading", "trailing"])
def test_twenty_steps_of_ddim_are_diffusers(
    config: dict[str, Any], kind: str, spacing: dict[str, Any]
) -> None:
    theirs, unet, cond = scheduler(prediction_type=kind, **spacing, **config), network(), condition()
    theirs.set_timesteps(20)
    found = our_ddim(theirs, denoiser(unet, kind, **config), normal(), cond)
    assert off_by(found, ddim(theirs, unet, normal(), cond)) <= 1e-5


@pytest.mark.parametrize("config", SCHEDULES, ids=NAMES)
def test_ddim_from_zero_terminal_snr_is_diffusers(config: dict[str, Any]) -> None:
    # A start of finite sigma is off by x0/σ, 3e-5.
    schedule = {"rescale_betas_zero_snr": True, **config}
    theirs = scheduler(prediction_type="v_prediction", **TRAILING, **schedule)
    unet, cond = network(), condition()
    theirs.set_timesteps(20)
    assert theirs.timesteps[0] == 999
    assert theirs.alphas_cumprod[-1] == 0
    found = our_ddim(theirs, denoiser(unet, "v_prediction", **schedule), normal(), cond)
    assert off_by(found, ddim(theirs, unet, normal(), cond)) <= 1e-4


# Learned variance, as DeepFloyd IF has it


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
@pytest.mark.parametrize("step", [0, 300, 960])
def test_a_learned_variance_is_split_off(variance_type: str, step: int) -> None:
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    theirs = scheduler(DDPMScheduler, variance_type=variance_type, **cosine)
    unet, cond = network(out_channels=6), condition()
    denoise = denoiser(unet, "epsilon", learned_variance=True, **cosine)
    sigma = denoise.sigmas[step].item()
    x = math.sqrt(1 + sigma**2) * normal()
    with torch.no_grad():
        output = unet(vp(x, sigma), torch.full((2,), step), **cond).sample
        found = denoise(x, torch.full((2,), sigma), **cond)
    assert output.shape[1] == 6
    generator = torch.Generator().manual_seed(0)
    expected = theirs.step(output, step, vp(x, sigma), generator=generator).pred_original_sample
    assert off_by(found, expected) <= 1e-4


def test_twenty_steps_of_ddim_with_a_learned_variance_are_diffusers() -> None:
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    theirs, unet, cond = scheduler(**TRAILING, **cosine), network(out_channels=6), condition()
    theirs.set_timesteps(20)
    denoise = denoiser(unet, "epsilon", learned_variance=True, **cosine)
    found = our_ddim(theirs, denoise, normal(), cond)
    assert off_by(found, ddim(theirs, unet, normal(), cond)) <= 1e-5


@pytest.mark.parametrize(
    ("channels", "learned", "message"),
    [
        (6, False, "the network gives 6 channels for clips of 3: without a learned variance, 3 are expected"),
        (3, True, "the network gives 3 channels for clips of 3: with a learned variance, 6 are expected"),
    ],
)
def test_a_network_of_other_channels_than_the_schedule_says_is_refused(
    channels: int, learned: bool, message: str
) -> None:
    denoise = denoiser(
        network(out_channels=channels), "epsilon", learned_variance=learned, **STABLE_DIFFUSION
    )
    with pytest.raises(ValueError, match=message):
        denoise(normal(), torch.ones(2), **condition())


# What holds for every denoiser


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_network_that_knows_the_noise_gives_the_clip(kind: str) -> None:
    # ε and v = √ᾱ ε - √(1-ᾱ) x0 of a known clip, at noise levels of and between steps, and beyond the ends.
    sigma = torch.tensor([0.005, 0.0291675, 0.3, 5.0, 20.0])
    x0, noise = normal((5, 3, 2, 4, 4), 1), normal((5, 3, 2, 4, 4), 2)
    level = sigma.view(-1, 1, 1, 1, 1)
    v = (noise - level * x0) / (1 + level**2).sqrt()
    answer = noise if kind == "epsilon" else v
    denoise = denoiser(lambda x, t: SimpleNamespace(sample=answer), kind, **STABLE_DIFFUSION)
    assert off_by(denoise(x0 + level * noise, sigma), x0) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_denoised_clip_is_float32(dtype: torch.dtype) -> None:
    denoise = denoiser(lambda x, t: SimpleNamespace(sample=x.bfloat16()), "v_prediction", **STABLE_DIFFUSION)
    assert denoise(normal().to(dtype), torch.ones(2, dtype=dtype)).dtype == torch.float32


def test_the_network_is_given_unit_variance_and_its_conditions() -> None:
    seen: dict[str, Any] = {}

    def recorded(x: Tensor, timestep: Tensor, **cond: Any) -> SimpleNamespace:
        seen.update(cond, x=x, timestep=timestep)
        return SimpleNamespace(sample=x)

    x, sigma = normal(dtype=torch.float64), torch.tensor([0.1, 3.0], dtype=torch.float64)
    denoiser(recorded, "epsilon", **STABLE_DIFFUSION)(x, sigma, text="a cat")
    expected = x / (1 + sigma**2).sqrt().view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(seen["x"], expected.float())
    assert seen["x"].dtype == seen["timestep"].dtype == torch.float32
    assert seen["text"] == "a cat"


# Noise levels to sample between


def test_a_denoiser_is_sampled_over_the_noise_levels_it_was_trained_on() -> None:
    discrete = denoiser(None, "epsilon", **STABLE_DIFFUSION)
    assert sampling_range(discrete, None, None) == (discrete.sigmas[0].item(), discrete.sigmas[-1].item())
    assert sampling_range(discrete, 0.1, None) == (0.1, discrete.sigma_max)
    assert sampling_range(EDMDenoiser(lambda x, t: x), None, None) == (0.002, 80.0)
    assert sampling_range(EDMDenoiser(lambda x, t: x), 1e-4, 500.0) == (1e-4, 500.0)
    assert sampling_range(lambda x, s: x, None, 3.0) == (0.002, 3.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((0.002, None), r"sigma_min is 0.002: the model knows noise levels from 0.0291\d+ to 14.61\d+"),
        ((None, 80.0), r"sigma_max is 80: the model knows noise levels from"),
    ],
)
def test_noise_levels_outside_of_the_schedule_are_refused(asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling_range(denoiser(None, "epsilon", **STABLE_DIFFUSION), *asked)


# Parametrisations are values, kept as JSON


@pytest.mark.parametrize(
    "parametrisation",
    [
        EDM(),
        Discrete("epsilon", **STABLE_DIFFUSION),
        Discrete("v_prediction", rescale_betas_zero_snr=True),
        Discrete("epsilon", 3, trained_betas=(0.1, 0.2, 0.3), learned_variance=True),
    ],
)
def test_a_parametrisation_comes_back_from_its_json(parametrisation: Any) -> None:
    assert parametrisation_from_config(json.loads(json.dumps(parametrisation.config()))) == parametrisation


def test_json_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parametrisation has the keys \['flow', 'kind'\]: expected"):
        parametrisation_from_config({"kind": "edm", "flow": 1})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "flow_prediction"}, "prediction_type is 'flow_prediction': expected one of epsilon"),
        (
            {"kind": "epsilon", "beta_schedule": "laplace"},
            "beta_schedule is 'laplace': expected one of linear",
        ),
        ({"kind": "epsilon", "num_train_timesteps": 1}, "num_train_timesteps is 1"),
        ({"kind": "epsilon", "num_train_timesteps": 1e3}, "num_train_timesteps is 1000.0"),
        ({"kind": "epsilon", "beta_start": 0.0}, "beta_start is 0.0 and beta_end 0.02"),
        ({"kind": "epsilon", "beta_end": 1.0}, "beta_start is 0.0001 and beta_end 1.0"),
        ({"kind": "epsilon", "beta_start": 0.1}, "beta_start is 0.1 and beta_end 0.02"),
        ({"kind": "epsilon", "rescale_betas_zero_snr": True}, "epsilon says nothing about the clip"),
        (
            {"kind": "epsilon", "num_train_timesteps": 2, "trained_betas": (0.1, 1.0)},
            "go from 0.333333 to inf",
        ),
        ({"kind": "epsilon", "num_train_timesteps": 2, "trained_betas": (0.1, 0.0)}, "rising at every step"),
    ],
)
def test_what_is_no_schedule_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Discrete(**config)
