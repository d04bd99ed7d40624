"""Rules for captions: Great Expectations judges the table, an action per rule says what follows.

A rule is a mapping `{type, kwargs, action, reason}`: any expectation of Great Expectations by its snake-case
type and keyword arguments; `drop` (leave the rows out), `warn` (say so) or `fail` (stop); and a sentence fragment
that names what is wrong with a row. So that each rule is one plain expectation, these columns are there beside
the table's own:

characters      length of the caption without surrounding space; null where the caption is
num_tokens      the table's own column if it has one, else words and punctuation marks counted by a regular
                expression; null where the caption is
normalised      the caption in NFKC, case-folded, runs of spaces and punctuation collapsed to one space
near_duplicate  1.0 where the normalised caption occurred in a row above, else 0.0: its mean is their share
script          Unicode script of most letters (LATIN, CYRILLIC, CJK, HIRAGANA, ...), "NONE" without letters
splits_of_file  number of splits that show some of this segment of this file: more than 1 is leakage
segment_ok      whether 0 <= start < end, where they are given
path_problem    the table's own column if it has one, else ""
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import tempfile
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyoco_pipeline.data.captions_html import caption_report_html
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)

ACTIONS = ("drop", "warn", "fail")
EXAMPLES = 5  # rows shown per rule
CAPTION_SHOWN = 80  # characters of a caption shown in a message

# A catalog may validate from several threads; silencing a logger is global.
_GREAT_EXPECTATIONS_LOCK = threading.Lock()


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
            lines.append(f"{rule.action}: {rule.reason} ({describe_count(rule)})")
            if rule.action == "fail":
                for row in rule.examples:
                    lines.append(f"  {row.row_id}: {row.caption!r}{f' [{row.detail}]' if row.detail else ''}")
                if rule.num_failing > len(rule.examples) > 0:
                    lines.append(f"  and {rule.num_failing - len(rule.examples)} more rows")
        return "\n".join(lines)


def describe_count(rule: RuleOutcome) -> str:
    """How much a rule found, in words."""
    if rule.observed:
        return f"observed {rule.observed}"
    return f"{rule.num_failing} of {rule.num_rows} rows, {rule.percent_failing:.1f}%"


def check_captions(table: pd.DataFrame, expectations: Sequence[Mapping[str, Any]]) -> CaptionCheck:
    """Judges `table` by rules: columns `row_id`, `path`, `caption`; start, end, split, ... where there are any.

    A rule with `mostly` is broken only when too many rows fail; an unbroken rule drops nothing. Raises
    UserError for a rule that is not well formed: unknown type, argument, action or column.
    """
    missing = [name for name in ("row_id", "path", "caption") if name not in table.columns]
    if missing:
        raise UserError(
            f"The table of captions has no column {missing[0]}; "
            f"its columns are: {', '.join(map(str, table.columns))}."
        )
    frame = derive_columns(table)
    rules, reasons = [], [""] * len(frame)
    for outcome, failing in _judge(frame, expectations):
        rules.append(outcome)
        if outcome.action == "drop" and not outcome.success:
            for row in failing:
                reasons[row] += f"; {outcome.reason}" if reasons[row] else outcome.reason
    dropped = np.array([bool(reason) for reason in reasons], dtype=bool)
    return CaptionCheck(
        kept=table[~dropped].reset_index(drop=True),
        dropped=table[dropped].assign(reason=[r for r in reasons if r]).reset_index(drop=True),
        rules=tuple(rules),
    )


def derive_columns(table: pd.DataFrame) -> pd.DataFrame:
    """A copy of `table`, indexed from 0, with the columns that the module describes."""
    frame = table.reset_index(drop=True).copy()
    captions = [_text(value) for value in table["caption"]]
    texts = [caption or "" for caption in captions]
    absent = np.array([caption is None for caption in captions], dtype=bool)
    frame["caption"] = pd.Series(captions, dtype=object)
    frame["characters"] = pd.Series([len(text.strip()) for text in texts], dtype="Int64").mask(absent)
    if "num_tokens" not in frame.columns:
        tokens = [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]
        frame["num_tokens"] = pd.Series(tokens, dtype="Int64").mask(absent)
    normalised = pd.Series([normalise(text) for text in texts], dtype=object)
    frame["normalised"] = normalised
    frame["near_duplicate"] = (normalised.duplicated() & (normalised != "")).astype(np.float64)
    frame["script"] = pd.Series([dominant_script(text) for text in texts], dtype=object)
    start, end = (_seconds(frame, name) for name in ("start", "end"))
    begins = np.where(np.isnan(start), 0.0, start)
    ends = np.where(np.isnan(end), np.inf, end)
    frame["segment_ok"] = (begins >= 0) & (begins < ends)
    frame["splits_of_file"] = _splits_of_file(frame, begins, np.maximum(begins, ends))
    if "path_problem" not in frame.columns:
        frame["path_problem"] = ""
    return frame


def normalise(text: str) -> str:
    """NFKC, case-folded, with every run of characters that are neither letters nor digits as one space."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def dominant_script(text: str) -> str:
    """The first word of most letters' Unicode names: LATIN, CYRILLIC, CJK, ...; "NONE" without letters."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text)) else "NONE"
    letters = Counter(c for c in unicodedata.normalize("NFKC", text) if c.isalpha())
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[_script(letter)] += count
    return scripts.most_common(1)[0][0] if scripts else "NONE"


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0]


def _text(value: Any) -> str | None:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    # Half a surrogate pair is no character and cannot be written to any file.
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _seconds(frame: pd.DataFrame, name: str) -> np.ndarray:
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    try:
        return pd.to_numeric(frame[name]).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise UserError(f"Column {name} of the captions must hold seconds as numbers: {error}.") from error


def _splits_of_file(frame: pd.DataFrame, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For each row, the number of splits with a row of the same file whose segment overlaps this row's."""
    counts = np.ones(len(frame), dtype=np.int64)
    if "split" not in frame.columns:
        return counts
    files = pd.factorize(pd.Series([posixpath.normpath(str(path)) for path in frame["path"]], dtype=object))[
        0
    ]
    splits = pd.factorize(frame["split"])[0]
    # File and time in one sortable integer, so that all files are searched at once.
    moments, ranks = np.unique(np.concatenate([begins, ends]), return_inverse=True)
    begin_keys, end_keys = (files * len(moments) + half for half in np.split(ranks, 2))
    for split in range(splits.max(initial=-1) + 1):
        own, others = splits != split, splits == split
        # Of this split's segments: those that begin before a row's ends, less those over before it begins.
        # All segments of the files in front are in both counts and cancel.
        begun = np.searchsorted(np.sort(begin_keys[others]), end_keys[own], side="left")
        over = np.searchsorted(np.sort(end_keys[others]), begin_keys[own], side="right")
        counts[own] += begun > over
    return counts


