"""Long video: windows that share frames and their noise, in the memory of one."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_diffusion_samplers import GaussianDenoiser
from test_noise import assert_covariance, generator, pixels_as_draws
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyoco_pipeline.diffusion import (
    SOLVERS,
    Churn,
    ClassifierFreeGuidance,
    reachable,
    sample,
    sample_long,
    solvers_with,
)
from pyoco_pipeline.noise import CovarianceNoise, IIDNoise, MixedNoise, NoisePrior, ProgressiveNoise

WINDOW, OVERLAP = 5, 2
PRIORS = [IIDNoise(), MixedNoise(1.0), ProgressiveNoise(2.0)]
SHAPE = (2, 1, WINDOW, 4, 4)
# Solvers that inject noise, with the options by which they do.
INJECTING = [
    *((name, {"churn": Churn(9.0)}) for name in solvers_with("churn")),
    *((n, {}) for n in solvers_with("eta")),
]


def blend(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
    """A denoiser for which a frame depends on all frames of its window, and on nothing of another clip."""
    share = 1 / (1 + sigma.view(-1, 1, 1, 1, 1) ** 2)
    return share * (share * x + (1 - share) * x.mean(dim=2, keepdim=True))


class FirstOfWindow:
    """A denoiser, and a record of what it is given first in every window, in units of sigma_max."""

    def __init__(self, denoise: Any = blend, sigma_max: float = 80.0) -> None:
        self.denoise, self.sigma_max = denoise, sigma_max
        self.starts: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if sigma[0].item() == self.sigma_max:
            self.starts.append(x / self.sigma_max)
        return self.denoise(x, sigma)


def whole(*args: Any, **options: Any) -> Tensor:
    return torch.cat(list(sample_long(*args, **options)), dim=2)


# The noise


@pytest.mark.parametrize("overlap", range(WINDOW))
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_a_frame_starts_from_the_same_noise_in_every_window_that_sees_it(
    prior: NoisePrior, overlap: int
) -> None:
    spy, stride = FirstOfWindow(), WINDOW - overlap
    whole(spy, prior, SHAPE, WINDOW + 3 * stride, overlap, generator=generator(0), steps=3)
    stream = itertools.islice(prior.stream((2, 1, 4, 4), generator=generator(0)), WINDOW + 3 * stride)
    noise = torch.stack(list(stream), dim=2)
    assert len(spy.starts) == 4
    for window, start in enumerate(spy.starts):
        torch.testing.assert_close(start, noise[:, :, window * stride :][:, :, :WINDOW])
    for before, after in itertools.pairwise(spy.starts):
        assert torch.equal(before[:, :, stride:], after[:, :, :overlap])


@pytest.mark.parametrize(("solver", "options"), [("heun", {}), *INJECTING])
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_the_noise_of_all_windows_together_has_the_prior_covariance(
    prior: NoisePrior, solver: str, options: dict[str, Any]
) -> None:
    spy, shape = FirstOfWindow(lambda x, sigma: torch.zeros_like(x), sigma_max=3.0), (2, 1, WINDOW, 64, 64)
    if "churn" in options:
        options = {"churn": Churn(9.0, s_tmax=2.9)}  # so that the first level is not raised
    options = {"solver": solver, "generator": generator(1), "steps": 3, "sigma_max": 3.0} | options
    whole(spy, prior, shape, 11, OVERLAP, **options)
    first, *later = spy.starts
    noise = torch.cat([first, *(start[:, :, OVERLAP:] for start in later)], dim=2)
    assert noise.shape[2] == 11
    assert_covariance(pixels_as_draws(noise), prior.covariance(11))


def test_noise_drawn_anew_in_every_window_would_be_seen() -> None:
    # The counterpart of the test above.
    prior = ProgressiveNoise(2.0)
    parts = [prior.sample((2, 1, n, 64, 64), generator=generator(n)) for n in (WINDOW, WINDOW - OVERLAP)]
    with pytest.raises(AssertionError, match="times the bound"):
        assert_covariance(pixels_as_draws(torch.cat(parts, dim=2)), prior.covariance(2 * WINDOW - OVERLAP))


# The clips


def test_one_window_is_what_sample_makes_of_the_same_noise() -> None:
    prior = ProgressiveNoise(2.0)
    stream = itertools.islice(prior.stream((2, 1, 4, 4), generator=generator(2)), WINDOW)
    expected = sample(blend, prior, SHAPE, start=torch.stack(list(stream), dim=2), steps=4)
    (clip,) = sample_long(blend, prior, SHAPE, WINDOW, OVERLAP, generator=generator(2), steps=4)
    assert torch.equal(clip, expected)


@pytest.mark.parametrize(("solver", "options"), [*((name, {}) for name in SOLVERS), *INJECTING])
def test_a_window_is_led_from_the_last_frames_of_the_window_before(
    solver: str, options: dict[str, Any]
) -> None:
    seen: list[Tensor] = []

    def spy(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return blend(x, sigma)

    # At σ = 1e-6 what the denoiser sees of known frames is the frames themselves.
    levels = {"sigma_min": 1e-6, "steps": 4, "dtype": torch.float64}
    frames = sample_long(
        spy, IIDNoise(), SHAPE, 11, OVERLAP, solver=solver, generator=generator(3), **levels, **options
    )
    before = next(frames)
    assert before.shape[2] == WINDOW
    for new in frames:
        assert new.shape[2] == WINDOW - OVERLAP
        torch.testing.assert_close(seen[-1][:, :, :OVERLAP], before[:, :, -OVERLAP:], rtol=0, atol=1e-5)
        before = new


def test_a_clip_does_not_depend_on_its_batch() -> None:
    def clips(*seeds: int, **options: Any) -> Tensor:
        shape = (len(seeds), *SHAPE[1:])
        generators = [generator(seed) for seed in seeds]
        return whole(
            blend, ProgressiveNoise(2.0), shape, 11, OVERLAP, generator=generators, steps=3, **options
        )

    for options in ({}, {"churn": Churn(9.0)}, {"solver": "euler_ancestral"}):
        assert torch.equal(clips(0, 1, 2, **options)[1], clips(1, **options)[0])
        assert torch.equal(clips(1, **options), clips(1, **options))
        assert not torch.equal(clips(0, **options), clips(1, **options))


def test_writing_into_a_window_does_not_change_the_windows_to_come() -> None:
    arguments = (blend, ProgressiveNoise(2.0), SHAPE, 11, OVERLAP)
    untouched = list(sample_long(*arguments, generator=generator(4), steps=3))
    for expected, frames in zip(
        untouched, sample_long(*arguments, generator=generator(4), steps=3), strict=True
    ):
        assert torch.equal(frames, expected)
        frames.zero_()


def test_conditions_and_guidance_are_those_of_every_window() -> None:
    def denoise(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(x) + label.view(-1, 1, 1, 1, 1)

    guided = ClassifierFreeGuidance(denoise, 2.0, {"label": torch.tensor([-1.0])})
    label = torch.tensor([3.0, 5.0])
    clips = whole(guided, IIDNoise(), SHAPE, 11, OVERLAP, solver="euler", steps=2, label=label)
    assert torch.equal(clips, torch.tensor([7.0, 11.0]).view(2, 1, 1, 1, 1).expand(2, 1, 11, 4, 4))


def test_gaussian_frames_go_on_over_the_border_of_windows_as_within_them() -> None:
    # Frames correlated by 0.9^|i-j|, as the noise nearly is: 0.894^|i-j|.
    prior, frames = ProgressiveNoise(2.0), 8
    data = 0.25 * CovarianceNoise([0.9**lag for lag in range(frames)]).covariance(frames)
    shape = (1, 1, frames, 128, 128)
    clips = whole(GaussianDenoiser(data, prior), prior, shape, 20, 2, steps=40, generator=generator(5))
    correlations = torch.corrcoef(clips[0, 0].flatten(1)).diagonal(1)
    # Fisher's z of 16,384 pixels has the standard deviation 0.0078; five and a half of them are exceeded by one of 19
    # once in 1.4 million. 0.02: what Heun's steps and the method are off by.
    bound = 5.5 / (128 * 128 - 3) ** 0.5 + 0.02
    assert ((correlations.double().atanh() - torch.tensor(0.9).double().atanh()).abs() < bound).all()


# Memory


class PeakBytes(TorchDispatchMode):
    """The largest number of bytes that tensors made within it take at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.living = {key: kept for key, kept in self.living.items() if not kept[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.living.values()))
        return result


