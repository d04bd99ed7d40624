"""Expert denoisers by ranges of sigma: which is asked, how often one is loaded, and what levels it trains on."""

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyoco_pipeline.diffusion import (
    Churn,
    ClassifierFreeGuidance,
    Expert,
    ExpertDenoiser,
    LogNormalSigma,
    sample,
    sampling_range,
)
from pyoco_pipeline.noise import MixedNoise

FALSE_ALARM = 1e-6
RANGES = [(0.0, 0.5), (0.5, 5.0), (5.0, math.inf)]


def answering(value: float) -> Callable[..., Tensor]:
    """A denoiser whose clips are `value` everywhere, plus the condition `text` (B, 1) where there is one."""

    def denoise(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        assert sigma.shape == x.shape[:1]
        answer = torch.full_like(x, value)
        return answer + cond["text"].view(-1, 1, 1, 1, 1) if "text" in cond else answer

    return denoise


def ensemble() -> ExpertDenoiser:
    """Three experts, which answer 0, 1 and 2 from the lowest sigma up."""
    return ExpertDenoiser([Expert(*ends, answering(i)) for i, ends in enumerate(RANGES)])


class Loads:
    """Three experts that say when they are loaded."""

    def __init__(self, keep: int | None) -> None:
        self.order: list[int] = []
        experts = [Expert(*ends, load=self._loader(i)) for i, ends in enumerate(RANGES)]
        self.denoise = ExpertDenoiser(experts, keep=keep)

    def _loader(self, place: int) -> Callable[[], Callable[..., Tensor]]:
        def load() -> Callable[..., Tensor]:
            self.order.append(place)
            return answering(place)

        return load

    def at(self, *levels: float) -> None:
        for level in levels:
            self.denoise(torch.zeros(1, 1, 1, 2, 2), torch.tensor([level]))


# Which expert


@pytest.mark.parametrize(
    ("level", "expert"), [(1e-4, 0), (0.49, 0), (0.5, 1), (4.99, 1), (5.0, 2), (80.0, 2), (1e4, 2)]
)
def test_a_noise_level_is_its_experts(level: float, expert: int) -> None:
    denoised = ensemble()(torch.zeros(2, 1, 1, 2, 2), torch.full((2,), level))
    assert torch.equal(denoised, torch.full_like(denoised, expert))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("border", [0.1, 0.3, 0.7, 1.1, 3.3])  # some float32 above, some below the decimal
def test_a_border_is_of_the_expert_above_it_in_any_precision(border: float, dtype: torch.dtype) -> None:
    denoise = ExpertDenoiser([Expert(border, 9, answering(1)), Expert(0, border, answering(0))])
    denoised = denoise(torch.zeros(1, 1, 1, 1, 1), torch.tensor([border], dtype=dtype))
    assert denoised.item() == 1


@given(st.lists(st.floats(0.0078125, 128, width=32), min_size=1, max_size=9))
def test_a_batch_of_mixed_noise_levels_is_split_among_the_experts(levels: list[float]) -> None:
    text = torch.arange(len(levels), dtype=torch.float32).view(-1, 1) / 100
    x = torch.zeros(len(levels), 1, 2, 2, 2)
    denoised = ensemble()(x, torch.tensor(levels), text=text)
    alone = [ensemble()(x[:1], torch.tensor([level]), text=text[i : i + 1]) for i, level in enumerate(levels)]
    assert torch.equal(denoised, torch.cat(alone))


def test_conditions_go_with_their_clips_and_others_to_all() -> None:
    seen: list[dict[str, Any]] = []

    def recorded(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        seen.append(cond)
        return x

    denoise = ExpertDenoiser([Expert(0, 1, recorded), Expert(1, 9, recorded)])
    text, ids = torch.arange(3.0).view(3, 1), torch.arange(6.0).view(3, 2)
    scale = torch.tensor(7.0)
    x = torch.zeros(3, 1, 1, 2, 2)
    denoise(x, torch.tensor([0.1, 2.0, 0.2]), text=text, added={"ids": ids}, scale=scale, name="a")
    above, below = seen
    assert (above["text"].tolist(), below["text"].tolist()) == ([[1]], [[0], [2]])
    assert (above["added"]["ids"].tolist(), below["added"]["ids"].tolist()) == ([[2, 3]], [[0, 1], [4, 5]])
    assert all(cond["scale"] is scale and cond["name"] == "a" for cond in seen)


# Ranges lie end to end


def test_experts_may_be_given_in_any_order() -> None:
    denoise = ExpertDenoiser([Expert(*RANGES[i], answering(i)) for i in (2, 0, 1)])
    assert denoise.sigma_limits == (0.0, math.inf)
    assert denoise(torch.zeros(1, 1, 1, 1, 1), torch.tensor([1.0])).item() == 1


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0.002, 1.0), (2.0, 80.0)], "0.002 to 1.0 and 2.0 to 80.0 leave a gap between 1.0 and 2.0: one has to begin"),
        ([(0.002, 3.0), (2.0, 80.0)], "0.002 to 3.0 and 2.0 to 80.0 overlap between 2.0 and 3.0: one has to begin"),
        ([(0.0, 9.0), (1.0, 2.0), (2.0, 9.0)], "0.0 to 9.0 and 1.0 to 2.0 overlap between 1.0 and 9.0"),
        ([(0.0, 1.0), (0.0, 1.0)], "0.0 to 1.0 and 0.0 to 1.0 overlap"),
    ],
)  # fmt: skip
def test_a_gap_or_an_overlap_is_named(ranges: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertDenoiser([Expert(*ends, answering(0)) for ends in ranges])


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_an_empty_range_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"an expert has low .*: expected 0 <= low < high"):
        Expert(*ends, answering(0))


