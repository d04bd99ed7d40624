"""The paper's claims, each at the paper's sigma law and best against best: confirmed, not confirmed, or undecided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pyoco_pipeline.study.cells import PAPER_ALPHA, spelt
from pyoco_pipeline.study.table import Comparison, Row, StudyTable

Verdict = Literal["confirmed", "not confirmed", "undecided"]
NEAR = {"mixed": (0.5, 2.0), "progressive": (1.0, 4.0)}  # α within a factor of 2 of the paper's best
LAWS = {"paper": "the paper's sigma law", "best": "best against best"}


@dataclass(frozen=True)
class Hypothesis:
    """A claim at a law, with what was seen. comparison: the one that decides it; None where cells are missing."""

    claim: str
    law: str
    verdict: Verdict
    detail: str
    comparison: Comparison | None = None


def judge(table: StudyTable) -> list[Hypothesis]:
    """The claims of the paper, and that on a measured prior. Fewer than min_seeds, or missing cells, decide nothing."""
    found: list[Hypothesis] = []
    for law in LAWS:
        found += _scratch(table, law)
        found += _correlated(table, law)
        for kind in NEAR:
            found.append(_best_near(table, law, kind))
        found.append(_progressive_beats_mixed(table, law))
        found += _matched_beats_progressive(table, law)
        for kind in NEAR:
            found.append(_too_much(table, law, kind))
    return found


def _pick(
    table: StudyTable, law: str, family: str, alpha: float | Literal["any"] | None = "any"
) -> Row | None:
    """The configuration that stands for a family at a law: the paper's own, or the family's best."""
    rows = table.choose(lambda row: row.family == family and (alpha == "any" or row.alpha == alpha))
    if law == "paper":
        rows = [row for row in rows if row.is_papers_law and (row.is_papers or alpha != "any")]
    return table.best(rows)


def _scratch(table: StudyTable, law: str) -> Iterator[Hypothesis]:
    claim = "fine-tuning beats training from scratch"
    controls = sorted({row.family for row in table.choose(lambda row: row.init == "scratch")})
    for family in controls:
        kind = family.removeprefix("scratch ")
        label = f"{claim} ({kind})"
        yield _versus(table, label, law, _pick(table, law, kind), _pick(table, law, family))
    if not controls:
        yield Hypothesis(claim, law, "undecided", "no cell is trained from scratch")


def _correlated(table: StudyTable, law: str) -> Iterator[Hypothesis]:
    """Against i.i.d. before training, after the first steps that were scored, and at the end."""
    trained = [step for step in table.steps if step > 0]
    times: list[tuple[str, int | None]] = [("before any training", 0)]
    if len(trained) > 1:
        times.append((f"early, at step {trained[0]}", trained[0]))
    times.append(("late", None))
    for kind in ("mixed", "progressive", "empirical"):
        row = _pick(table, law, kind)
        if kind == "empirical":
            if not table.choose(lambda row: row.family == "empirical"):
                continue
            row = row or table.best(
                table.choose(lambda row: row.family == "empirical" and (law == "best" or row.is_papers_law))
            )
        for words, step in times:
            claim = f"{kind} noise beats i.i.d. noise {words}"
            yield _versus(table, claim, law, row, _pick(table, law, "iid"), step)


def _progressive_beats_mixed(table: StudyTable, law: str) -> Hypothesis:
    mixed, progressive = _pick(table, law, "mixed"), _pick(table, law, "progressive")
    return _versus(table, "progressive noise beats mixed noise", law, progressive, mixed)


def _matched_beats_progressive(table: StudyTable, law: str) -> Iterator[Hypothesis]:
    """Beyond the paper, where a measured prior was tried: against progressive noise at the paper's best α."""
    matched = table.choose(lambda row: row.family == "empirical" and (law == "best" or row.is_papers_law))
    if table.of_family("empirical"):
        alpha = PAPER_ALPHA["progressive"]
        claim = f"a prior matched to the data beats progressive noise at α={spelt(alpha or 0)}"
        yield _versus(table, claim, law, table.best(matched), _pick(table, law, "progressive", alpha))


def _by_alpha(table: StudyTable, law: str, kind: str) -> dict[float, Row]:
    """Per α of a kind, the configuration that stands for it."""
    alphas = sorted({row.alpha for row in table.of_family(kind) if row.alpha is not None})
    picked = ((alpha, _pick(table, law, kind, alpha)) for alpha in alphas)
    return {alpha: row for alpha, row in picked if row is not None}