def _judge(
    frame: pd.DataFrame, expectations: Sequence[Mapping[str, Any]]
) -> list[tuple[RuleOutcome, list[int]]]:
    """Each rule's outcome and the positions of the rows that failed it."""
    with _quiet_great_expectations():
        import great_expectations as gx
        from great_expectations.exceptions import GreatExpectationsError

        rules = [_parse(number, rule, frame) for number, rule in enumerate(expectations, start=1)]
        if frame.empty:
            return [(RuleOutcome(r["type"], r["action"], r["reason"], True, 0, 0), []) for _, r in rules]
        context = gx.get_context(mode="ephemeral")
        context.enable_analytics(enable=False)
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("memory").add_dataframe_asset("captions")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        outcomes = []
        for number, (expectation, rule) in enumerate(rules, start=1):
            try:
                result = batch.validate(expectation, result_format={"result_format": "COMPLETE"})
                faults = _exception_messages(result.exception_info)
            except GreatExpectationsError as error:
                faults = [str(error)]
            if faults:
                raise UserError(f"Caption rule {number} ({rule['type']}) cannot be evaluated: {faults[0]}.")
            outcomes.append(_outcome(frame, rule, result))
        return outcomes


def _outcome(frame: pd.DataFrame, rule: Mapping[str, Any], result: Any) -> tuple[RuleOutcome, list[int]]:
    failing = sorted(int(row) for row in result.result.get("unexpected_index_list") or [])
    column = next(iter(_columns_of(rule["kwargs"])), "caption")
    examples = [
        RowExample(
            str(frame["row_id"].iloc[row]),
            _shorten(frame["caption"].iloc[row] or ""),
            "" if column == "caption" else _shorten(f"{column}: {frame[column].iloc[row]}"),
        )
        for row in failing[:EXAMPLES]
    ]
    value = result.result.get("observed_value")
    observed = (
        "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else _shorten(str(value))
    )
    outcome = RuleOutcome(
        rule["type"],
        rule["action"],
        rule["reason"],
        bool(result.success),
        len(failing),
        len(frame),
        tuple(examples),
        observed,
    )
    return outcome, failing