def test_an_expert_is_given_or_loaded() -> None:
    for both in ({}, {"denoise": answering(0), "load": lambda: answering(0)}):
        with pytest.raises(ValueError, match="the expert from 0 to 1 needs either denoise or load"):
            Expert(0, 1, **both)


@pytest.mark.parametrize(("experts", "keep"), [([], None), ([Expert(0, 1, answering(0))], 0)])
def test_no_experts_and_none_to_keep_are_refused(experts: list[Expert], keep: int | None) -> None:
    with pytest.raises(ValueError, match=r"experts is empty|keep is 0: expected at least 1"):
        ExpertDenoiser(experts, keep=keep)


@pytest.mark.parametrize("level", [0.05, 9.5, math.inf, math.nan])
def test_a_noise_level_outside_of_the_ensemble_is_refused(level: float) -> None:
    denoise = ExpertDenoiser([Expert(0.1, 1, answering(0)), Expert(1, 9, answering(1))])
    with pytest.raises(ValueError, match=rf"sigma is {level:g}: the experts know noise levels from 0.1 to 9"):
        denoise(torch.zeros(2, 1, 1, 1, 1), torch.tensor([1.0, level]))
    with pytest.raises(ValueError, match="sigma has shape"):
        denoise(torch.zeros(2, 1, 1, 1, 1), torch.ones(1))


def test_an_ensemble_is_sampled_over_its_own_noise_levels() -> None:
    assert sampling_range(ensemble(), None, None) == (0.002, 80.0)
    closed = ExpertDenoiser([Expert(0.03, 1, answering(0)), Expert(1, 14.6, answering(1))])
    assert sampling_range(closed, None, None) == (0.03, 14.6)
    with pytest.raises(ValueError, match="sigma_max is 80"):
        sampling_range(closed, None, 80.0)
    sample(closed, MixedNoise(1.0), (1, 1, 2, 2, 2), sigma_min=0.03, sigma_max=14.6, steps=7)


# What is loaded when


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("keep", [1, 2, None])
def test_sampling_loads_each_expert_once_from_high_to_low(
    solver: str, guidance: float, keep: int | None
) -> None:
    loads = Loads(keep)
    guided = ClassifierFreeGuidance(loads.denoise, guidance, {"text": torch.zeros(1, 1)})
    sample(guided, MixedNoise(1.0), (2, 1, 3, 2, 2), solver=solver, steps=15, text=torch.ones(2, 1))
    assert loads.order == [2, 1, 0]


def test_a_range_that_is_not_visited_is_not_loaded() -> None:
    loads = Loads(keep=1)
    sample(loads.denoise, MixedNoise(1.0), (1, 1, 2, 2, 2), sigma_max=3.0, steps=10)
    assert loads.order == [1, 0]


def test_the_one_used_least_recently_makes_room() -> None:
    loads = Loads(keep=2)
    loads.at(0.1, 1.0, 0.1)
    assert loads.order == [0, 1]
    loads.at(9.0)  # 1 was used before 0
    loads.at(0.1)
    assert loads.order == [0, 1, 2]
    loads.at(1.0)  # 2 was used before 0
    loads.at(0.1)
    assert loads.order == [0, 1, 2, 1]


def test_room_is_made_before_the_next_is_loaded() -> None:
    alive: list[int] = []

    class Network:
        def __init__(self) -> None:
            alive.append(1)
            assert len(alive) == 1

        def __del__(self) -> None:
            alive.pop()

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x

    denoise = ExpertDenoiser([Expert(*ends, load=Network) for ends in RANGES], keep=1)
    for level in (9.0, 1.0, 0.1, 9.0):
        denoise(torch.zeros(1, 1, 1, 1, 1), torch.tensor([level]))
    assert len(alive) == 1


def test_without_a_number_to_keep_all_are_kept() -> None:
    loads = Loads(keep=None)
    loads.at(0.1, 1.0, 9.0, 0.1, 1.0, 9.0)
    assert loads.order == [0, 1, 2]


