"""Noise priors: the law over the frames, checked exactly where it can be and else at a stated confidence.

A statistical check here raises a false alarm with a probability of at most FALSE_ALARM, whatever the seed.
"""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyoco_pipeline.noise import (
    CovarianceNoise,
    IIDNoise,
    MixedNoise,
    NoisePrior,
    ProgressiveNoise,
    make_prior,
    prior_from_config,
    white_noise,
)

FALSE_ALARM = 1e-6
ALPHAS = [0.0, 0.5, 1.0, 2.0, 10.0]
CORRELATED = [MixedNoise, ProgressiveNoise]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_covariance(draws: Tensor, expected: Tensor) -> None:
    """n independent draws (n, D) of zero-mean Gaussians have the covariance `expected` (D, D).

    XY of jointly Gaussian X, Y with variances v, w and covariance c is a(U² - 1) - b(V² - 1) + c for
    independent normal U, V, with a - b = c and a² + b² = (vw + c²)/2. By lemma 1 of Laurent and Massart
    (2000) the mean of n such products is within √(2(vw + c²)t/n) + (√(vw) + |c|)t/n of c with probability
    1 - 2e^-t. The union bound over the D(D+1)/2 entries gives t.
    """
    n, size = draws.shape
    t = math.log(size * (size + 1) / FALSE_ALARM)
    variance = expected.diagonal()
    product = torch.outer(variance, variance)
    bound = (2 * (product + expected**2) * t / n).sqrt() + (product.sqrt() + expected.abs()) * t / n
    deviation = (draws.double().T @ draws.double() / n - expected).abs()
    assert (deviation <= bound).all(), f"off by {(deviation / bound).max():.2f} times the bound"


def pixels_as_draws(clips: Tensor) -> Tensor:
    """(B, C, T, H, W) as (B·C·H·W, T): every pixel is one draw of its T frames."""
    return clips.movedim(2, -1).flatten(0, -2)


def all_priors() -> list[NoisePrior]:
    toeplitz = [1.0, 0.3, -0.4, 0.1]
    return [IIDNoise(), MixedNoise(1), ProgressiveNoise(2), MixedNoise(math.inf), CovarianceNoise(toeplitz)]


# The covariance


@pytest.mark.parametrize("alpha", ALPHAS)
def test_mixed_frames_share_alpha_squared_over_one_plus_alpha_squared(alpha: float) -> None:
    covariance = MixedNoise(alpha).covariance(5)
    assert covariance.dtype == torch.float64
    for i, j in itertools.product(range(5), range(5)):
        expected = 1.0 if i == j else alpha**2 / (1 + alpha**2)
        assert covariance[i, j].item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_progressive_correlation_decays_with_the_distance_of_the_frames(alpha: float) -> None:
    covariance = ProgressiveNoise(alpha).covariance(5)
    assert covariance.dtype == torch.float64
    for i, j in itertools.product(range(5), range(5)):
        expected = (alpha / math.sqrt(1 + alpha**2)) ** abs(i - j)
        assert covariance[i, j].item() == pytest.approx(expected, abs=1e-15)


def test_iid_frames_have_the_identity_as_covariance() -> None:
    assert torch.equal(IIDNoise().covariance(4), torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("kind", CORRELATED)
def test_alpha_zero_is_the_iid_law_and_infinity_is_one_frame(kind: type) -> None:
    assert torch.equal(kind(0).covariance(6), IIDNoise().covariance(6))
    assert torch.equal(kind(math.inf).covariance(6), torch.ones(6, 6, dtype=torch.float64))


def test_covariance_noise_takes_a_matrix_or_a_toeplitz_row_and_shortens_to_the_leading_block() -> None:
    row = [1.0, 0.5, -0.2]
    matrix = [[1.0, 0.5, -0.2], [0.5, 1.0, 0.5], [-0.2, 0.5, 1.0]]
    expected = torch.tensor(matrix, dtype=torch.float64)
    for given_as in (row, matrix, np.array(matrix), torch.tensor(row, dtype=torch.float64)):
        prior = CovarianceNoise(given_as)
        assert torch.equal(prior.covariance(3), expected)
        assert torch.equal(prior.covariance(2), expected[:2, :2])
        assert prior == CovarianceNoise(row)


# The samples have that covariance: exactly, as the linear map that turns white noise into samples


def linear_map(prior: NoisePrior, num_frames: int) -> Tensor:
    """F of samples = F @ white noise, solved from samples of the prior and of i.i.d. noise on one seed."""
    shape = (1, 1, num_frames, 4 * num_frames, 4)
    white, noise = (
        p.sample(shape, generator=generator(0), dtype=torch.float64)[0, 0].flatten(1)
        for p in (IIDNoise(), prior)
    )
    return noise @ torch.linalg.pinv(white)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(CORRELATED),
    alpha=st.one_of(st.floats(0, 1e3), st.just(math.inf)),
    num_frames=st.integers(1, 32),
)
def test_samples_are_white_noise_times_a_factor_of_the_covariance(
    kind: type, alpha: float, num_frames: int
) -> None:
    prior = kind(alpha)
    factor = linear_map(prior, num_frames)
    torch.testing.assert_close(factor @ factor.T, prior.covariance(num_frames), rtol=0, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**31))
