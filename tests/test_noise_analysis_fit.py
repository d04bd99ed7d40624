"""α from noise maps, families compared, and the empirical prior, on maps whose law is known.

A test that counts over seeds states how often it fails although the code is right; else figures are exact.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyoco_pipeline.analysis.correlation import covariance, frame_correlation, frame_products, leave_one_out
from pyoco_pipeline.analysis.empirical import empirical_correlation, noise_snippet, toeplitz
from pyoco_pipeline.analysis.fit import FAMILIES, compare_families, fit_alpha
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.noise import (
    CovarianceNoise,
    IIDNoise,
    MixedNoise,
    NoisePrior,
    ProgressiveNoise,
    make_prior,
    prior_from_config,
)
from pyoco_pipeline.training.settings import NoiseSettings

CLIPS, FRAMES = 24, 5


def sample(
    prior: NoisePrior, seed: int, *, clips: int = CLIPS, pixels: int = 64, repeat: int = 1
) -> np.ndarray:
    """Maps (N, T, 1, pixels, repeat); with repeat, groups of pixels are equal."""
    draw = torch.Generator().manual_seed(seed)
    noise = prior.sample((clips, 1, FRAMES, pixels, 1), generator=draw, dtype=torch.float64)
    return noise.expand(-1, -1, -1, -1, repeat).transpose(1, 2).numpy()


def coverage(prior: NoisePrior, *, repeat: int, naive: bool = False) -> tuple[int, int]:
    """In how many of so many seeds the fitted interval of 95% holds the prior's α."""
    seeds, hits = 200, 0
    for seed in range(seeds):
        maps = sample(prior, seed, repeat=repeat)
        fit = fit_alpha(
            prior.name, frame_products(maps), values_per_map=maps[0, 0].size, resamples=300, seed=seed
        )
        low, high = fit.naive_interval if naive else fit.interval
        hits += low <= prior.alpha <= high  # type: ignore[operator]
    return hits, seeds


@pytest.mark.parametrize("repeat", [1, 16], ids=["independent pixels", "pixels in groups of 16"])
@pytest.mark.parametrize("prior", [MixedNoise(1.0), ProgressiveNoise(2.0), MixedNoise(0.3)], ids=repr)
def test_the_interval_of_alpha_holds_it_as_often_as_it_says(prior: NoisePrior, repeat: int) -> None:
    """A coverage of 95% gives fewer hits than this with a probability of 1e-5 at most."""
    hits, seeds = coverage(prior, repeat=repeat)
    assert hits >= stats.binom.ppf(1e-5, seeds, 0.95), hits


def test_the_naive_interval_is_right_only_where_pixels_are_independent() -> None:
    hits, seeds = coverage(MixedNoise(1.0), repeat=1, naive=True)
    assert hits >= stats.binom.ppf(1e-5, seeds, 0.95), hits
    hits, seeds = coverage(MixedNoise(1.0), repeat=16, naive=True)
    assert hits < stats.binom.ppf(1e-5, seeds, 0.95), hits


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.7, 2.0, 30.0])
def test_alpha_of_an_exact_covariance_is_found_exactly(name: str, alpha: float) -> None:
    """Products of orthogonal clips whose covariance is the prior's: the maximum is at its α."""
    wanted = make_prior(name, alpha).covariance(FRAMES).numpy()
    products = np.zeros((CLIPS, FRAMES, CLIPS, FRAMES))
    products[np.arange(CLIPS), :, np.arange(CLIPS), :] = 1.7 * wanted
    np.testing.assert_allclose(covariance(products), 1.7 * wanted, atol=1e-12)
    fit = fit_alpha(name, products, values_per_map=64, resamples=100)
    assert fit.alpha == pytest.approx(alpha, rel=2e-3, abs=1e-6)
    assert fit.scale == pytest.approx(1.7, rel=1e-2)  # at the nearest point of the grid
    assert fit.interval == pytest.approx((alpha, alpha), rel=2e-3, abs=1e-6)


def test_a_mean_that_all_clips_share_is_no_correlation() -> None:
    maps = sample(IIDNoise(), 0)
    shifted = maps + 3.0 * np.random.default_rng(0).standard_normal(maps.shape[1:])
    found, plain = frame_correlation(frame_products(shifted)), frame_correlation(frame_products(maps))
    assert found.within[1:].max() > 0.3  # which would pass for one
    np.testing.assert_allclose(found.correlation, plain.correlation, atol=0.05)
    for name in FAMILIES:
        a, b = (
            fit_alpha(name, frame_products(m), values_per_map=64, resamples=100).alpha
            for m in (maps, shifted)
        )
        assert a == pytest.approx(b, abs=1e-6)


def test_correlation_less_that_of_different_clips_is_the_covariance_over_clips() -> None:
    maps = sample(MixedNoise(1.0), 1) + 0.5
    products = frame_products(maps)
    flat = maps.reshape(CLIPS, FRAMES, -1)
    direct = np.mean([np.cov(flat[:, :, p], rowvar=False) for p in range(flat.shape[2])], axis=0)
    np.testing.assert_allclose(covariance(products), direct, atol=1e-12)
    trained, left = leave_one_out(products)
    rest = np.delete(flat, 3, axis=0)
    without = np.mean([np.cov(rest[:, :, p], rowvar=False) for p in range(flat.shape[2])], axis=0)
    residual = flat[3] - rest.mean(axis=0)
    np.testing.assert_allclose(trained[3], without, atol=1e-12)
    np.testing.assert_allclose(
        left[3], residual @ residual.T / flat.shape[2] * (CLIPS - 1) / CLIPS, atol=1e-12
    )