def _best_near(table: StudyTable, law: str, kind: str) -> Hypothesis:
    """The best α near the paper's against the best farther away, at the last step that both sides have."""
    low, high = NEAR[kind]
    claim = f"{kind} noise is best near α={spelt(PAPER_ALPHA[kind] or 0)}, from {low:g} to {high:g}"
    rows = _by_alpha(table, law, kind)
    near = [row for alpha, row in rows.items() if low <= alpha <= high]
    far = [row for alpha, row in rows.items() if not low <= alpha <= high]
    if not near or not far:
        return Hypothesis(claim, law, "undecided", f"no α {'away from' if near else 'near'} it was tried")
    found = _best_of(table, claim, law, near, far)
    if min(rows) >= low:
        return replace(found, detail=f"{found.detail}; no α below {low:g} was tried")
    if max(rows) <= high:
        return replace(found, detail=f"{found.detail}; no α above {high:g} was tried")
    return found


def _too_much(table: StudyTable, law: str, kind: str) -> Hypothesis:
    claim = f"too much correlation hurts ({kind})"
    rows = _by_alpha(table, law, kind)
    if len(rows) < 2:
        return Hypothesis(claim, law, "undecided", "fewer than two α were tried")
    most = max(rows)
    others = [row for alpha, row in rows.items() if alpha != most]
    return _best_of(table, f"{claim}: α={spelt(most)} is worse than a lower one", law, others, [rows[most]])


def _best_of(table: StudyTable, claim: str, law: str, a: Sequence[Row], b: Sequence[Row]) -> Hypothesis:
    """The best of a against the best of b, both at the last step with enough seeds on both sides, else the last."""

    def seeds(rows: Sequence[Row], step: int) -> int:
        return max((len(row.at(table.metric, step)) for row in rows), default=0)

    steps = [step for step in table.steps if step > 0 and seeds(a, step) and seeds(b, step)]
    if not steps:
        return Hypothesis(claim, law, "undecided", "no step has scores of both sides")
    step = max(steps, key=lambda s: (min(seeds(a, s), seeds(b, s)) >= table.min_seeds, s))
    return _versus(table, claim, law, table.best(a, step), table.best(b, step), step)


def _versus(
    table: StudyTable, claim: str, law: str, a: Row | None, b: Row | None, step: int | None = None
) -> Hypothesis:
    """That a is better than b."""
    if a is None or b is None:
        return Hypothesis(claim, law, "undecided", "cells are missing")
    comparison = table.compare(a, b, step)
    if comparison is None or (step is None and comparison.step == 0):
        return Hypothesis(claim, law, "undecided", f"{a.name} and {b.name} have no scored step in common")
    return Hypothesis(claim, law, *_verdict(table, comparison), comparison)


def _verdict(table: StudyTable, comparison: Comparison) -> tuple[Verdict, str]:
    count = len(comparison.test.seeds)
    better = table.is_better(comparison)
    where = f"{comparison.a.name} against {comparison.b.name} at step {comparison.step}"
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    if not comparison.enough(table.min_seeds):
        return "undecided", f"{where}: {seeds}, fewer than {table.min_seeds}"
    if not table.is_significant(comparison):
        return "not confirmed", f"{where}: no significant difference over {seeds}"
    if better:
        return "confirmed", f"{where}, over {seeds}"
    return "not confirmed", f"{where}: the opposite, over {seeds}"


def conclusion(table: StudyTable) -> str:
    """One sentence: what the data support on correlated against i.i.d. noise, each at its best."""
    kinds = ("mixed", "progressive", "empirical")
    correlated, iid = table.best(table.choose(lambda row: row.family in kinds)), _pick(table, "best", "iid")
    if correlated is None or iid is None:
        return "The data say nothing yet: no correlated prior and i.i.d. noise have both been scored after training."
    comparison = table.compare(correlated, iid)
    if comparison is None or comparison.step == 0:
        return f"The data say nothing yet: {correlated.name} and {iid.name} have no scored step in common."
    ours, theirs = (table.mean(row, comparison.step) for row in (correlated, iid))
    assert ours is not None  # a comparison is of what was scored
    assert theirs is not None
    scores = f"{table.metric} {ours.mean:.4g} against {theirs.mean:.4g}"
    count, test = len(comparison.test.seeds), comparison.test
    pair = f"{correlated.name} and {iid.name} at step {comparison.step} ({scores})"
    if not comparison.enough(table.min_seeds):
        plural = "" if count == 1 else "s"
        return (
            f"With {count} seed{plural} the data decide nothing: {pair} are the best correlated and the best i.i.d. "
            "cell, and chance alone may separate them."
        )
    low, high = test.difference.low, test.difference.high
    numbers = (
        f"mean difference {test.difference.mean:.3g}, {1 - table.level:.0%} interval {low:.3g} to {high:.3g}"
    )
    numbers += f", paired t test over {count} seeds p = {test.p_t:.2g}"
    if not table.is_significant(comparison):
        return f"There is no significant difference between {pair}, each the best of its kind: {numbers}."
    winner, loser = (correlated, iid) if table.is_better(comparison) else (iid, correlated)
    ahead = f"{winner.name} beats {loser.name} at step {comparison.step} ({scores})"
    return f"With each at its best, {ahead}: {numbers}."