def test_covariance_noise_has_its_matrix_as_covariance_also_where_that_is_singular(
    num_frames: int, rank: int, seed: int
) -> None:
    directions = white_noise((num_frames, rank), generator=generator(seed), dtype=torch.float64)
    unit = directions / directions.norm(dim=1, keepdim=True)
    matrix = unit @ unit.T
    factor = linear_map(CovarianceNoise(matrix), num_frames)
    torch.testing.assert_close(factor @ factor.T, matrix, rtol=0, atol=1e-7)


# The samples have that covariance: by counting


@pytest.mark.parametrize("num_frames", [1, 2, 3, 16, 32])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", CORRELATED)
def test_sampled_frames_have_the_covariance(kind: type, alpha: float, num_frames: int) -> None:
    prior = kind(alpha)
    noise = prior.sample((2, 3, num_frames, 96, 96), generator=generator(1))
    assert_covariance(pixels_as_draws(noise), prior.covariance(num_frames))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", CORRELATED)
def test_streamed_frames_have_the_law_of_sampled_frames(kind: type, alpha: float) -> None:
    prior = kind(alpha)
    stream = prior.stream((2, 3, 96, 96), generator=generator(2))
    noise = torch.stack(list(itertools.islice(stream, 16)), dim=2)
    assert_covariance(pixels_as_draws(noise), prior.covariance(16))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("prior", [IIDNoise(), MixedNoise(1), ProgressiveNoise(2)], ids=repr)
def test_clips_channels_and_pixels_are_independent(prior: NoisePrior, streamed: bool) -> None:
    # Four clips, two channels, 2×2 pixels of three frames make 96 numbers; 8000 of such groups are the draws.
    groups, shape = 8000, (4, 2, 3, 2, 2)
    batch = (groups * shape[0], *shape[1:])
    if streamed:
        frames = prior.stream((batch[0], 2, 2, 2), generator=generator(3))
        noise = torch.stack(list(itertools.islice(frames, 3)), dim=2)
    else:
        noise = prior.sample(batch, generator=generator(3))
    eye = [torch.eye(size, dtype=torch.float64) for size in shape]
    expected = torch.kron(eye[0], torch.kron(eye[1], prior.covariance(3)))
    expected = torch.kron(expected, torch.kron(eye[3], eye[4]))
    assert_covariance(noise.reshape(groups, -1), expected)


@pytest.mark.parametrize("prior", all_priors(), ids=repr)
def test_every_frame_alone_is_standard_normal(prior: NoisePrior) -> None:
    # The Dvoretzky-Kiefer-Wolfowitz inequality bounds the empirical distribution function of n draws:
    # P(sup |F_n - F| > √(ln(2/δ)/2n)) <= δ, here with δ shared by the frames.
    frames = pixels_as_draws(prior.sample((2, 2, 4, 64, 64), generator=generator(4), dtype=torch.float64)).T
    n = frames.shape[1]
    bound = math.sqrt(math.log(2 * len(frames) / FALSE_ALARM) / (2 * n))
    normal = torch.special.ndtr(frames.sort(dim=1).values)
    above = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = torch.maximum((above - normal).abs(), (normal - above + 1 / n).abs()).amax(dim=1)
    assert (distance <= bound).all()


@pytest.mark.parametrize("kind", CORRELATED)
def test_infinite_alpha_repeats_one_frame(kind: type) -> None:
    prior = kind(math.inf)
    noise = prior.sample((2, 1, 5, 3, 3), generator=generator(5))
    assert torch.equal(noise, noise[:, :, :1].expand_as(noise))
    assert not torch.equal(noise[0], noise[1])
    first, *others = itertools.islice(prior.stream((2, 1, 3, 3), generator=generator(5)), 5)
    assert all(torch.equal(first, other) for other in others)


