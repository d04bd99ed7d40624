"""The sampler's settings: they accept and refuse what `sample` does, and reach it."""

import itertools
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pyoco_pipeline.config import SamplerSettings
from pyoco_pipeline.diffusion import SOLVERS, Churn, sample
from pyoco_pipeline.noise import IIDNoise, MixedNoise
from pyoco_pipeline.sampling import sample_batch

SHAPE = (3, 4, 4)


def black(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
    return torch.zeros_like(x)


def test_the_solvers_are_those_of_sample() -> None:
    assert set(get_args(SamplerSettings.model_fields["solver"].annotation)) == set(SOLVERS)


@pytest.mark.parametrize("solver", SOLVERS)
def test_settings_refuse_the_options_that_sample_refuses(solver: str) -> None:
    for s_churn, eta in itertools.product([0.0, 3.0], [None, 0.0, 0.5]):
        try:
            churn = Churn(s_churn=s_churn)
            sample(black, IIDNoise(), (1, 1, *SHAPE), solver=solver, steps=2, churn=churn, eta=eta)
            refused = False
        except ValueError:
            refused = True
        options: dict[str, Any] = {"solver": solver, "churn": {"s_churn": s_churn}, "eta": eta}
        if refused:
            with pytest.raises(ValidationError, match=f"with solver={solver}, which"):
                SamplerSettings(**options)
        else:
            SamplerSettings(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "ddim"},
        {"solver": "dpmpp_2m_sde", "eta": 1.5},
        {"dynamic_threshold": 0.0},
        {"dynamic_threshold": 99.5},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(reversed(options))):
        SamplerSettings(**options)


def clips(denoise: Any = black, **options: Any) -> Tensor:
    cond = {"encoder_hidden_states": torch.zeros(2, 1, 1)}
    null = {"encoder_hidden_states": torch.zeros(1, 1, 1)}
    return sample_batch(
        denoise, MixedNoise(1.0), SamplerSettings(steps=3, **options), cond, null, SHAPE, [1, 2]
    )


def test_eta_and_the_dynamic_threshold_reach_the_sampler() -> None:
    def bright(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return 0.1 * x + torch.linspace(0, 3, 16).view(4, 4)

    ancestral = clips(bright, solver="euler_ancestral")
    assert torch.equal(clips(bright, solver="euler_ancestral", eta=1.0), ancestral)
    assert not torch.equal(clips(bright, solver="euler_ancestral", eta=0.2), ancestral)
    assert not torch.equal(clips(bright, dynamic_threshold=0.9), clips(bright))