def _parse(number: int, rule: Any, frame: pd.DataFrame) -> tuple[Any, dict[str, Any]]:
    """The expectation of one rule and the rule itself, complete; UserError names what is wrong with it."""
    from great_expectations.compatibility import pydantic
    from great_expectations.exceptions import ExpectationNotFoundError
    from great_expectations.expectations import expectation as kinds
    from great_expectations.expectations.registry import get_expectation_impl

    name = f"Caption rule {number}"
    if not isinstance(rule, Mapping):
        raise UserError(f"{name} is {rule!r}; write a mapping with type, kwargs, action and reason.")
    unknown = [key for key in rule if key not in ("type", "kwargs", "action", "reason")]
    lacking = [
        key for key in ("type", "action", "reason") if not (rule.get(key) and isinstance(rule[key], str))
    ]
    if unknown or lacking:
        found = f"has the unknown key {unknown[0]!r}" if unknown else f"has no text for {lacking[0]!r}"
        raise UserError(f"{name} {found}; a rule has the keys type, kwargs, action and reason.")
    name += f" ({rule['type']})"
    if rule["action"] not in ACTIONS:
        raise UserError(f"{name} has the unknown action {rule['action']!r}; use one of {', '.join(ACTIONS)}.")
    kwargs = rule.get("kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise UserError(f"{name} has kwargs {kwargs!r}; write a mapping of the expectation's arguments.")
    try:
        kind = get_expectation_impl(rule["type"])
        expectation = kind(**{str(key): value for key, value in kwargs.items()})
    except ExpectationNotFoundError as error:
        raise UserError(
            f"{name} has an unknown type; use one of Great Expectations' types, such as "
            "expect_column_values_to_be_between."
        ) from error
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{name} has arguments that do not fit: {problems}.") from error
    by_row = (kinds.ColumnMapExpectation, kinds.ColumnPairMapExpectation, kinds.MulticolumnMapExpectation)
    if rule["action"] == "drop" and not issubclass(kind, by_row):
        raise UserError(f"{name} judges the whole table, so it cannot drop rows; use warn or fail.")
    for column in _columns_of(kwargs):
        if column not in frame.columns and rule["type"] != "expect_column_to_exist":
            raise UserError(
                f"{name} is about the column {column!r}, which is none of: "
                f"{', '.join(map(str, frame.columns))}."
            )
    return expectation, {**rule, "kwargs": dict(kwargs)}


def _columns_of(kwargs: Mapping[str, Any]) -> list[str]:
    single = [kwargs[key] for key in ("column", "column_A", "column_B") if key in kwargs]
    return [str(column) for column in [*single, *(kwargs.get("column_list") or [])]]


def _exception_messages(info: Any) -> list[str]:
    """Great Expectations nests its records of exceptions under the ids of metrics."""
    if not isinstance(info, Mapping):
        return []
    if info.get("raised_exception"):
        return [str(info.get("exception_message")).strip().rstrip(".")]
    return [message for value in info.values() for message in _exception_messages(value)]


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CAPTION_SHOWN else text[: CAPTION_SHOWN - 1] + "…"


@contextmanager
def _quiet_great_expectations() -> Iterator[None]:
    """Its loggers report progress and repeat, with tracebacks, errors that are raised anyway."""
    chatter = logging.getLogger("great_expectations")  # some children set a level of their own
    nowhere = logging.NullHandler()
    with _GREAT_EXPECTATIONS_LOCK:
        propagate = chatter.propagate
        chatter.propagate = False
        chatter.addHandler(nowhere)
        try:
            yield
        finally:
            chatter.propagate = propagate
            chatter.removeHandler(nowhere)


class CaptionValidator:
    """The rules as a validator of a Kedro catalog entry: writes an HTML report and returns the rows to keep.

    report: where the page goes; a relative path starts at the Kedro project
    expectations: the rules, as the catalog gives them
    """

    def __init__(self, report: str, expectations: Sequence[Mapping[str, Any]]) -> None:
        self.report = report
        self.expectations = expectations

    def validate(self, data: pd.DataFrame) -> pd.DataFrame:
        """The kept rows of `data`. Raises UserError when a `fail` rule is broken or no row is left."""
        check = check_captions(data, self.expectations)
        report = self._report_path()
        _write_atomically(report, caption_report_html(check))
        for rule in check.rules:
            if rule.action == "warn" and not rule.success:
                first = f", first in row {rule.examples[0].row_id}" if rule.examples else ""
                logger.warning("Captions: %s (%s%s).", rule.reason, describe_count(rule), first)
        if len(check.dropped):
            logger.warning("Dropped %d of %d captions; %s says why.", len(check.dropped), len(data), report)
        if check.failed or check.kept.empty:
            fault = "break a rule that must hold" if check.failed else "have no row left to train on"
            raise UserError(
                f"The captions {fault}; correct the table or the rules.\n{check.summary()}\nSee {report}."
            )
        return check.kept

    def _report_path(self) -> Path:
        from kedro.utils import find_kedro_project

        return Path(find_kedro_project(Path.cwd()) or Path.cwd()) / self.report


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
