"""Rules as expectations of Great Expectations: reading them, judging a table or a part of it, its own data docs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyoco_pipeline.errors import UserError

ACTIONS = ("drop", "warn", "fail")

# These judge a row by itself, so that parts of a table can be judged apart. Of all others that can't be said:
# uniqueness, order, outliers and types of columns are the whole table's.
_BY_ROW = {
    f"expect_column_{name}"
    for name in (
        "value_lengths_to_be_between", "value_lengths_to_equal", "values_to_be_between",
        "values_to_be_dateutil_parseable", "values_to_be_in_set", "values_to_be_json_parseable",
        "values_to_be_null", "values_to_match_json_schema", "values_to_match_regex", "values_to_match_regex_list",
        "values_to_match_strftime_format", "values_to_not_be_in_set", "values_to_not_be_null",
        "values_to_not_match_regex", "values_to_not_match_regex_list",
    )
}  # fmt: skip

# A catalog may validate from several threads; silencing a logger is global.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Rule:
    """A rule that is well formed; `number` is its place in the list, from 1.

    by_row: whether rows can be judged apart from each other; mostly: then the share that must hold.
    """

    number: int
    type: str
    action: str
    reason: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    by_row: bool = False
    mostly: float = 1.0

    @property
    def columns(self) -> list[str]:
        """The columns that it is about; none for a rule about the table as such."""
        return _columns_of(self.kwargs)


@dataclass(frozen=True)
class Finding:
    """What a rule found in a table or a part of it.

    failing: index labels of the rows that broke it, ascending; considered: how many rows count for `mostly` (those
    that are not null, for most rules); success: of this part; observed: the value of a rule about the whole.
    """

    failing: np.ndarray
    considered: int
    success: bool
    observed: Any = None


NOTHING = Finding(np.empty(0, np.int64), 0, True)


def parse_rules(expectations: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[Rule]:
    """The rules for a table of `columns`; UserError names the first that is not well formed, and why."""
    with _quiet_great_expectations():
        return [_parse(number, rule, columns) for number, rule in enumerate(expectations, start=1)]


def judge(frame: pd.DataFrame, rules: Sequence[Rule]) -> list[Finding]:
    """What each rule finds in `frame`, whose index labels are integers; UserError where one can't be evaluated."""
    if frame.empty or not rules:
        return [NOTHING] * len(rules)
    with _quiet_great_expectations():
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.enable_analytics(enable=False)
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("memory").add_dataframe_asset("captions")
        batches = asset.add_batch_definition_whole_dataframe("all")
        # Great Expectations hashes every cell of what it is given, once a rule.
        return [
            _judge_rule(batches.get_batch({"dataframe": _needed_columns(frame, rule)}), rule)
            for rule in rules
        ]


def merge(rule: Rule, parts: Sequence[Finding]) -> Finding:
    """What a rule by row found in a table, from what it found in its parts, in order."""
    failing = np.concatenate([part.failing for part in parts])
    considered = sum(part.considered for part in parts)
    # Great Expectations' own arithmetic, to the last bit.
    success = not considered or (float(considered) - float(len(failing))) / considered >= rule.mostly
    return Finding(failing, considered, success)


def write_data_docs(folder: Path, frame: pd.DataFrame, rules: Sequence[Rule]) -> Path:
    """Judge the whole of `frame` and add the result to Great Expectations' site in `folder`; gives its first page.

    The folder keeps a file context with every validation so far; a rule's reason is on the suite's page. Nothing is
    sent or fetched, but the pages take their styles and scripts from the web when a browser shows them.
    """
    with _quiet_great_expectations():
        import great_expectations as gx

        folder.mkdir(parents=True, exist_ok=True)
        context = gx.get_context(mode="file", project_root_dir=folder)
        context.enable_analytics(enable=False)
        context.variables.progress_bars = {"globally": False}
        source = context.data_sources.add_or_update_pandas("captions")
        batches = source.add_dataframe_asset("captions").add_batch_definition_whole_dataframe("all")
        kinds = [_expectation(rule.type, rule.kwargs, **_documentation(rule)) for rule in rules]
        suite = context.suites.add_or_update(gx.ExpectationSuite(name="captions", expectations=kinds))
        definition = context.validation_definitions.add_or_update(
            gx.ValidationDefinition(name="captions", data=batches, suite=suite)
        )
        definition.run(batch_parameters={"dataframe": frame}, result_format="SUMMARY")
        site = context.build_data_docs()["local_site"]
        return Path(site.removeprefix("file://"))


