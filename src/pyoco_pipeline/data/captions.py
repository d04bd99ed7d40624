"""Rules for captions: Great Expectations judges the table, an action per rule says what follows.

A rule is a mapping `{type, kwargs, action, reason}`: any expectation of Great Expectations by its snake-case
type and keyword arguments; `drop` (leave the rows out), `warn` (say so) or `fail` (stop); and a sentence fragment
that names what is wrong with a row. It may be about the table's own columns and about those of `caption_columns`.

Rules about rows are judged shard by shard, here or on other processes and machines; rules about the whole table, such
as a mean, are judged over the whole. What comes out is the same for every size of shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyoco_pipeline.data.caption_columns import derive_columns
from pyoco_pipeline.data.expectations import Finding, Rule, judge, merge, parse_rules
from pyoco_pipeline.errors import UserError

EXAMPLES = 5  # rows shown per rule
CAPTION_SHOWN = 80  # characters of a caption shown in a message
SHARD_ROWS = 25_000

Shard = tuple[pd.DataFrame, list[Rule]]
Map = Callable[[Callable[[Shard], list[Finding]], Sequence[Shard]], Iterable[list[Finding]]]


@dataclass(frozen=True)
class RowExample:
    """One row that a rule hit."""

    row_id: str
    caption: str  # shortened
    detail: str  # the offending value, where it is not the caption itself


@dataclass(frozen=True)
class RuleOutcome:
    """What one rule found: `num_failing` of `num_rows` rows, the first of them as `examples`."""

    type: str
    action: str
    reason: str
    success: bool
    num_failing: int  # 0 for a rule about the whole table
    num_rows: int
    examples: tuple[RowExample, ...] = ()
    observed: str = ""  # for a rule about the whole table: the value that was judged

    @property
    def percent_failing(self) -> float:
        """Share of rows that failed, in percent."""
        return 100 * self.num_failing / self.num_rows if self.num_rows else 0.0

    @property
    def count_in_words(self) -> str:
        """How much the rule found."""
        if self.observed:
            return f"observed {self.observed}"
        few = 0 < self.percent_failing < 0.05  # some rows of very many are not none
        percent = "less than 0.1%" if few else f"{self.percent_failing:.1f}%"
        return f"{self.num_failing:,} of {self.num_rows:,} rows, {percent}"


@dataclass(frozen=True)
class CaptionCheck:
    """A checked table: `kept` has the table's own columns, `dropped` these and `reason`."""

    kept: pd.DataFrame
    dropped: pd.DataFrame
    rules: tuple[RuleOutcome, ...]

    @property
    def failed(self) -> bool:
        """Whether a rule with the action `fail` was broken."""
        return any(rule.action == "fail" and not rule.success for rule in self.rules)

    def summary(self) -> str:
        """Several lines: the counts, each broken rule, and the first failing rows of the `fail` rules."""
        total = len(self.kept) + len(self.dropped)
        lines = [f"{total} captions: {len(self.kept)} kept, {len(self.dropped)} dropped."]
        for rule in (rule for rule in self.rules if not rule.success):
            lines.append(f"{rule.action}: {rule.reason} ({rule.count_in_words})")
            if rule.action == "fail":
                for row in rule.examples:
                    lines.append(f"  {row.row_id}: {row.caption!r}{f' [{row.detail}]' if row.detail else ''}")
                if rule.num_failing > len(rule.examples) > 0:
                    lines.append(f"  and {rule.num_failing - len(rule.examples)} more rows")
        return "\n".join(lines)


def check_captions(
    table: pd.DataFrame,
    expectations: Sequence[Mapping[str, Any]],
    *,
    shard_rows: int = SHARD_ROWS,
    map: Map = map,
) -> CaptionCheck:
    """Judges `table` by rules: columns `row_id`, `path`, `caption`; start, end, split, ... where there are any.

    A rule with `mostly` is broken only when too many rows fail; an unbroken rule drops nothing. shard_rows: rows that
    are judged at once; map: as the builtin, results in order, for instance of a pool of processes. Raises UserError
    for a rule that is not well formed: unknown type, argument, action or column.
    """
    missing = [name for name in ("row_id", "path", "caption") if name not in table.columns]
    if missing:
        raise UserError(
            f"The table of captions has no column {missing[0]}; "
            f"its columns are: {', '.join(str(name) for name in table.columns)}."
        )
    if shard_rows < 1:
        raise UserError(f"shard_rows of the captions' validator is {shard_rows}; give at least 1.")
    frame = derive_columns(table)
    rules = parse_rules(expectations, list(frame.columns))
    findings = _judge_in_shards(frame, rules, shard_rows, map)
    outcomes, reasons = [], [""] * len(frame)
    for rule, finding in zip(rules, findings, strict=True):
        outcomes.append(_outcome(frame, rule, finding))
        if rule.action == "drop" and not finding.success:
            for row in finding.failing:
                reasons[row] += f"; {rule.reason}" if reasons[row] else rule.reason
    dropped = np.array([bool(reason) for reason in reasons], dtype=bool)
    return CaptionCheck(
        kept=table[~dropped].reset_index(drop=True),
        dropped=table[dropped].assign(reason=[r for r in reasons if r]).reset_index(drop=True),
        rules=tuple(outcomes),
    )


def judge_shard(shard: Shard) -> list[Finding]:
    """What each rule finds in a part of the table, whose rows keep their numbers."""
    return judge(*shard)


def _judge_in_shards(frame: pd.DataFrame, rules: Sequence[Rule], shard_rows: int, map: Map) -> list[Finding]:
    by_row = [rule for rule in rules if rule.by_row]
    whole = [rule for rule in rules if not rule.by_row]
    findings = dict(zip((rule.number for rule in whole), judge(frame, whole), strict=True))
    if by_row:
        # A shard may travel to another machine: without the columns that no rule reads.
        needed = frame[list(dict.fromkeys(column for rule in by_row for column in rule.columns))]
        starts = range(0, max(len(frame), 1), shard_rows)
        shards = [(needed.iloc[start : start + shard_rows], by_row) for start in starts]
        parts = list(map(judge_shard, shards))
        for rule, found in zip(by_row, zip(*parts, strict=True), strict=True):
            findings[rule.number] = merge(rule, found)
    return [findings[rule.number] for rule in rules]


def _outcome(frame: pd.DataFrame, rule: Rule, finding: Finding) -> RuleOutcome:
    column = next(iter(rule.columns), "caption")
    examples = [
        RowExample(
            str(frame["row_id"].iloc[row]),
            _shorten(frame["caption"].iloc[row] or ""),
            "" if column == "caption" else _shorten(f"{column}: {frame[column].iloc[row]}"),
        )
        for row in finding.failing[:EXAMPLES]
    ]
    value = finding.observed
    observed = (
        "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else _shorten(str(value))
    )
    return RuleOutcome(
        rule.type,
        rule.action,
        rule.reason,
        finding.success,
        len(finding.failing),
        len(frame),
        tuple(examples),
        observed,
    )


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CAPTION_SHOWN else text[: CAPTION_SHOWN - 1] + "…"