def peak(windows: int, keep: bool) -> int:
    shape, num_frames = (1, 1, WINDOW, 32, 32), WINDOW + (windows - 1) * (WINDOW - OVERLAP)
    kept: list[Tensor] = []
    with PeakBytes() as bytes_:
        for part in sample_long(
            blend, MixedNoise(1.0), shape, num_frames, OVERLAP, generator=generator(6), steps=2
        ):
            if keep:
                kept.append(part)
            del part
    return bytes_.peak


def test_many_windows_need_the_memory_of_few() -> None:
    assert peak(12, keep=False) == peak(3, keep=False)
    new = 4 * 32 * 32 * (WINDOW - OVERLAP)
    assert peak(12, keep=True) >= peak(3, keep=True) + 9 * new  # the counterpart: what is kept is counted


# What is within reach


@given(st.integers(1, 40), st.data(), st.integers(0, 20))
def test_windows_reach_the_first_and_then_so_many_more(window: int, data: st.DataObject, more: int) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    assert reachable(window + more * (window - overlap), window, overlap) == 1 + more


@pytest.mark.parametrize(
    ("num_frames", "window", "overlap", "message"),
    [
        (20, 16, 4, r"num_frames is 20, out of reach .* the nearest is 16 or 28\."),
        (29, 16, 4, r"the nearest is 28 or 40\."),
        (15, 16, 4, r"the nearest is 16\."),
        (0, 16, 4, r"the nearest is 16\."),
        (16, 16, 16, "overlap is 16: expected 0 <= overlap < 16"),
        (16, 16, -1, "overlap is -1"),
    ],
)
def test_other_numbers_of_frames_are_refused_with_the_nearest_ones(
    num_frames: int, window: int, overlap: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reachable(num_frames, window, overlap)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((MixedNoise(1.0), SHAPE, 12, OVERLAP), {}, "the nearest is 11 or 14"),
        ((CovarianceNoise([1.0, 0.5]), SHAPE, 11, OVERLAP), {}, "expected iid, mixed or progressive noise"),
        ((MixedNoise(1.0), SHAPE, 11, OVERLAP), {"init": torch.zeros(SHAPE)}, "init is given"),
        ((MixedNoise(1.0), SHAPE, 11, OVERLAP), {"generator": [generator(0)]}, "expected one, or 2"),
    ],
)
def test_what_is_refused_is_refused_before_the_first_window(
    arguments: tuple, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample_long(blend, *arguments, **options)
