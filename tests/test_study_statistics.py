"""What the study says of scores whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.study.cells import PAPER_ALPHA
from pyoco_pipeline.study.halving import lower_is_better
from pyoco_pipeline.study.hypotheses import conclusion, judge
from pyoco_pipeline.study.statistics import holm, interval, paired, sign_flips
from pyoco_pipeline.study.table import StudyTable

METRIC = "fvd_digits3d"
STEPS = (0, 10, 100)
Point = tuple[str, float | None, float]  # kind, α, P_mean


def cells(
    scores: dict[Point, float], seeds: int, noise: float, init: str = "finetune", draw_seed: int = 0
) -> list[dict[str, Any]]:
    """Records of cells that score so much at every step, give or take `noise`, which is theirs alone."""
    draw, records = np.random.default_rng(draw_seed), []
    for (kind, alpha, mean), score in scores.items():
        shown = None if alpha is None else "inf" if math.isinf(alpha) else alpha
        prior = f"{'scratch ' if init == 'scratch' else ''}{kind}" + ("" if alpha is None else f" α={shown}")
        for seed in range(seeds):
            values = [{METRIC: score + noise * draw.standard_normal()} for _ in STEPS]
            records.append(
                {
                    "configuration": f"{prior} P_mean={mean:g}",
                    "prior": prior,
                    "family": kind if init == "finetune" else f"scratch {kind}",
                    "kind": kind,
                    "init": init,
                    "alpha": shown,
                    "noise": {"name": kind, "alpha": shown},
                    "sigma_mean": mean,
                    "sigma_std": 1.2,
                    "is_papers_law": mean == -1.2,
                    "is_papers": mean == -1.2 and alpha == PAPER_ALPHA.get(kind, "none"),
                    "num_clips": None,
                    "neighbour_correlation": 0.5,
                    "solver_steps": [],
                    "sigma_max": [],
                    "seed": seed,
                    "evaluations": [
                        {"step": step, "clips_seen": step, "values": v}
                        for step, v in zip(STEPS, values, strict=True)
                    ],
                }
            )
    return records


AS_THE_PAPER: dict[Point, float] = {
    ("iid", None, -1.2): 100,
    ("mixed", 0.25, -1.2): 95,
    ("mixed", 1, -1.2): 80,
    ("mixed", math.inf, -1.2): 120,
    ("progressive", 0.5, -1.2): 75,
    ("progressive", 2, -1.2): 60,
    ("progressive", math.inf, -1.2): 120,
}


def verdicts(table: StudyTable, law: str = "paper") -> dict[str, str]:
    return {h.claim: h.verdict for h in judge(table) if h.law == law}


def study(seeds: int, noise: float, scores: dict[Point, float] = AS_THE_PAPER) -> StudyTable:
    scratch = cells({("iid", None, -1.2): 300}, seeds, noise, "scratch", draw_seed=1)
    return StudyTable(cells(scores, seeds, noise) + scratch, METRIC)


@pytest.mark.parametrize("law", ["paper", "best"])
def test_differences_as_large_as_the_papers_confirm_every_claim(law: str) -> None:
    found = verdicts(study(seeds=5, noise=1.0), law)
    assert set(found.values()) == {"confirmed"}, found
    assert len(found) == 12


def test_one_seed_decides_nothing() -> None:
    table = study(seeds=1, noise=1.0)
    assert set(verdicts(table).values()) == {"undecided"}
    sentence = conclusion(table)
    assert sentence.startswith("With 1 seed the data decide nothing")
    assert "beats" not in sentence


def test_two_seeds_decide_nothing_however_far_apart() -> None:
    assert set(verdicts(study(seeds=2, noise=0.0)).values()) == {"undecided"}


def test_a_real_difference_is_the_sentence_with_its_interval_and_p() -> None:
    sentence = conclusion(study(seeds=4, noise=1.0))
    assert sentence.startswith("With each at its best, progressive α=2 P_mean=-1.2 beats iid P_mean=-1.2")
    assert "mean difference -" in sentence
    assert "over 4 seeds p = " in sentence


def test_where_iid_noise_is_better_the_sentence_says_so() -> None:
    reversed_ = {point: 200 - score for point, score in AS_THE_PAPER.items()} | {("iid", None, -1.2): 20}
    table = study(4, 1.0, reversed_)
    assert "iid P_mean=-1.2 beats" in conclusion(table)
    assert verdicts(table)["progressive noise beats i.i.d. noise late"] == "not confirmed"


def test_no_difference_is_said_in_these_words() -> None:
    """Scores of one law, of which the best by chance are compared: a draw in which that is not significant."""
    table = study(3, 5.0, dict.fromkeys(AS_THE_PAPER, 100.0))
    assert conclusion(table).startswith("There is no significant difference between")
    found = verdicts(table)
    assert found["fine-tuning beats training from scratch (iid)"] == "confirmed"
    late = [h for h in judge(table) if h.claim == "progressive noise beats i.i.d. noise late"]
    assert {h.verdict for h in late} == {"not confirmed"}
    assert all("no significant difference over 3 seeds" in h.detail for h in late)


def test_no_difference_is_called_real_in_about_one_case_of_twenty() -> None:
    """400 comparisons at the paper's law: within four standard errors of .05."""
    called = 0
    for draw in range(400):
        points: dict[Point, float] = {("iid", None, -1.2): 100, ("mixed", 1, -1.2): 100}
        table = StudyTable(cells(points, 4, 5.0, draw_seed=draw), METRIC)
        (h,) = [
            h for h in judge(table) if h.claim == "mixed noise beats i.i.d. noise late" and h.law == "paper"
        ]
        assert h.comparison is not None
        called += table.is_significant(h.comparison)
    assert abs(called / 400 - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 400)


