"""What a stage is given of a clip: which frames, what of them in small, and under which noise."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyoco_pipeline.cascade.conditions import (
    MASKS,
    Condition,
    FramesCondition,
    LowResolutionCondition,
    augment,
    condition_from_config,
)
from pyoco_pipeline.config.stage import FramesConditionSettings
from pyoco_pipeline.data.views import shrink
from pyoco_pipeline.noise import CovarianceNoise, IIDNoise, MixedNoise, NoisePrior, ProgressiveNoise

CPU = torch.device("cpu")
SHAPE = torch.Size((3, 2, 11, 4, 6))
MANY = 4000  # clips; a share p of them has a standard deviation of at most 1/2/sqrt(4000) = 0.8%
SIX_SIGMA = 6 * 0.5 / math.sqrt(MANY)  # misses once in 10^9


def frames(prior: NoisePrior | None = None, level: float = 0.3, **masks: float) -> FramesCondition:
    return FramesCondition(5, masks or {"interpolation": 1.0}, level, prior or IIDNoise())


def low_resolution(prior: NoisePrior | None = None, level: float = 0.5, scale: int = 2) -> Condition:
    return LowResolutionCondition(scale, level, prior or IIDNoise())


def draw(condition: Condition, shape: torch.Size = SHAPE, seed: int = 0) -> dict[str, torch.Tensor]:
    return condition.draw(shape, CPU, torch.Generator().manual_seed(seed))


def masks(condition: FramesCondition, num_frames: int = 11) -> torch.Tensor:
    """(MANY, T) bool."""
    return draw(condition, torch.Size((MANY, 1, num_frames, 1, 1)))["is_given"]


def test_interpolation_gives_every_key_frame_from_the_first_to_the_last() -> None:
    assert masks(frames())[0].nonzero()[:, 0].tolist() == [0, 5, 10]
    assert frames().key_frames(76).sum() == 16


def test_prediction_gives_the_first_frames_each_number_as_often() -> None:
    given_frames = masks(frames(prediction=1.0))
    counts = given_frames.sum(dim=1)
    assert all(row[:k].all() and not row[k:].any() for row, k in zip(given_frames, counts, strict=True))
    shares = torch.bincount(counts, minlength=12)[1:11] / MANY  # 1 to T - 1
    assert counts.min() == 1
    assert counts.max() == 10
    assert (shares - 0.1).abs().max() < SIX_SIGMA


def test_inpainting_gives_each_frame_with_probability_one_half() -> None:
    given_frames = masks(frames(inpainting=1.0)).float()
    assert (given_frames.mean(dim=0) - 0.5).abs().max() < SIX_SIGMA
    together = (given_frames[:, :-1] * given_frames[:, 1:]).mean(dim=0)  # independently
    assert (together - 0.25).abs().max() < SIX_SIGMA


def test_everything_gives_every_frame_and_the_clip_itself() -> None:
    condition = frames(level=0.0, everything=1.0)
    assert masks(condition).all()
    x0 = torch.randn(SHAPE)
    concat = condition.of(x0, draw(condition))["concat"]
    assert torch.equal(concat[:, :2], x0)
    assert (concat[:, 2] == 1).all()


def test_everything_is_drawn_by_its_weight_beside_interpolation() -> None:
    given_frames = masks(frames(interpolation=1.0, everything=0.1))
    everything = given_frames.all(dim=1)
    assert (everything | (given_frames == frames().key_frames(11)).all(dim=1)).all()
    assert abs(everything.float().mean() - 0.1 / 1.1) < SIX_SIGMA


def test_kinds_of_masks_are_drawn_by_their_weights() -> None:
    given_frames = masks(frames(interpolation=3.0, nothing=1.0))
    keys = (given_frames == frames().key_frames(11)).all(dim=1)
    nothing = ~given_frames.any(dim=1)
    assert (keys | nothing).all()
    assert abs(keys.float().mean() - 0.75) < SIX_SIGMA


@pytest.mark.parametrize("name", MASKS)
def test_parameters_of_a_stage_know_every_law(name: str) -> None:
    settings = FramesConditionSettings.model_validate(
        {"kind": "frames", "key_stride": 5, "masks": {name: 1.0}}
    )
    assert settings.masks == {name: 1.0}


@pytest.mark.parametrize("name", MASKS)
def test_an_image_is_given_no_frame(name: str) -> None:
    assert not masks(frames(**{name: 1.0}), num_frames=1).any()


def test_frames_that_are_not_given_and_the_mask_are_exact_zeros() -> None:
    x0, condition = torch.randn(SHAPE), frames()
    concat = condition.of(x0, draw(condition))["concat"]
    assert concat.shape == (3, 3, 11, 4, 6)
    assert condition.concat_channels(2) == 3
    is_key = condition.key_frames(11)
    assert (concat[:, :2, ~is_key] == 0).all()
    assert torch.equal(concat[:, 2], is_key.float()[None, :, None, None].expand(3, 11, 4, 6))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1))
def test_augmentation_keeps_the_variance_and_has_the_level_as_share_of_noise(level: float) -> None:
    clip, noise = torch.randn(2, 1, 1, 2, 2), torch.randn(2, 1, 1, 2, 2)
    levels = torch.tensor([level, level])
    augmented = augment(clip, levels, noise)
    torch.testing.assert_close(augmented, math.sqrt(1 - level**2) * clip + level * noise)


def test_level_zero_gives_the_clip_and_level_one_nothing_of_it() -> None:
    x, noise = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    assert torch.equal(augment(x, torch.zeros(2), noise), x)
    assert torch.equal(augment(x, torch.ones(2), noise), noise)


@pytest.mark.parametrize("condition", [frames(), low_resolution()])
def test_levels_are_uniform_up_to_the_highest_and_told_to_the_network(condition: Condition) -> None:
    levels = draw(condition, torch.Size((MANY, 1, 1, 4, 4)))["level"] / condition.max_noise_level
    assert levels.min() >= 0
    assert levels.max() < 1
    assert (levels.sort().values - torch.linspace(0, 1, MANY)).abs().max() < 3.5 / math.sqrt(
        MANY
    )  # Kolmogorov
    drawn = draw(condition)
    given_inputs = condition.of(torch.randn(SHAPE), drawn)
    assert torch.equal(given_inputs["noise_level"], drawn["level"])


@pytest.mark.parametrize("prior", [IIDNoise(), MixedNoise(2.0), ProgressiveNoise(3.0)])
@pytest.mark.parametrize("kind", [frames, low_resolution])
def test_augmentation_noise_is_of_its_own_prior(kind, prior: NoisePrior) -> None:
    noise = draw(kind(prior), torch.Size((MANY, 1, 4, 1, 1)))["noise"][:, 0, :, 0, 0].double()
    found = noise.T @ noise / MANY
    assert (found - prior.covariance(4)).abs().max() < 6 * math.sqrt(2 / MANY)


def test_the_clip_in_small_is_resized_before_noise_is_added() -> None:
    """Resized noise is no longer white: neighbouring pixels of it are alike."""
    condition, x0 = low_resolution(level=1.0), torch.zeros(1, 1, 1, 64, 64)
    drawn = draw(condition, x0.shape) | {"level": torch.ones(1)}
    concat = condition.of(x0, drawn)["concat"]
    assert torch.equal(concat, drawn["noise"])
    assert condition.concat_channels(3) == 3


def test_a_stage_is_given_in_sampling_what_it_was_given_in_training() -> None:
    """A clip of the stage before that equals the true one made smaller gives the same inputs."""
    x0, condition = torch.randn(SHAPE), low_resolution()
    drawn = draw(condition)
    trained = condition.of(x0, drawn)
    sampled = condition.given(shrink(x0, 2), drawn["level"], drawn["noise"])
    assert all(torch.equal(trained[name], sampled[name]) for name in ("concat", "noise_level"))


def test_parts_of_a_batch_draw_as_the_whole_batch() -> None:
    condition = frames(inpainting=1.0)
    x0, drawn = torch.randn(SHAPE), draw(condition)
    whole = condition.of(x0, drawn)
    for i in range(3):
        part = condition.of(x0[i : i + 1], {name: value[i : i + 1] for name, value in drawn.items()})
        assert all(torch.equal(part[name], whole[name][i : i + 1]) for name in whole)


@pytest.mark.parametrize(
    ("masks", "given_frames", "covered"),
    [
        ({"interpolation": 1}, [0, 5, 10], True),
        ({"interpolation": 1}, [0, 5], False),
        ({"prediction": 1}, [0], True),
        ({"prediction": 1}, [0, 1, 2], True),
        ({"prediction": 1}, [1, 2], False),
        ({"prediction": 1}, [], False),
        ({"prediction": 1}, list(range(11)), False),
        ({"inpainting": 1}, [2, 7], True),
        ({"nothing": 1, "interpolation": 0}, [], True),
        ({"nothing": 0, "interpolation": 1}, [], False),
        ({"everything": 1}, list(range(11)), True),
        ({"everything": 1}, list(range(10)), False),
        ({"everything": 0, "interpolation": 1}, list(range(11)), False),
    ],
)
def test_a_condition_knows_which_frames_it_was_ever_given(masks, given_frames, covered: bool) -> None:
    is_given = torch.zeros(11, dtype=torch.bool)
    is_given[given_frames] = True
    assert frames(**masks).covers(is_given) == covered


@pytest.mark.parametrize(
    "condition",
    [
        frames(ProgressiveNoise(math.inf), prediction=0.5, nothing=2),
        frames(CovarianceNoise([1.0, 0.5])),
        low_resolution(MixedNoise(1.0), scale=4),
    ],
)
def test_a_condition_is_kept_as_strict_json(condition: Condition) -> None:
    kept = json.loads(json.dumps(condition.config(), allow_nan=False))
    assert condition_from_config(kept) == condition
    assert condition_from_config(None) is None
