"""Tiles: the same clip as without them, from one field of noise, while the denoiser sees only a tile at a time."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_diffusion_samplers import DATA, FRAMES, PRIORS, GaussianDenoiser, only_noise
from test_noise import assert_covariance, generator, pixels_as_draws
from torch import Tensor

from pyoco_pipeline.diffusion import (
    SOLVERS,
    Churn,
    ClassifierFreeGuidance,
    DiscreteDenoiser,
    TiledDenoiser,
    discrete_sigmas,
    make_betas,
    sample,
    sampling_range,
)
from pyoco_pipeline.noise import MixedNoise, NoisePrior, ProgressiveNoise

SHAPE = (2, 1, 5, 12, 10)
TILE, OVERLAP = (3, 8, 6), (1, 4, 3)


class Spy:
    """A denoiser of clips of variance 1/4, pixel by pixel, and a record of what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        self.calls.append((x, sigma, cond))
        return x * (0.25 / (0.25 + sigma**2)).view(-1, 1, 1, 1, 1)


def places(whole: int, tile: int, overlap: int) -> list[slice]:
    """Every tile - overlap from the first on, and one that ends at the end."""
    starts = [*range(0, whole - tile, tile - overlap), whole - tile]
    return [slice(start, start + tile) for start in starts]


def cuts(x: Tensor) -> list[Tensor]:
    """The tiles of x (…, 5, 12, 10) by TILE and OVERLAP."""
    axes = [places(*sizes) for sizes in zip(x.shape[2:], TILE, OVERLAP, strict=True)]
    return [x[(..., *place)] for place in itertools.product(*axes)]


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int | None, ...], tuple[int, ...]]:
    """(frames, height, width) of a clip, of its tiles and of their overlap."""
    whole = draw(st.tuples(*[st.integers(1, 12)] * 3))
    tile = draw(st.tuples(*[st.none() | st.integers(1, 14)] * 3))
    overlap = tuple(draw(st.integers(0, (size or 8) - 1)) for size in tile)
    return whole, tile, overlap


# The result


