"""The grid, the ids of its cells, what goes on from rung to rung, and what a user can get wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from pyoco_pipeline.study.cells import (
    Cell,
    cell_id,
    configurations,
    fewer_clips,
    stage_settings,
    untrained_id,
)
from pyoco_pipeline.study.halving import survivors
from pyoco_pipeline.study.settings import AblateAlphaSettings

TRAIN = {
    "steps": 100,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "lr_scale": {"temporal": 5},
    "schedule": "constant",
    "ema_half_life": 5,
    "checkpoint_every": 5,
}
VALUES: dict[str, Any] = {
    "priors": [
        {"kind": "iid"},
        {"kind": "mixed", "alphas": [0.5, 1, math.inf]},
        {"kind": "progressive", "alphas": [2]},
    ],
    "sigma_means": [-1.2, 0.4],
    "scratch": {"priors": [{"kind": "iid"}], "sigma_means": [0.4], "learning_rate": 1e-2},
    "seeds": [0, 1, 2],
    "rungs": [{"steps": 10, "seeds": 1}, {"steps": 50, "seeds": 3}],
    "train": TRAIN,
    "num_clips": 8,
}
SHARED = {"data_sha256": "d" * 64}
FEWER: dict[str, Any] = {
    "num_clips": [10, 5],
    "priors": [{"kind": "iid"}, {"kind": "progressive", "alphas": [2]}],
    "sigma_means": [0.4],
}


def settings(**changes: Any) -> AblateAlphaSettings:
    return AblateAlphaSettings(**(VALUES | changes))


def test_every_prior_meets_every_sigma_law_and_controls_have_their_own() -> None:
    names = [c.name for c in configurations(settings())]
    assert len(names) == len(set(names)) == 5 * 2 + 1
    assert names[0] == "iid P_mean=-1.2"
    assert names[7] == "mixed α=∞ P_mean=0.4"
    assert names[-1] == "scratch iid P_mean=0.4"
    papers = [c.name for c in configurations(settings()) if c.is_papers(settings().paper_sigma)]
    assert papers == ["iid P_mean=-1.2", "mixed α=1 P_mean=-1.2", "progressive α=2 P_mean=-1.2"]


def test_a_cell_is_named_by_prior_alpha_sigma_law_and_seed() -> None:
    wide = settings(sigma_stds=[1.2, 1.6])
    assert Cell(configurations(wide)[3], 7).name == "iid P_mean=0.4 P_std=1.6 seed=7"


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": {"steps": 9}},
        {"num_clips": 9},
        {"sample_seed": 1},
        {"evaluate": {"fid_frames": 3}},
        {"sigma_max": 5.0},
        {"train": TRAIN | {"learning_rate": 2e-3}, "scratch": None},  # a control has its own
        {"train": TRAIN | {"image_share": 0.5}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_scores_changes_the_id(change: dict[str, Any]) -> None:
    assert ids(settings()) & ids(settings(**change)) == set()


@pytest.mark.parametrize(
    "change",
    [
        {"rungs": [{"steps": 20, "seeds": 1}, {"steps": 100, "seeds": 2}]},
        {"evaluate_at": [0, 5]},
        {"keep": 0.9},
        {"executor": "processes", "workers": 2},
        {"max_minutes": 1},
        {"train": TRAIN | {"keep_checkpoints": 5, "log_every": 3, "checkpoint_every": 10}},
        {"evaluate": {"batch_size": 4}},
        {"study": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_how_far_and_where_it_trains_leaves_the_id(change: dict[str, Any]) -> None:
    assert ids(settings()) == ids(settings(**change))


def ids(of: AblateAlphaSettings) -> set[str]:
    from pyoco_pipeline.study.cells import shared_facts

    shared = SHARED | shared_facts(of)
    return {cell_id(Cell(c, seed), of, shared) for c in configurations(of) for seed in of.seeds}


def test_cells_have_ids_of_their_own_and_other_data_or_weights_give_others() -> None:
    assert len(ids(settings())) == 11 * 3
    cell = Cell(configurations(settings())[0], 0)
    one, other = (cell_id(cell, settings(), {"data_sha256": sha}) for sha in "ab")
    assert one != other


def test_before_training_cells_differ_in_prior_and_seed_alone() -> None:
    grid = configurations(settings())
    assert untrained_id(Cell(grid[0], 0), SHARED) == untrained_id(Cell(grid[1], 0), SHARED)
    assert untrained_id(Cell(grid[0], 0), SHARED) != untrained_id(Cell(grid[0], 1), SHARED)
    assert untrained_id(Cell(grid[0], 0), SHARED) != untrained_id(Cell(grid[2], 0), SHARED)
    assert untrained_id(Cell(grid[0], 0), SHARED) != untrained_id(Cell(grid[-1], 0), SHARED)


def test_a_cell_trains_with_its_own_prior_sigma_and_seed_and_a_control_with_its_own_rates() -> None:
    grid = configurations(settings())
    stage = stage_settings(Cell(grid[7], 2), settings())
    assert stage.noise.alpha == math.inf
    assert (stage.sigma.mean, stage.train.seed, stage.train.sample_every) == (0.4, 2, 10)
    assert (stage.train.learning_rate, stage.train.lr_scale) == (1e-3, {"temporal": 5})
    control = stage_settings(Cell(grid[-1], 0), settings(), "somewhere")
    assert (control.init, control.train.learning_rate, control.train.lr_scale) == ("somewhere", 1e-2, {})


def test_cells_are_scored_at_the_ends_of_rungs_and_where_asked() -> None:
    assert settings(evaluate_at=[0, 25]).evaluation_steps(50) == (0, 10, 25, 50)
    assert settings(evaluate_at=[0, 25]).evaluation_steps(10) == (0, 10)
    assert settings(evaluate_at=[0, 25]).sample_every() == 5


def kept(scores: list[float], **changes: Any) -> list[str]:
    of = settings(**changes)
    grid = configurations(of)
    return [c.name for c in survivors(grid, dict(zip(grid, scores, strict=True)), of)]


SCORES = [50.0, 20, 40, 41, 42, 43, 44, 45, 30, 31, 900]  # in the order of the grid


def test_the_best_go_on_with_the_papers_and_the_best_of_each_family() -> None:
    assert kept(SCORES, keep=0.2) == [
        "iid P_mean=-1.2",  # the paper's
        "iid P_mean=0.4",  # the best of all
        "mixed α=0.5 P_mean=-1.2",  # of its family
        "mixed α=1 P_mean=-1.2",  # the paper's
        "progressive α=2 P_mean=-1.2",
        "progressive α=2 P_mean=0.4",  # among the best three of eleven
        "scratch iid P_mean=0.4",  # the only control
    ]


def test_nothing_but_the_score_counts_where_that_is_asked_for() -> None:
    assert kept(SCORES, keep=0.1, always_keep=[]) == ["iid P_mean=0.4", "progressive α=2 P_mean=-1.2"]
    everything = kept(SCORES, keep=1.0, always_keep=[])
    assert len(everything) == len(SCORES)


def test_of_a_score_the_highest_go_on() -> None:
    values = kept(SCORES, keep=0.01, always_keep=[], metric="is_digits3d")
    assert values == ["scratch iid P_mean=0.4"]


def test_a_configuration_without_a_score_goes_no_further() -> None:
    assert "iid P_mean=-1.2" not in kept([math.nan, *SCORES[1:]], keep=1.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rungs": [{"steps": 50}, {"steps": 10}]}, "each is longer than the one before"),
        ({"rungs": [{"steps": 200}]}, "train.steps=100 is less"),
        ({"rungs": [{"steps": 12}]}, "no multiple of train.checkpoint_every=5"),
        ({"rungs": [{"steps": 10, "seeds": 4}]}, "more seeds than the 3"),
        (
            {"rungs": [{"steps": 10, "seeds": 2}, {"steps": 20, "seeds": 1}]},
            "fewer seeds than the one before",
        ),
        ({"train": TRAIN | {"schedule": "cosine"}}, "depends on where training ends"),
        ({"seeds": [1, 2, 1]}, "has one twice"),
        ({"metric": "fvd"}, "metric=fvd is none that evaluate computes"),
        ({"evaluate": {"metrics": ["fid_lite0"]}}, "metric=fvd_digits3d is none that evaluate computes"),
        ({"priors": [{"kind": "mixed"}]}, "mixed and progressive have some"),
        ({"priors": [{"kind": "iid", "alphas": [1]}]}, "mixed and progressive have some"),
        ({"fewer_clips": FEWER | {"priors": [{"kind": "empirical"}]}}, "has empirical, which priors has not"),
        (
            {"fewer_clips": FEWER | {"priors": [{"kind": "progressive", "alphas": [2, 3]}]}},
            "has progressive with α=3, which priors has not",
        ),
        ({"fewer_clips": FEWER | {"sigma_means": [2.0]}}, "has 2.0, which sigma_means has not"),
        ({"fewer_clips": FEWER | {"num_clips": [5, 5]}}, "has one twice"),
        ({"solver_steps": [0]}, "greater than 0"),
        ({"sampled_from": [0]}, "greater than 0"),
        ({"sampler": {"sigma_min": 1}, "sampled_from": [0.5]}, "sigma_min=1.0 is not below sigma_max=0.5"),
        ({"sigma_means": [math.nan]}, "finite number"),
    ],
)
def test_a_study_that_can_not_be_run_is_refused_in_words(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        settings(**change)


MEASURED = (1.0, 0.8, 0.6, 0.5)


def test_an_empirical_prior_takes_the_measured_correlation_and_is_a_family_of_its_own() -> None:
    priors = [*VALUES["priors"], {"kind": "empirical"}]
    open_ = settings(priors=priors, fewer_clips=FEWER | {"priors": [{"kind": "empirical"}]})
    assert open_.is_to_be_measured
    with pytest.raises(ValidationError, match="needs correlation"):
        configurations(open_)
    measured = open_.measured(MEASURED)
    assert not measured.is_to_be_measured
    (at_papers, _) = (c for c in configurations(measured) if c.family == "empirical")
    assert (at_papers.noise.correlation, at_papers.name) == (MEASURED, "empirical P_mean=-1.2")
    assert fewer_clips(measured)[0].noise.correlation == MEASURED
    given = settings(priors=[{"kind": "empirical", "correlation": [1.0, 0.5]}])
    assert given.measured(MEASURED) == given  # what was given stays


def test_what_a_measured_prior_is_compared_with_goes_on() -> None:
    priors = [{"kind": "progressive", "alphas": [2, 5]}, {"kind": "empirical", "correlation": MEASURED}]
    scores = [30.0, 29, 10, 11, 40, 41]
    left = kept(scores, priors=priors, scratch=None, keep=0.1, always_keep=["measured"])
    assert left == [
        "progressive α=2 P_mean=0.4",  # the better of that α
        "progressive α=5 P_mean=-1.2",  # the best
        "empirical P_mean=-1.2",  # at the paper's law
    ]


def test_cells_of_fewer_clips_have_ids_of_their_own_and_leave_those_of_all_clips() -> None:
    of = settings(fewer_clips=FEWER)
    few = fewer_clips(of)
    assert [c.name for c in few] == [
        f"{prior} P_mean=0.4 clips={count}" for count in (5, 10) for prior in ("iid", "progressive α=2")
    ]
    assert ids(of) == ids(settings())
    assert not ids(of) & {cell_id(Cell(c, 0), of, SHARED) for c in few}
    assert len({cell_id(Cell(c, 0), of, SHARED) for c in few}) == 4
    assert untrained_id(Cell(few[0], 0), SHARED) == untrained_id(Cell(few[0].with_clips(None), 0), SHARED)


def test_what_fewer_clips_are_compared_with_goes_on() -> None:
    worst = [1000.0 if place in (1, 9) else 1.0 for place in range(len(SCORES))]
    left = kept(worst, keep=0.0, always_keep=[], fewer_clips=FEWER)
    assert left == ["iid P_mean=0.4", "progressive α=2 P_mean=0.4"]