def test_an_expert_at_hand_is_not_loaded() -> None:
    def never() -> Callable[..., Tensor]:
        raise AssertionError

    denoise = ExpertDenoiser([Expert(0, 1, answering(0)), Expert(1, 9, load=never)], keep=1)
    assert denoise(torch.zeros(1, 1, 1, 1, 1), torch.tensor([0.5])).item() == 0


def test_an_ensemble_of_one_denoiser_cut_in_three_samples_as_the_whole() -> None:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1, 1) ** 2)

    def clips(denoiser: Any) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        churn = Churn(s_churn=10)
        return sample(denoiser, MixedNoise(1.0), (3, 1, 2, 4, 4), steps=12, churn=churn, generator=generators)

    cut = ExpertDenoiser([Expert(*ends, load=lambda: denoise) for ends in RANGES], keep=1)
    assert torch.equal(clips(cut), clips(denoise))


# The noise levels that an expert trains on

TRUNCATIONS = [
    (-1.2, 1.2, 0.0, 0.5),
    (-1.2, 1.2, 0.5, 5.0),
    (-1.2, 1.2, 5.0, math.inf),
    (0.4, 1.2, 0.0, 1e-3),
    (-1.2, 1.2, 8000.0, math.inf),  # 8.5 standard deviations up
    (-1.2, 1.2, 1e-6, 1e-5),
    (0.0, 0.1, 0.9, 1.1),
]


def cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2))


@pytest.mark.parametrize(("mean", "std", "low", "high"), TRUNCATIONS)
def test_a_truncated_law_is_the_law_given_its_range(mean: float, std: float, low: float, high: float) -> None:
    # Kolmogorov-Smirnov by Dvoretzky-Kiefer-Wolfowitz and Massart: the empirical distribution function of n draws
    # is within √(ln(2/δ)/2n) of the true one with probability 1 - δ, here 1 - 1e-6.
    n = 50_000
    sigma = LogNormalSigma(mean, std, low, high).sample(n, torch.Generator().manual_seed(1))
    assert sigma.dtype == torch.float32
    assert sigma.shape == (n,)
    assert sigma.min() >= torch.tensor(low)
    assert sigma.max() <= torch.tensor(high)
    # Mirrored where the range is above the mean: there Φ has no digits left, and Φ(-z) has.
    flip = -1 if low > math.exp(mean) else 1
    z = flip * (sigma.double().log() - mean) / std
    ends = sorted(flip * ((math.log(end) if end else -math.inf) - mean) / std for end in (low, high))
    below, upto = cdf(torch.tensor(ends, dtype=torch.float64))
    levels = ((cdf(z) - below) / (upto - below)).sort().values
    distance = (levels - torch.arange(1, n + 1, dtype=torch.float64) / n).abs().max() + 1 / n
    assert distance <= math.sqrt(math.log(2 / FALSE_ALARM) / (2 * n)) + 1 / n


def test_a_range_of_everything_draws_what_the_whole_law_draws() -> None:
    whole, ranged = LogNormalSigma(-0.3, 0.8), LogNormalSigma(-0.3, 0.8, 0.0, math.inf)
    assert torch.equal(
        whole.sample(9, torch.Generator().manual_seed(2)), ranged.sample(9, torch.Generator().manual_seed(2))
    )


def test_a_level_of_a_range_with_its_own_generator_does_not_depend_on_its_batch() -> None:
    law = LogNormalSigma(low=1.0, high=2.0)
    together = law.sample(3, [torch.Generator().manual_seed(seed) for seed in range(3)])
    assert torch.equal(together[1:2], law.sample(1, [torch.Generator().manual_seed(1)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 2.0, "high": 1.0}, "low is 2.0 and high 1.0: expected 0 <= low < high"),
        ({"low": -1.0}, "low is -1.0"),
        ({"high": math.nan}, "high nan"),
        ({"mean": -1.2, "std": 0.1, "low": 1e5}, "has some of its mass"),
        ({"std": 0.0, "low": 1.0}, "and std above 0"),
    ],
)
def test_a_range_without_noise_levels_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogNormalSigma(**arguments)


def test_an_expert_that_makes_room_is_gone_before_the_next_is_loaded() -> None:
    """Also where it holds itself, as a network with hooks does."""
    living: weakref.WeakSet[Any] = weakref.WeakSet()

    class Cyclic:
        def __init__(self) -> None:
            assert len(living) == 0
            living.add(self)
            self.itself = self

        def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            return x

    denoise = ExpertDenoiser([Expert(0, 1, load=Cyclic), Expert(1, 2, load=Cyclic)], keep=1)
    gc.disable()
    try:
        for level in (1.5, 0.5, 1.5):
            denoise(torch.zeros(1, 1, 1, 2, 2), torch.tensor([level]))
    finally:
        gc.enable()