@settings(max_examples=60, deadline=None)
@given(tilings(), st.integers(1, 4))
def test_the_weights_of_the_tiles_add_up_to_one_everywhere(tiling: tuple, at_once: int) -> None:
    whole, tile, overlap = tiling
    x = torch.zeros(2, 1, *whole, dtype=torch.float64)
    ones = TiledDenoiser(lambda x, sigma: torch.ones_like(x), tile, overlap, at_once)(x, torch.ones(2))
    torch.testing.assert_close(ones, torch.ones_like(x), rtol=0, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(tilings(), st.sampled_from(sorted(SOLVERS)), st.integers(1, 4), st.integers(0, 2**31))
def test_a_denoiser_of_single_pixels_samples_the_same_clip_with_and_without_tiles(
    tiling: tuple, solver: str, at_once: int, seed: int
) -> None:
    whole, tile, overlap = tiling

    def clips(denoise: Any) -> Tensor:
        options = {"solver": solver, "steps": 4, "generator": generator(seed), "dtype": torch.float64}
        return sample(denoise, ProgressiveNoise(2.0), (2, 1, *whole), **options)

    torch.testing.assert_close(
        clips(TiledDenoiser(Spy(), tile, overlap, at_once)), clips(Spy()), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_gaussian_clips_are_the_same_with_and_without_tiles(prior: NoisePrior) -> None:
    exact = GaussianDenoiser(DATA, prior)
    options = {"solver": "dpmpp_2m", "dtype": torch.float64}
    clips, expected = (
        sample(denoise, prior, (2, 2, FRAMES, 12, 12), generator=generator(0), **options)
        for denoise in (TiledDenoiser(exact, (None, 8, 5), (0, 3, 2)), exact)
    )
    torch.testing.assert_close(clips, expected, rtol=0, atol=1e-10)


class Blur:
    """A denoiser that looks `radius` frames and pixels far in every direction, and sees zeros beyond the ends."""

    def __init__(self, radius: int) -> None:
        size = 2 * radius + 1
        self.weight = torch.randn(1, 1, size, size, size, generator=generator(1), dtype=torch.float64)
        self.radius = radius

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.nn.functional.conv3d(x, self.weight, padding=self.radius)


def test_a_denoiser_that_looks_no_farther_than_a_quarter_of_the_overlap_is_the_same_in_tiles() -> None:
    x = torch.randn(2, 1, 17, 30, 21, generator=generator(2), dtype=torch.float64)
    blur = Blur(radius=1)
    tiled = TiledDenoiser(blur, (9, 12, 10), (4, 5, 6))
    torch.testing.assert_close(tiled(x, torch.ones(2)), blur(x, torch.ones(2)), rtol=0, atol=1e-12)


def test_a_denoiser_that_looks_less_far_than_the_overlap_is_the_same_away_from_the_ends_of_tiles() -> None:
    x = torch.randn(1, 1, 3, 40, 9, generator=generator(3), dtype=torch.float64)
    blur, radius, overlap = Blur(radius=3), 3, 8
    tiled = TiledDenoiser(blur, (None, 20, None), (0, overlap, 0))(x, torch.ones(1))
    exact = blur(x, torch.ones(1))
    ends = [
        end for place in places(40, 20, overlap) for end in (place.start, place.stop) if end not in (0, 40)
    ]
    far = torch.tensor([all(row < end - radius or row >= end + radius for end in ends) for row in range(40)])
    assert 0 < far.sum() < 40
    torch.testing.assert_close(tiled[..., far, :], exact[..., far, :], rtol=0, atol=1e-12)
    assert not torch.allclose(tiled[..., ~far, :], exact[..., ~far, :], atol=1e-3)


def test_from_one_tile_to_the_next_the_clip_changes_gradually() -> None:
    levels = iter([0.0, 1.0])
    tiled = TiledDenoiser(lambda x, sigma: torch.full_like(x, next(levels)), (None, None, 10), (0, 0, 8))
    row = tiled(torch.zeros(1, 1, 1, 1, 12, dtype=torch.float64), torch.ones(1)).flatten()
    assert torch.equal(row[:4], torch.zeros(4, dtype=torch.float64))  # with the outer quarter of the second
    assert torch.equal(row[8:], torch.ones(4, dtype=torch.float64))
    assert (row[3:9].diff() > 0).all()
    torch.testing.assert_close(row + row.flip(0), torch.ones_like(row))


def test_a_tile_as_large_as_the_clip_is_one_call_with_the_clip_itself() -> None:
    x, sigma, text = torch.randn(SHAPE), torch.ones(2), torch.zeros(2, 3)
    for tile, overlap in (
        ((None, None, None), (0, 0, 0)),
        ((5, 12, 10), (4, 3, 2)),
        ((9, None, 99), (8, 50, 0)),
    ):
        spy = Spy()
        result = TiledDenoiser(spy, tile, overlap)(x, sigma, text=text)
        ((seen, level, cond),) = spy.calls
        assert seen is x
        assert level is sigma
        assert cond["text"] is text
        assert torch.equal(result, Spy()(x, sigma))


# The noise


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_tiles_see_parts_of_the_noise_of_the_whole_clip(prior: NoisePrior) -> None:
    spy = Spy()
    sample(TiledDenoiser(spy, TILE, OVERLAP), prior, SHAPE, solver="euler", steps=1, generator=generator(4))
    whole = 80.0 * prior.sample(SHAPE, generator=generator(4))
    expected = cuts(whole)
    assert len(spy.calls) == len(expected) == 2 * 2 * 3
    for (seen, _, _), part in zip(spy.calls, expected, strict=True):
        assert torch.equal(seen, part)


@pytest.mark.parametrize(
    ("solver", "options"),
    [("heun", {"churn": Churn(s_churn=20.0)}), ("dpmpp_2m_sde", {}), ("euler_ancestral", {})],
)
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_noise_injected_on_the_way_has_the_prior_covariance_over_all_tiles(
    prior: NoisePrior, solver: str, options: dict[str, Any]
) -> None:
    # With D = 0 clips are draws of the prior at every level, also frames that no tile sees together.
    tiled = TiledDenoiser(only_noise, (2, 40, 40), (1, 8, 8))
    start = 10 * prior.sample((2, 2, FRAMES, 64, 64), generator=generator(5))
    sigmas = [10.0, 6.0, 5.5, 2.0, 1.0]
    end = SOLVERS[solver](tiled, start, sigmas, prior=prior, generator=generator(6), **options)
    assert not torch.allclose(end, start / 10, atol=0.1)
    assert_covariance(pixels_as_draws(end), prior.covariance(FRAMES))


def test_noise_drawn_tile_by_tile_would_be_seen() -> None:
    # The counterpart of the test above.
    prior = MixedNoise(1.0)
    tiles = [prior.sample((2, 2, frames, 64, 64), generator=generator(frames)) for frames in (2, 3)]
    with pytest.raises(AssertionError, match="times the bound"):
        assert_covariance(pixels_as_draws(torch.cat(tiles, dim=2)), prior.covariance(FRAMES))


# What the denoiser is given


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_the_denoiser_never_sees_more_than_so_many_tiles(at_once: int) -> None:
    spy, x = Spy(), torch.randn(SHAPE, dtype=torch.float64, generator=generator(7))
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    concat, text, options = torch.randn(2, 3, *SHAPE[2:]), torch.randn(2, 7, 4), {"class": torch.ones(2)}
    result = TiledDenoiser(spy, TILE, OVERLAP, at_once)(
        x, sigma, concat=concat, text=text, options=options, mode="video"
    )
    torch.testing.assert_close(result, Spy()(x, sigma), rtol=0, atol=1e-14)
    count = len(cuts(x))
    assert len(spy.calls) == -(-count // at_once)
    for seen, level, cond in spy.calls:
        tiles = len(seen) // 2
        assert tiles <= at_once
        assert seen.shape == (2 * tiles, 1, *TILE)
        assert cond["concat"].shape == (2 * tiles, 3, *TILE)
        assert torch.equal(level, sigma.repeat(tiles))
        assert torch.equal(cond["text"], text.repeat(tiles, 1, 1))
        assert torch.equal(cond["options"]["class"], torch.ones(2 * tiles))
        assert cond["mode"] == "video"
    assert torch.equal(torch.cat([seen for seen, _, _ in spy.calls]), torch.cat(cuts(x)))
    assert torch.equal(torch.cat([cond["concat"] for _, _, cond in spy.calls]), torch.cat(cuts(concat)))


def test_guidance_may_stand_around_the_tiles_or_within() -> None:
    def denoise(x: Tensor, sigma: Tensor, label: Tensor, concat: Tensor) -> Tensor:
        return x + concat + label.view(-1, 1, 1, 1, 1)

    x, low = torch.randn(SHAPE, generator=generator(8)), torch.randn(SHAPE, generator=generator(9))
    null, cond = {"label": torch.tensor([-1.0])}, {"label": torch.tensor([3.0, 5.0]), "concat": low}
    around = ClassifierFreeGuidance(TiledDenoiser(denoise, TILE, OVERLAP, at_once=4), 2.0, null)
    within = TiledDenoiser(ClassifierFreeGuidance(denoise, 2.0, null), TILE, OVERLAP, at_once=4)
    expected = x + low + torch.tensor([7.0, 11.0]).view(2, 1, 1, 1, 1)
    for guided in (around, within):
        torch.testing.assert_close(guided(x, torch.ones(2), **cond), expected, rtol=1e-5, atol=1e-5)


def test_a_tiled_denoiser_knows_the_noise_levels_and_the_network_of_the_one_inside() -> None:
    sigmas = discrete_sigmas(make_betas("linear", 1000))
    denoise = DiscreteDenoiser(lambda x, t: x, sigmas)
    tiled = TiledDenoiser(denoise, TILE, OVERLAP)
    assert sampling_range(tiled, None, None) == sampling_range(denoise, None, None)
    assert tiled.network is denoise.network  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the model knows noise levels"):
        sampling_range(tiled, None, 1e6)
    assert sampling_range(TiledDenoiser(Spy(), TILE, OVERLAP), None, None) == (0.002, 80.0)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": (0, None, None)}, "the tile's frames is 0: expected at least 1"),
        ({"tile": (None, 4, -1)}, "the tile's width is -1"),
        (
            {"tile": (None, 4, None), "overlap": (0, 4, 0)},
            "the overlap's height is 4: .* less than the tile's, 4",
        ),
        ({"tile": (None, 4, None), "overlap": (0, 0, -1)}, "the overlap's width is -1: expected at least 0"),
        ({"tile": (None, 4, None), "at_once": 0}, "at_once is 0: expected at least 1"),
    ],
)
def test_tiles_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiledDenoiser(only_noise, **options)
