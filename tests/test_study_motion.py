"""At which noise it is decided which way a clip goes, and how training there orders the priors of a study."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from pyoco_pipeline.noise import (
    CovarianceNoise,
    IIDNoise,
    MixedNoise,
    NoisePrior,
    ProgressiveNoise,
    prior_from_config,
)
from pyoco_pipeline.study.motion import motion, share_between, told_apart_at
from pyoco_pipeline.study.table import StudyTable

FRAMES = 5
PRIORS = [IIDNoise(), MixedNoise(1.0), ProgressiveNoise(2.0), CovarianceNoise([1.0, 0.5, 0.2, 0.1, 0.0])]
METRIC, DIRECTION = "fvd_digits3d", "caption_accuracy_direction"


@pytest.fixture
def clips() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, size=(6, FRAMES, 4, 4, 3))


def covariance(prior: NoisePrior) -> np.ndarray:
    return prior.covariance(FRAMES).double().numpy()


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: prior.name)
def test_the_best_observer_errs_at_that_level_as_often_as_said(prior: NoisePrior, clips: np.ndarray) -> None:
    clip, back = clips[0], clips[0][::-1]
    (sigma,) = told_apart_at(clips[:1], covariance(prior), 1.5)
    shape = (20_000, 3, FRAMES, 4, 4)
    noise = prior.sample(shape, generator=torch.Generator().manual_seed(1)).movedim(1, -1).double().numpy()
    precision = np.linalg.inv(covariance(prior))

    def distance(x: np.ndarray, to: np.ndarray) -> np.ndarray:
        d = (x - to).reshape(len(x), FRAMES, -1)
        return np.einsum("ntp,ts,nsp->n", d, precision, d, optimize=True)

    seen = clip + sigma * noise
    errors = float((distance(seen, back) < distance(seen, clip)).mean())

    assert errors == pytest.approx(norm.sf(0.75), abs=0.012)  # four standard errors


def test_independent_noise_hides_a_clip_at_its_distance_from_itself_backwards(clips: np.ndarray) -> None:
    distances = np.linalg.norm((clips - clips[:, ::-1]).reshape(len(clips), -1), axis=1)

    np.testing.assert_allclose(told_apart_at(clips, covariance(IIDNoise())), distances)
    np.testing.assert_allclose(told_apart_at(clips, covariance(IIDNoise()), 3.0), distances / 3)


def test_a_clip_that_is_the_same_backwards_is_never_told_apart(clips: np.ndarray) -> None:
    assert told_apart_at(clips + clips[:, ::-1], covariance(ProgressiveNoise(2.0))).max() < 1e-5
    assert share_between(0.0, 0.0, 0.0, 1.0) == 0


def test_noise_that_repeats_a_frame_hides_no_motion(clips: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the covariance is singular"):
        told_apart_at(clips, covariance(MixedNoise(math.inf)))


def study_of(clips: np.ndarray, priors: list[NoisePrior], seeds: int = 2) -> list[dict[str, Any]]:
    """Cells of which those score best that were trained most between the levels."""
    cells = []
    for prior in priors:
        repeats = getattr(prior, "alpha", None) == math.inf
        opened = 1.0 if repeats else float(np.median(told_apart_at(clips, covariance(prior))))
        for mean, seed in itertools.product((0.0, 1.0), range(seeds)):
            right = norm.cdf(math.log(opened), mean, 1.2) - norm.cdf(math.log(opened / 3), mean, 1.2)
            scores = {METRIC: 100 - right + seed, DIRECTION: right}
            name = str(prior.config())
            cells.append(
                {
                    "configuration": f"{name} {mean}",
                    "prior": name,
                    "family": prior.name,
                    "kind": prior.name,
                    "init": "finetune",
                    "alpha": getattr(prior, "alpha", None),
                    "noise": prior.config(),
                    "sigma_mean": mean,
                    "sigma_std": 1.2,
                    "is_papers_law": False,
                    "is_papers": False,
                    "seed": seed,
                    "evaluations": [{"step": 0, "values": {METRIC: 500.0}}, {"step": 20, "values": scores}],
                }
            )
    return cells


FIVE = [IIDNoise(), MixedNoise(1.0), MixedNoise(5.0), ProgressiveNoise(2.0), ProgressiveNoise(10.0)]


def test_priors_that_score_as_they_were_trained_there_are_in_that_order(clips: np.ndarray) -> None:
    found = motion(StudyTable(study_of(clips, FIVE), METRIC), clips)

    assert [law["sigma_mean"] for law in found["laws"]] == [0.0, 1.0]
    for law in found["laws"]:
        assert law["step"] == 20
        direction, distance = law["correlations"]
        assert (direction["metric"], distance["metric"]) == (DIRECTION, METRIC)
        assert direction["share"] == pytest.approx(1)
        assert distance["share_by_seed"] == pytest.approx({"0": -1, "1": -1})
    for row, prior in zip(found["priors"], FIVE, strict=True):
        opened = np.median(told_apart_at(clips, covariance(prior)))
        assert (row["decided_at"], row["open_at"]) == pytest.approx((opened / 3, opened))


def test_what_scores_against_that_order_is_said_so(clips: np.ndarray) -> None:
    cells = study_of(clips, FIVE)
    for cell in cells:
        cell["evaluations"][-1]["values"][METRIC] *= -1

    (law, _) = motion(StudyTable(cells, METRIC), clips)["laws"]

    assert law["correlations"][1]["share"] == pytest.approx(1)


def test_repeated_frames_are_left_out_and_four_priors_are_too_few(clips: np.ndarray) -> None:
    cells = study_of(clips, [*FIVE[:4], MixedNoise(math.inf)])

    found = motion(StudyTable(cells, METRIC), clips)

    assert len(found["priors"]) == 4
    assert all(law["correlations"] == [] for law in found["laws"])


def test_only_seeds_are_compared_that_all_priors_have(clips: np.ndarray) -> None:
    cells = [c for c in study_of(clips, FIVE) if (c["kind"], c["seed"]) != ("iid", 1)]

    for law in motion(StudyTable(cells, METRIC), clips)["laws"]:
        assert all(correlation["share_by_seed"].keys() == {"0"} for correlation in law["correlations"])


def test_equal_scores_have_no_order(clips: np.ndarray) -> None:
    cells = study_of(clips, FIVE)
    for cell in cells:
        cell["evaluations"][-1]["values"] = {METRIC: 7.0}

    for law in motion(StudyTable(cells, METRIC), clips)["laws"]:
        (only,) = law["correlations"]
        assert only["share"] is None
        assert only["neighbours"] is None


def test_the_strength_of_correlation_is_compared_as_a_rival(clips: np.ndarray) -> None:
    cells = study_of(clips, FIVE)
    for cell in cells:
        neighbours = covariance(prior_from_config(cell["noise"]))[0, 1]
        cell["evaluations"][-1]["values"][METRIC] = float(neighbours) + cell["seed"]

    for law in motion(StudyTable(cells, METRIC), clips)["laws"]:
        distance = law["correlations"][1]
        assert distance["neighbours"] == pytest.approx(1)
        assert abs(distance["share"]) < 1