def test_the_best_is_chosen_over_alpha_and_sigma_law_where_each_is_at_its_best() -> None:
    scores = AS_THE_PAPER | {("iid", None, 0.0): 20, ("progressive", 0.5, 0.0): 40}
    found = verdicts(study(4, 0.5, scores), "best")
    assert found["progressive noise beats i.i.d. noise late"] == "not confirmed"
    assert found["progressive noise is best near α=2, from 1 to 4"] == "not confirmed"
    assert verdicts(study(4, 0.5, scores))["progressive noise beats i.i.d. noise late"] == "confirmed"


@pytest.mark.parametrize(
    ("tried", "says"), [(10, "; no α below 1 was tried"), (0.5, "; no α above 4 was tried")]
)
def test_that_an_alpha_is_best_says_on_which_side_nothing_was_tried(tried: float, says: str) -> None:
    points: dict[Point, float] = {("progressive", 2, -1.2): 50, ("progressive", tried, -1.2): 90}
    found = judge(StudyTable(cells(points, 4, 0.5), METRIC))
    claims = [h for h in found if h.claim.startswith("progressive noise is best near")]
    assert {(h.verdict, h.detail.endswith(says)) for h in claims} == {("confirmed", True)}


def test_missing_cells_leave_a_claim_undecided() -> None:
    only_iid: dict[Point, float] = {("iid", None, -1.2): 100}
    table = StudyTable(cells(only_iid, 4, 1.0), METRIC)
    assert set(verdicts(table).values()) == {"undecided"}
    assert conclusion(table).startswith("The data say nothing yet")


def test_cells_are_compared_where_both_have_enough_seeds_though_one_trained_longer() -> None:
    records = cells({("iid", None, -1.2): 100, ("mixed", 1, -1.2): 80}, 4, 1.0)
    for record in records[1:4]:  # of i.i.d., all seeds but one end early
        del record["evaluations"][-1]
    table = StudyTable(records, METRIC)
    comparison = table.compare(*table.rows)
    assert comparison is not None
    assert (comparison.step, len(comparison.test.seeds)) == (10, 4)


def test_of_a_score_the_highest_is_the_best() -> None:
    assert lower_is_better("fid_lite0")
    assert not lower_is_better("caption_accuracy")
    with pytest.raises(UserError, match="best near that of real clips"):
        lower_is_better("temporal_consistency")
    records = cells({("iid", None, -1.2): 0.9, ("mixed", 1, -1.2): 0.5}, 3, 0.0)
    for record in records:
        for row in record["evaluations"]:
            row["values"] = {"caption_accuracy": row["values"][METRIC]}
    best = StudyTable(records, "caption_accuracy")
    found = best.best(best.rows)
    assert found is not None
    assert found.kind == "iid"


values = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


@given(values, st.integers(0, 99))
def test_the_paired_test_is_scipys(differences: list[float], seed: int) -> None:
    base = np.random.default_rng(seed).normal(size=len(differences))
    a = {i: base[i] + d for i, d in enumerate(differences)}
    b = dict(enumerate(base))
    found = paired(a, b)
    assert found is not None
    if np.std(differences) > 1e-3:
        assert found.p_t == pytest.approx(
            stats.ttest_rel(list(a.values()), list(b.values())).pvalue, rel=1e-6
        )
    assert found.difference.low <= found.difference.mean <= found.difference.high


def test_the_exact_test_says_the_smallest_p_that_its_seeds_can_reach() -> None:
    found = paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert found is not None
    assert found.smallest_p == found.p_flips == 0.25
    assert sign_flips(np.array([1.0, -1.0])) == 1.0
    # Wilcoxon's exact test has the same smallest p, whatever the size of the differences.
    assert sign_flips(np.arange(1.0, 7)) == pytest.approx(stats.wilcoxon(np.arange(1.0, 7)).pvalue)


def test_only_seeds_that_both_have_are_compared() -> None:
    found = paired({0: 5.0, 1: 5.0}, {1: 4.0, 2: 1.0})
    assert found is not None
    assert found.seeds == (1,)
    assert math.isnan(found.p_t)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_an_interval_holds_the_mean_of_the_law_in_its_share_of_cases() -> None:
    """2,000 intervals of 95% from four values: within four standard errors."""
    draws = np.random.default_rng(0).normal(size=(2000, 4))
    held = np.mean([i.low <= 0 <= i.high for i in (interval(list(row)) for row in draws)])
    assert abs(held - 0.95) < 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_holms_p_values_are_those_of_his_example() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan, 0.005])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("score", "verdict"), [(40, "confirmed"), (60, "not confirmed"), (90, "not confirmed")]
)
@pytest.mark.parametrize("law", ["paper", "best"])
def test_a_measured_prior_is_compared_with_progressive_noise_at_the_papers_alpha(
    law: str, score: float, verdict: str
) -> None:
    scores = AS_THE_PAPER | {("progressive", 5, -1.2): 10, ("empirical", None, -1.2): score}
    found = verdicts(study(seeds=5, noise=1e-9 if score == 60 else 1.0, scores=scores), law)
    assert found["a prior matched to the data beats progressive noise at α=2"] == verdict
    assert "a prior matched to the data beats progressive noise at α=2" not in verdicts(study(5, 1.0), law)
