"""Captions are checked shard by shard, with the verdict that the whole table gets."""

from __future__ import annotations

import pandas as pd
import pytest
from caption_rules import DEFAULT_EXPECTATIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from test_captions import GOOD, rule, table

from pyoco_pipeline.data.caption_columns import derive_columns
from pyoco_pipeline.data.captions import CaptionCheck, check_captions
from pyoco_pipeline.errors import UserError

# One rule of each kind that is judged by row, with and without `mostly`, and some that are the whole table's.
RULES = [
    *DEFAULT_EXPECTATIONS,
    rule("values_to_be_between", column="characters", max_value=3, mostly=0.5),
    rule("values_to_match_regex", column="caption", regex="a", mostly=2 / 3),
    rule("values_to_match_regex_list", "warn", column="caption", regex_list=["a", "b"], match_on="any"),
    rule("values_to_not_be_null", column="caption", mostly=0.9),
    rule("values_to_be_null", "warn", column="caption", mostly=0.1),
    rule("values_to_not_be_in_set", column="caption", value_set=["a", "b"]),
    rule("value_lengths_to_be_between", column="caption", max_value=2, mostly=0.7),
    rule("value_lengths_to_equal", "warn", column="caption", value=1),
    rule("values_to_be_json_parseable", "warn", column="caption"),
    rule("values_to_be_dateutil_parseable", "warn", column="caption"),
    rule("values_to_match_strftime_format", "warn", column="caption", strftime_format="%Y"),
    rule("values_to_be_unique", column="caption", mostly=0.6),
    rule("mean_to_be_between", "warn", column="characters", max_value=2),
    rule("values_to_be_increasing", "warn", column="characters"),
    rule("values_to_be_in_set", column="caption", value_set=["a"], row_condition="characters > 2",
         condition_parser="pandas"),
]  # fmt: skip


def same(one: CaptionCheck, other: CaptionCheck) -> None:
    assert one.rules == other.rules
    pd.testing.assert_frame_equal(one.kept, other.kept)
    pd.testing.assert_frame_equal(one.dropped, other.dropped)


SHORT = st.none() | st.text(st.sampled_from("ab7<>\x07 "), max_size=4)


@given(st.lists(SHORT, min_size=1, max_size=8), st.integers(1, 9))
@settings(deadline=None, max_examples=4)
def test_the_size_of_a_shard_changes_nothing(captions, shard_rows):
    same(
        check_captions(table(*captions), RULES, shard_rows=shard_rows),
        check_captions(table(*captions), RULES, shard_rows=len(captions)),
    )


@given(st.lists(SHORT, min_size=1, max_size=12))
@settings(deadline=None, max_examples=2)
def test_the_merged_verdict_is_great_expectations_own(captions):
    import great_expectations as gx
    from great_expectations.expectations.registry import get_expectation_impl

    frame = derive_columns(table(*captions))
    outcomes = check_captions(table(*captions), RULES, shard_rows=2).rules
    source = gx.get_context(mode="ephemeral").data_sources.add_pandas("here")
    batch = source.add_dataframe_asset("all").add_batch_definition_whole_dataframe("all")
    for one, outcome in zip(RULES, outcomes, strict=True):
        expectation = get_expectation_impl(one["type"])(**one["kwargs"])
        theirs = batch.get_batch({"dataframe": frame}).validate(expectation)
        assert (outcome.type, outcome.success) == (one["type"], bool(theirs.success))
        assert outcome.num_failing == theirs.result.get("unexpected_count", 0)


def test_examples_are_the_first_failing_rows_of_the_table_whatever_the_shards():
    captions = table(*[None if k % 2 else GOOD for k in range(30)])
    outcome = check_captions(captions, DEFAULT_EXPECTATIONS[:1], shard_rows=4).rules[0]
    assert outcome.num_failing == 15
    assert [example.row_id for example in outcome.examples] == ["row1", "row3", "row5", "row7", "row9"]


def test_duplicates_and_leakage_are_seen_across_shards():
    captions = table("x", "y", "X!", path=["a", "b", "a"], split=["train", "train", "test"])
    near = rule("mean_to_be_between", "warn", column="near_duplicate", max_value=0)
    check = check_captions(captions, [near, DEFAULT_EXPECTATIONS[-1]], shard_rows=1)
    assert check.rules[0].observed == "0.3333"
    assert [example.row_id for example in check.rules[1].examples] == ["row0", "row2"]


def test_a_rule_that_cannot_be_evaluated_is_named_in_any_shard():
    with pytest.raises(UserError, match=r"Caption rule 1 .* cannot be evaluated"):
        check_captions(
            table(None, "a"), [rule("values_to_match_regex", column="caption", regex="(")], shard_rows=1
        )


def test_shards_of_no_rows_are_refused():
    with pytest.raises(UserError, match=r"shard_rows .* is 0; give at least 1"):
        check_captions(table(GOOD), DEFAULT_EXPECTATIONS, shard_rows=0)