def _documentation(rule: Rule) -> dict[str, str]:
    severity = "critical" if rule.action == "fail" else "warning"
    return {"notes": f"{rule.reason} ({rule.action})", "severity": severity}


def _judge_rule(batch: Any, rule: Rule) -> Finding:
    from great_expectations.exceptions import GreatExpectationsError

    # Without the query, which spells out every row number once more.
    complete = {"result_format": "COMPLETE", "return_unexpected_index_query": False}
    try:
        result = batch.validate(_expectation(rule.type, rule.kwargs), result_format=complete)
        faults = _exception_messages(result.exception_info)
    except GreatExpectationsError as error:
        faults = [str(error)]
    if faults:
        raise UserError(f"Caption rule {rule.number} ({rule.type}) cannot be evaluated: {faults[0]}.")
    found = result.result
    failing = np.sort(np.asarray(found.get("unexpected_index_list") or [], dtype=np.int64))
    considered = (found.get("element_count") or 0) - (found.get("missing_count") or 0)
    return Finding(failing, considered, bool(result.success), found.get("observed_value"))


def _needed_columns(frame: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    # A condition on rows may name any column, and a type that is not known here may look at any.
    known = rule.by_row or rule.type.startswith("expect_column_mean")
    return frame[rule.columns] if known and "row_condition" not in rule.kwargs else frame


def _expectation(kind: str, kwargs: Mapping[str, Any], **more: Any) -> Any:
    from great_expectations.expectations.registry import get_expectation_impl

    return get_expectation_impl(kind)(**{str(key): value for key, value in kwargs.items()}, **more)


def _parse(number: int, rule: Any, columns: Sequence[str]) -> Rule:
    from great_expectations.compatibility import pydantic
    from great_expectations.exceptions import ExpectationNotFoundError
    from great_expectations.expectations import expectation as kinds

    name = f"Caption rule {number}"
    _check_keys(name, rule)
    name += f" ({rule['type']})"
    kwargs = rule.get("kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise UserError(f"{name} has kwargs {kwargs!r}; write a mapping of the expectation's arguments.")
    try:
        expectation = _expectation(rule["type"], kwargs)
    except ExpectationNotFoundError as error:
        raise UserError(
            f"{name} has an unknown type; use one of Great Expectations' types, such as "
            "expect_column_values_to_be_between."
        ) from error
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{name} has arguments that do not fit: {problems}.") from error
    maps = (kinds.ColumnMapExpectation, kinds.ColumnPairMapExpectation, kinds.MulticolumnMapExpectation)
    if rule["action"] == "drop" and not isinstance(expectation, maps):
        raise UserError(f"{name} judges the whole table, so it cannot drop rows; use warn or fail.")
    for column in _columns_of(kwargs):
        if column not in columns and rule["type"] != "expect_column_to_exist":
            raise UserError(
                f"{name} is about the column {column!r}, which is none of: {', '.join(map(str, columns))}."
            )
    mostly = getattr(expectation, "mostly", None)
    by_row = rule["type"] in _BY_ROW and "row_condition" not in kwargs and isinstance(mostly, int | float)
    share = float(mostly) if by_row and mostly is not None else 1.0
    return Rule(number, rule["type"], rule["action"], rule["reason"], dict(kwargs), by_row, share)


def _check_keys(name: str, rule: Any) -> None:
    if not isinstance(rule, Mapping):
        raise UserError(f"{name} is {rule!r}; write a mapping with type, kwargs, action and reason.")
    unknown = [key for key in rule if key not in ("type", "kwargs", "action", "reason")]
    lacking = [
        key for key in ("type", "action", "reason") if not (rule.get(key) and isinstance(rule[key], str))
    ]
    if unknown or lacking:
        found = f"has the unknown key {unknown[0]!r}" if unknown else f"has no text for {lacking[0]!r}"
        raise UserError(f"{name} {found}; a rule has the keys type, kwargs, action and reason.")
    if rule["action"] not in ACTIONS:
        raise UserError(
            f"{name} ({rule['type']}) has the unknown action {rule['action']!r}; use one of {', '.join(ACTIONS)}."
        )


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


@contextmanager
def _quiet_great_expectations() -> Iterator[None]:
    """Its loggers report progress and repeat, with tracebacks, errors that are raised anyway."""
    chatter = logging.getLogger("great_expectations")  # some children set a level of their own
    nowhere = logging.NullHandler()
    with _LOCK:
        propagate = chatter.propagate
        chatter.propagate = False
        chatter.addHandler(nowhere)
        try:
            yield
        finally:
            chatter.propagate = propagate
            chatter.removeHandler(nowhere)
