"""A prior as noise levels per temporal frequency, and the sigma law that matches it to i.i.d. noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.fft import dctn

from pyoco_pipeline.noise import IIDNoise, MixedNoise, NoisePrior, ProgressiveNoise
from pyoco_pipeline.study.spectrum import DataSpectrum, dct_matrix, match_to_iid, noise_levels

FRAMES = 8
PRIORS = [
    IIDNoise(),
    MixedNoise(1.0),
    MixedNoise(math.inf),
    ProgressiveNoise(2.0),
    ProgressiveNoise(math.inf),
]


def levels(prior: NoisePrior) -> np.ndarray:
    return noise_levels(prior.covariance(FRAMES).numpy())


def clips(count: int = 64, seed: int = 0) -> np.ndarray:
    """Clips that change slowly, as a random walk over the frames."""
    draw = np.random.default_rng(seed).normal(size=(count, FRAMES, 4, 4, 3))
    return draw.cumsum(axis=1) / 4


def test_independent_noise_is_equally_strong_at_every_frequency() -> None:
    np.testing.assert_allclose(levels(IIDNoise()), 1.0, atol=1e-12)


def test_the_noise_of_a_repeated_frame_is_all_at_frequency_zero() -> None:
    for prior in (MixedNoise(math.inf), ProgressiveNoise(math.inf)):
        np.testing.assert_allclose(levels(prior), [FRAMES, *[0.0] * (FRAMES - 1)], atol=1e-12)


def test_mixed_noise_has_two_levels() -> None:
    rho = 0.5  # α²/(1+α²) at α = 1
    np.testing.assert_allclose(levels(MixedNoise(1.0)), [1 + (FRAMES - 1) * rho, *[1 - rho] * (FRAMES - 1)])


def test_progressive_noise_falls_with_frequency() -> None:
    assert (np.diff(levels(ProgressiveNoise(2.0))) < 0).all()


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_a_prior_moves_noise_between_frequencies_and_adds_none(prior: NoisePrior) -> None:
    assert levels(prior).sum() == pytest.approx(FRAMES)


def test_the_levels_are_the_variances_of_samples() -> None:
    """From 8 × 4,096 samples: a variance is known to 1.1% or better; five standard errors."""
    noise = ProgressiveNoise(2.0).sample((8, 1, FRAMES, 64, 64)).double().numpy()[:, 0]
    seen = np.einsum("kt,bthw->bkhw", dct_matrix(FRAMES), noise).var(axis=(0, 2, 3))
    count = 8 * 64 * 64
    assert (abs(seen / levels(ProgressiveNoise(2.0)) - 1) < 5 * math.sqrt(2 / count)).all()


def test_the_spectrum_of_clips_is_scipys_and_keeps_their_variance() -> None:
    x = clips()
    found = DataSpectrum.of(x)
    centred = x - x.mean(axis=0)
    expected = (dctn(centred, axes=(1, 2, 3), norm="ortho") ** 2).sum(axis=0).mean(axis=-1) / (len(x) - 1)
    np.testing.assert_allclose(found.power, expected)
    assert found.power.sum() == pytest.approx(x.var(axis=0, ddof=1).mean(axis=-1).sum())
    assert found.temporal.argmax() == 0


def test_the_signal_to_noise_ratio_is_infinite_where_there_is_no_noise() -> None:
    data = DataSpectrum.of(clips())
    ratio = data.snr(levels(MixedNoise(math.inf)).round(12), sigma=2.0)
    assert np.isinf(ratio[1:]).all()
    assert ratio[0] == pytest.approx(data.temporal[0] / (4 * FRAMES))
    np.testing.assert_allclose(data.snr(levels(IIDNoise())), data.temporal)


def test_independent_noise_matches_itself_without_a_shift() -> None:
    match = match_to_iid(DataSpectrum.of(clips()), levels(IIDNoise()), -1.2, 1.2)
    assert match.shift == pytest.approx(0.0, abs=1e-9)
    assert match.mismatch < 1e-3


def test_noise_of_four_times_the_power_is_matched_by_half_the_sigma() -> None:
    match = match_to_iid(DataSpectrum.of(clips()), np.full(FRAMES, 4.0), 0.0, 1.2)
    assert match.shift == pytest.approx(-math.log(2), abs=0.011)  # the grid's step
    assert match.mismatch < 1e-3


def test_of_still_clips_repeated_noise_hides_as_much_at_a_lower_sigma() -> None:
    """All of the signal is at frequency zero, where λ is T: the match is at σ/√T, and exact."""
    still = np.repeat(clips()[:, :1], FRAMES, axis=1)
    match = match_to_iid(DataSpectrum.of(still), levels(MixedNoise(math.inf)), 0.0, 1.2)
    assert match.shift == pytest.approx(-0.5 * math.log(FRAMES), abs=0.011)
    assert match.mismatch < 1e-3


def test_nothing_is_lost_without_noise_and_all_under_much() -> None:
    data = DataSpectrum.of(clips())
    lost = data.lost(levels(IIDNoise()), np.array([0.0, 0.5, 1e6]))
    assert lost[0] == 0.0
    assert 0 < lost[1] < 1
    assert lost[2] == pytest.approx(1.0)


def test_one_clip_has_no_spectrum() -> None:
    with pytest.raises(ValueError, match="give at least 2"):
        DataSpectrum.of(clips(1))