def test_standard_errors_of_the_correlation_are_those_seen_over_data_sets() -> None:
    """The scatter over 200 data sets is known to ±5%; a jackknife's mean is allowed 20%."""
    found = [frame_correlation(frame_products(sample(ProgressiveNoise(1.0), seed))) for seed in range(200)]
    seen = np.std([f.correlation for f in found], axis=0)[1:]
    said = np.mean([f.correlation_error for f in found], axis=0)[1:]
    np.testing.assert_allclose(said, seen, rtol=0.2)


@pytest.mark.parametrize(
    "prior", [MixedNoise(1.0), ProgressiveNoise(2.0), CovarianceNoise([1.0, 0.1, 0.5, 0.0, 0.3])], ids=repr
)
def test_the_family_that_made_the_maps_fits_clips_left_out_best(prior: NoisePrior) -> None:
    scores = compare_families(frame_products(sample(prior, 0, pixels=256)))
    best, wrong = (
        next(iter(scores)),
        {"mixed": "progressive", "progressive": "mixed"}.get(prior.name, "mixed"),
    )
    # The empirical prior holds every Toeplitz one: it may come as near as its own errors.
    assert prior.name.replace("covariance", "empirical") == best or best == "empirical"
    assert scores[wrong].behind > 4 * scores[wrong].standard_error
    assert scores["iid"].behind > 4 * scores["iid"].standard_error


def test_of_independent_frames_no_family_is_clearly_better_than_iid() -> None:
    """5 standard errors by chance: below 1e-5."""
    score = compare_families(frame_products(sample(IIDNoise(), 2)))["iid"]
    assert score.behind <= 5 * score.standard_error + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_the_empirical_prior_is_valid_for_every_covariance(frames: int, seed: int, rank: int) -> None:
    factor = np.random.default_rng(seed).standard_normal((frames, rank))
    row = empirical_correlation(factor @ factor.T + 1e-9 * np.eye(frames))
    assert row.shape == (frames,)
    assert row[0] == 1.0
    assert np.linalg.eigvalsh(toeplitz(row))[0] > 0
    prior = make_prior("empirical", correlation=row.tolist())
    assert isinstance(prior, CovarianceNoise)
    assert prior_from_config(prior.config()) == prior


def test_the_empirical_prior_is_what_was_measured_where_that_is_a_correlation() -> None:
    row = np.array([1.0, 0.5, 0.2, 0.1])
    np.testing.assert_allclose(empirical_correlation(3.0 * toeplitz(row)), row, atol=1e-6)


def test_the_nearest_correlation_takes_the_place_of_what_is_none() -> None:
    """(1, 0, -0.9) at three frames has a negative eigenvalue; by symmetry (1, ρ, x) has λ = 1 - x and 1 + x/2 ± …"""
    row = np.array([1.0, 0.9, 0.2])
    assert np.linalg.eigvalsh(toeplitz(row))[0] < -0.1
    found = empirical_correlation(toeplitz(row))
    grid = np.linspace(-1, 1, 401)
    valid = [
        np.array([1.0, a, b])
        for a in grid
        for b in grid
        if np.linalg.eigvalsh(toeplitz(np.array([1.0, a, b])))[0] >= 0
    ]
    nearest = min(np.linalg.norm(toeplitz(v) - toeplitz(row)) for v in valid)
    assert np.linalg.norm(toeplitz(found) - toeplitz(row)) == pytest.approx(nearest, abs=0.01)


@pytest.mark.parametrize("kind", ["iid", "mixed", "progressive", "empirical"])
def test_a_snippet_is_the_prior_that_it_names(kind: str) -> None:
    row = [1.0, 0.411746, 0.237997]
    noise = yaml.safe_load(noise_snippet(kind, 1.23456, row))["finetune_video"]["base"]["noise"]
    prior = NoiseSettings(**({"alpha": 2.0} | noise)).prior()  # conf/base's alpha stays where none is pasted
    expected = {
        "iid": IIDNoise(),
        "mixed": MixedNoise(1.2346),
        "progressive": ProgressiveNoise(1.2346),
        "empirical": CovarianceNoise(row),
    }
    assert prior == expected[kind]


def test_make_prior_wants_a_correlation_for_empirical() -> None:
    with pytest.raises(ValueError, match="'empirical' without a correlation"):
        make_prior("empirical")


def test_maps_that_can_not_be_compared_are_refused_in_a_sentence() -> None:
    maps = sample(IIDNoise(), 0)
    with pytest.raises(UserError, match="2 clips were inverted: at least 3"):
        frame_products(maps[:2])
    with pytest.raises(UserError, match="one frame each"):
        frame_products(maps[:, :1])
    maps[5, 0, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="of 1 of 24 clips, first clip 5, hold values that are not finite"):
        frame_products(maps)