def test_covariance_noise_reproduces_the_other_priors() -> None:
    for prior in (IIDNoise(), MixedNoise(1.3), ProgressiveNoise(0.7)):
        general = CovarianceNoise(prior.covariance(6))
        factor = linear_map(general, 6)
        torch.testing.assert_close(factor @ factor.T, prior.covariance(6), rtol=0, atol=1e-10)


# Shapes, dtypes, generators


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 5),
    alpha=st.one_of(st.floats(0, allow_nan=False), st.just(math.inf)),
    kind=st.sampled_from(CORRELATED),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_samples_have_the_shape_and_dtype_asked_for(
    shape: tuple[int, ...], alpha: float, kind: type, dtype: torch.dtype
) -> None:
    noise = kind(alpha).sample(shape, dtype=dtype)
    assert noise.shape == shape
    assert noise.dtype == dtype
    assert noise.isfinite().all()
    frame = next(kind(alpha).stream(shape[:2] + shape[3:], dtype=dtype))
    assert frame.shape == shape[:2] + shape[3:]
    assert frame.dtype == dtype


def test_the_default_dtype_is_that_of_torch() -> None:
    assert MixedNoise(1).sample((1, 1, 2, 1, 1)).dtype == torch.get_default_dtype()


@pytest.mark.parametrize("prior", all_priors(), ids=repr)
def test_bfloat16_noise_is_mixed_in_float32_and_then_rounded(prior: NoisePrior) -> None:
    shape = (2, 3, 4, 5, 6)
    full = prior.sample(shape, generator=generator(6), dtype=torch.float32)
    assert torch.equal(
        prior.sample(shape, generator=generator(6), dtype=torch.bfloat16), full.to(torch.bfloat16)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prior.sample(shape, generator=generator(6), dtype=torch.float32), full)


@settings(max_examples=25, deadline=None)
@given(
    prior=st.sampled_from(all_priors()),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    batch=st.integers(2, 5),
    data=st.data(),
)
def test_a_clip_with_its_own_generator_does_not_depend_on_its_batch(
    prior: NoisePrior, shape: tuple[int, ...], batch: int, data: st.DataObject
) -> None:
    clip = data.draw(st.integers(0, batch - 1))
    together = prior.sample((batch, *shape), generator=[generator(seed) for seed in range(batch)])
    alone = prior.sample((1, *shape), generator=[generator(clip)])
    assert torch.equal(together[clip], alone[0])
    assert torch.equal(alone, prior.sample((1, *shape), generator=generator(clip)))


@pytest.mark.parametrize("prior", [IIDNoise(), MixedNoise(1), ProgressiveNoise(2)], ids=repr)
def test_a_stream_with_its_own_generator_does_not_depend_on_its_batch(prior: NoisePrior) -> None:
    together = prior.stream((3, 2, 4, 4), generator=[generator(seed) for seed in range(3)])
    alone = prior.stream((1, 2, 4, 4), generator=[generator(1)])
    for both, one in itertools.islice(zip(together, alone, strict=True), 5):
        assert torch.equal(both[1], one[0])


def test_writing_into_a_streamed_frame_does_not_change_the_frames_to_come() -> None:
    for prior in (IIDNoise(), MixedNoise(1), ProgressiveNoise(2)):
        untouched = prior.stream((1, 1, 2, 2), generator=generator(7))
        written = prior.stream((1, 1, 2, 2), generator=generator(7))
        for expected, frame in itertools.islice(zip(untouched, written, strict=True), 4):
            assert torch.equal(expected, frame)
            frame.zero_()


def test_one_frame_and_iid_noise_are_plain_white_noise() -> None:
    for prior in all_priors():
        image = prior.sample((2, 3, 1, 4, 4), generator=generator(8))
        assert torch.equal(image, torch.randn(2, 3, 1, 4, 4, generator=generator(8)))
    clip = IIDNoise().sample((2, 3, 5, 4, 4), generator=generator(8))
    assert torch.equal(clip, torch.randn(2, 3, 5, 4, 4, generator=generator(8)))


# Priors as values


def test_priors_are_equal_by_value_and_hashable() -> None:
    assert MixedNoise(1) == MixedNoise(1.0) != MixedNoise(2)
    assert MixedNoise(1) != ProgressiveNoise(1)
    assert len({MixedNoise(1), MixedNoise(1.0), IIDNoise(), IIDNoise(), CovarianceNoise([1, 0.5])}) == 3
    assert repr(ProgressiveNoise(2)) == "ProgressiveNoise(alpha=2.0)"


@pytest.mark.parametrize("prior", all_priors(), ids=repr)
def test_a_prior_survives_strict_json(prior: NoisePrior) -> None:
    text = json.dumps(prior.config(), allow_nan=False)
    assert prior_from_config(json.loads(text)) == prior


def test_make_prior_knows_the_three_names() -> None:
    assert make_prior("iid", None) == make_prior("iid", 3.0) == IIDNoise()
    assert make_prior("mixed", 1.0) == MixedNoise(1.0)
    assert make_prior("progressive", math.inf) == ProgressiveNoise(math.inf)
    assert [p.name for p in (IIDNoise(), MixedNoise(1), ProgressiveNoise(1))] == [
        "iid",
        "mixed",
        "progressive",
    ]
    assert IIDNoise().alpha is None
    assert MixedNoise(3).alpha == 3.0


# What is refused


@pytest.mark.parametrize("kind", CORRELATED)
@pytest.mark.parametrize("alpha", [-0.1, math.nan, -math.inf, None, "1", True])
def test_alpha_has_to_be_a_number_from_zero_to_infinity(kind: type, alpha: object) -> None:
    with pytest.raises(ValueError, match=r"alpha is .*expected a number from 0"):
        kind(alpha)


def test_make_prior_refuses_an_unknown_name_and_a_missing_alpha() -> None:
    with pytest.raises(ValueError, match="name is 'pink': expected one of iid, mixed, progressive"):
        make_prior("pink", 1.0)
    with pytest.raises(ValueError, match="alpha is None"):
        make_prior("mixed", None)
    with pytest.raises(ValueError, match="config has the keys"):
        prior_from_config({"name": "mixed", "alpha": 1, "frames": 16})


@pytest.mark.parametrize("prior", all_priors(), ids=repr)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 0, 2, 2), (0, 1, 2, 2, 2), (1, 1, 2, -1, 2)])
def test_a_sample_shape_has_five_positive_sizes(prior: NoisePrior, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape is .*expected \(B, C, T, H, W\)"):
        prior.sample(shape)


def test_a_stream_refuses_its_arguments_when_called_and_not_at_the_first_frame() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, C, H, W\)"):
        MixedNoise(1).stream((1, 1, 2, 4, 4))
    with pytest.raises(ValueError, match="expected one, or 2"):
        MixedNoise(1).stream((2, 1, 4, 4), generator=[generator(0)])
    with pytest.raises(NotImplementedError, match="no endless stream"):
        CovarianceNoise([1.0, 0.5]).stream((1, 1, 4, 4))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_generators_are_one_or_one_per_clip(count: int) -> None:
    with pytest.raises(ValueError, match=f"generator holds {count}: expected one, or 2"):
        MixedNoise(1).sample((2, 1, 2, 1, 1), generator=[generator(seed) for seed in range(count)])


def test_integers_cannot_be_noise() -> None:
    with pytest.raises(ValueError, match=r"dtype is torch.int64"):
        MixedNoise(1).sample((1, 1, 2, 1, 1), dtype=torch.int64)


@pytest.mark.parametrize("prior", all_priors(), ids=repr)
def test_a_covariance_needs_at_least_one_frame(prior: NoisePrior) -> None:
    with pytest.raises(ValueError, match="num_frames is 0"):
        prior.covariance(0)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 0.5]], r"shape \(1, 2\)"),
        ([], r"shape \(0, 0\)"),
        (1.0, r"shape \(\)"),
        ([[1.0, 0.5], [0.1, 1.0]], "symmetric"),
        ([[2.0, 0.5], [0.5, 2.0]], "diagonal"),
        ([0.9, 0.5], "diagonal"),
        ([1.0, 1.5], "positive semi-definite"),
        ([1.0, -0.9, -0.9], "positive semi-definite"),
        ([1.0, math.nan], "not finite"),
    ],
)
def test_covariance_noise_needs_a_correlation_matrix(matrix: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CovarianceNoise(matrix)


def test_covariance_noise_is_no_longer_than_its_matrix() -> None:
    prior = CovarianceNoise([1.0, 0.5, 0.2])
    with pytest.raises(ValueError, match="num_frames is 4: expected at most 3"):
        prior.sample((1, 1, 4, 2, 2))
