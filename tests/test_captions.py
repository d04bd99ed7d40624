"""Every caption rule keeps the right rows and drops the wrong ones, and the report is safe to open."""

from __future__ import annotations

import html
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from caption_rules import DEFAULT_EXPECTATIONS, project_expectations
from hypothesis import given, settings
from hypothesis import strategies as st

from pyoco_pipeline.data.caption_columns import derive_columns, dominant_script, normalise
from pyoco_pipeline.data.captions import CaptionCheck, RowExample, RuleOutcome, check_captions
from pyoco_pipeline.data.captions_html import caption_report_html
from pyoco_pipeline.data.drift import Drift, Share, Statistic
from pyoco_pipeline.data.storage import OUTSIDE
from pyoco_pipeline.errors import UserError

GOOD = "a red ball rolls to the left"
PROJECT = Path(__file__).parents[1]


def table(*captions: str | None, **columns) -> pd.DataFrame:
    count = len(captions)
    base = {
        "row_id": [f"row{k}" for k in range(count)],
        "path": [f"{k}.mp4" for k in range(count)],
        "caption": pd.Series(captions, dtype=object),
        "start": np.full(count, np.nan),
        "end": np.full(count, np.nan),
        "split": ["train"] * count,
        "path_problem": [""] * count,
    }
    return pd.DataFrame({**base, **columns})


def rule(kind: str, action: str = "drop", **kwargs) -> dict:
    return {"type": f"expect_column_{kind}", "kwargs": kwargs, "action": action, "reason": "it is so"}


def test_good_captions_pass_every_default_rule():
    captions = table(GOOD, "Ein Fuß, naïvement: 5 °C!", "two dogs run")
    check = check_captions(captions, DEFAULT_EXPECTATIONS)
    assert all(outcome.success for outcome in check.rules)
    assert not check.failed
    pd.testing.assert_frame_equal(check.kept, captions)
    assert list(check.dropped) == [*captions.columns, "reason"]


# For each default rule: what it says, its action, and a table whose second row it must hit, the others not.
CASES = {
    "missing": ("caption is missing", "drop", table(GOOD, None)),
    "blank": ("caption is blank", "drop", table(GOOD, " \t\u00a0 ")),
    "long": ("longer than 1000", "drop", table("ab " * 25, "ab" * 501)),
    "tokens": ("more than 77 tokens", "warn", table("a " * 77, "b " * 78)),
    "given tokens": ("more than 77 tokens", "warn", table("a", "b", num_tokens=[77, 78])),
    "control": ("control characters", "drop", table(GOOD, "a\x07b")),
    "direction": ("control characters", "drop", table("به\u200cنام red", "a\u202eb")),
    "undecodable": ("control characters", "drop", table(GOOD, "caf\ufffd")),
    "surrogate": ("control characters", "drop", table(GOOD, "x\ud800y")),
    "tag": ("markup", "drop", table("3 < 4 and 5 > 2", "a <b>red</b> ball")),
    "entity": ("markup", "drop", table("salt & pepper; bread", "salt &amp; pepper")),
    "address": ("markup", "drop", table("a web of www", "see HTTPS://example.org/x")),
    "script": ("Latin script", "warn", table("Ünï red", "красный мяч")),
    "digits": ("Latin script", "warn", table("ball 7", "777")),
    "path": ("cannot be used", "drop", table(GOOD, "other", path_problem=["", "does not exist"])),
    "segment": ("start before it ends", "drop", table(GOOD, "b", start=[0.0, 2.0], end=[1.0, 2.0])),
    "negative": ("start before it ends", "drop", table(GOOD, "b", start=[np.nan, -1.0])),
}


@pytest.mark.parametrize("case", CASES)
def test_each_default_rule_hits_the_row_that_breaks_it_and_no_other(case):
    words, action, captions = CASES[case]
    check = check_captions(captions, DEFAULT_EXPECTATIONS)
    hit = [outcome for outcome in check.rules if words in outcome.reason]
    assert len(hit) == 1
    assert (hit[0].success, hit[0].action, hit[0].num_failing, hit[0].percent_failing) == (
        False,
        action,
        1,
        50.0,
    )
    assert [example.row_id for example in hit[0].examples] == ["row1"]
    assert check.kept["row_id"].tolist() == (["row0"] if action == "drop" else ["row0", "row1"])
    if action == "drop":
        assert words in check.dropped["reason"][0]


def test_rows_without_a_usable_file_are_dropped_while_they_are_few():
    problems = ["", "does not exist", "", "", "is damaged, or no tar: unexpected end of data", *[""] * 5]
    captions = table(*[f"{GOOD} {k}" for k in range(10)], path_problem=problems, tokens_cut=0)
    check = check_captions(captions, project_expectations())
    assert not check.failed
    assert check.dropped["row_id"].tolist() == ["row1", "row4"]
    assert set(check.dropped["reason"]) == {"the file can't be used; path_problem says why"}
    assert check.dropped["path_problem"].tolist() == [problems[1], problems[4]]


def test_the_files_of_more_than_a_fifth_of_the_rows_may_not_be_absent():
    problems = ["", "does not exist", "is missing: the row has no path", "", "does not exist", *[""] * 5]
    captions = table(*[f"{GOOD} {k}" for k in range(10)], path_problem=problems, tokens_cut=0)
    check = check_captions(captions, project_expectations())
    assert check.failed
    assert "fail: the files of more than a fifth of the rows can't be used" in check.summary()
    assert f"row1: '{GOOD} 1' [path_problem: does not exist]" in check.summary()


def test_one_row_outside_the_data_root_fails_the_check():
    problems = [*[""] * 99, OUTSIDE]
    captions = table(*[f"{GOOD} {k}" for k in range(100)], path_problem=problems, tokens_cut=0)
    check = check_captions(captions, project_expectations())
    assert [rule.reason for rule in check.rules if rule.action == "fail" and not rule.success] == [
        "the file is outside the data root"
    ]
    assert "row99:" in check.summary()


def test_rows_that_are_never_read_leak_nothing():
    captions = table(*"abc", path=["", "", ""], split=["train", "test", "test"], path_problem=["x", "", "x"])
    assert derive_columns(captions)["splits_of_file"].tolist() == [1, 1, 1]


def test_near_duplicates_are_judged_by_their_share():
    half = table("A red ball!", "a  RED ball", "blue", "blue.")
    assert derive_columns(half)["near_duplicate"].tolist() == [0, 1, 0, 1]
    near = next(e for e in DEFAULT_EXPECTATIONS if e["kwargs"]["column"] == "near_duplicate")
    assert check_captions(half, [near]).rules[0].success
    outcome = check_captions(
        table("x", "X", "x!", "y"), [{**near, "kwargs": {**near["kwargs"], "max_value": 0.4}}]
    )
    assert (outcome.rules[0].success, outcome.rules[0].observed) == (False, "0.5")


def leakage(paths: list[str], splits: list[str], starts: list[float], ends: list[float]) -> list[int]:
    captions = table(*["x"] * len(paths), path=paths, split=splits, start=starts, end=ends)
    return derive_columns(captions)["splits_of_file"].tolist()


def test_a_file_in_two_splits_leaks_only_where_segments_overlap():
    nan = float("nan")
    assert leakage(["a", "./a", "b"], ["train", "test", "test"], [nan] * 3, [nan] * 3) == [2, 2, 1]
    assert leakage(["a", "a"], ["train", "test"], [0, 5], [5, 9]) == [1, 1]
    assert leakage(["a", "a", "a"], ["train", "test", "train"], [0, 4, 8], [5, 8, 9]) == [2, 2, 1]
    assert leakage(["a", "a"], ["train", "test"], [nan, 100], [1, nan]) == [1, 1]
    assert leakage(["a", "a"], ["train", "train"], [nan, nan], [nan, nan]) == [1, 1]
    assert leakage(["a", "a", "a"], ["x", "y", "z"], [0, 0, 0], [1, 1, 1]) == [3, 3, 3]


def test_files_of_one_name_in_two_sources_are_two_files():
    captions = table(*"abcd", path=["a"] * 4, split=["train", "test", "train", "train"], source=[0, 1, 1, 2])
    assert derive_columns(captions)["splits_of_file"].tolist() == [1, 2, 2, 1]


SEGMENT = st.tuples(
    st.sampled_from("ab"), st.sampled_from(["train", "test"]), st.integers(0, 6), st.integers(1, 4)
)


@given(st.lists(SEGMENT, min_size=1, max_size=12))
def test_leakage_agrees_with_comparing_every_pair(segments):
    found = leakage(
        *(list(c) for c in zip(*((p, s, float(b), float(b + n)) for p, s, b, n in segments), strict=True))
    )
    expected = [
        1 + any(p == q and s != t and b < c + m and c < b + n for q, t, c, m in segments)
        for p, s, b, n in segments
    ]
    assert found == expected


def test_leakage_fails_the_check_and_the_summary_names_rows():
    captions = table(GOOD, "b", path=["a.mp4", "a.mp4"], split=["train", "test"])
    check = check_captions(captions, DEFAULT_EXPECTATIONS)
    assert check.failed
    assert f"row0: '{GOOD}' [splits_of_file: 2]" in check.summary()
    assert "fail: the same part of a video is in more than one split" in check.summary()


def test_the_summary_counts_the_rows_that_it_does_not_list():
    captions = table(*["x" * 200] * 9)
    summary = check_captions(
        captions, [rule("values_to_be_between", "fail", column="characters", max_value=5)]
    ).summary()
    assert "and 4 more rows" in summary
    assert "x" * 79 + "…" in summary
    assert "x" * 80 not in summary


def test_a_row_that_breaks_two_rules_is_dropped_once_with_both_reasons():
    check = check_captions(table(GOOD, "<b>x</b>\x07"), DEFAULT_EXPECTATIONS)
    assert len(check.dropped) == 1
    assert check.dropped["reason"][0].count(";") == 1


def test_helper_columns_go_and_the_tables_own_stay():
    captions = table(GOOD, None, num_tokens=[7, 0], characters=["own", "own"])
    captions.index = [5, 5]
    kept = check_captions(captions, DEFAULT_EXPECTATIONS).kept
    assert list(kept) == list(captions)
    assert kept["characters"].tolist() == ["own"]


def test_a_table_of_only_three_columns_is_enough():
    check = check_captions(table(GOOD, None)[["row_id", "path", "caption"]], DEFAULT_EXPECTATIONS)
    assert len(check.kept) == 1


def test_an_empty_table_keeps_nothing_and_breaks_nothing():
    check = check_captions(table(GOOD).iloc[:0], DEFAULT_EXPECTATIONS)
    assert (len(check.kept), len(check.dropped), check.failed) == (0, 0, False)
    assert "<b>0</b>kept" in caption_report_html(check)


def test_a_rule_with_mostly_drops_nothing_while_it_holds():
    captions = table("abc", "abc", "abcdefghi")
    lenient = rule("values_to_be_between", column="characters", max_value=5, mostly=0.6)
    assert len(check_captions(captions, [lenient]).kept) == 3
    assert (
        len(check_captions(captions, [rule("values_to_be_between", column="characters", max_value=5)]).kept)
        == 2
    )


BAD_RULES = {
    "type": (rule("values_to_shine", column="caption"), "expect_column_values_to_shine.* unknown type"),
    "argument": (rule("values_to_be_between", column="characters", maximum=3), "maximum: extra fields"),
    "value": (rule("values_to_be_between", column="characters", max_value="many"), "max_value"),
    "no column": (rule("values_to_not_be_null"), "column: field required"),
    "action": (rule("values_to_not_be_null", "delete", column="caption"), "action 'delete'; use one of drop"),
    "key": ({**rule("values_to_not_be_null", column="caption"), "mostly": 1}, "unknown key 'mostly'"),
    "reason": ({**rule("values_to_not_be_null", column="caption"), "reason": ""}, "no text for 'reason'"),
    "column": (rule("values_to_not_be_null", column="title"), "column 'title', which is none of: row_id, path"),
    "drop of a whole": (rule("mean_to_be_between", column="characters", max_value=3), "cannot drop rows"),
    "pattern": (rule("values_to_match_regex", column="caption", regex="("), "cannot be evaluated"),
    "not a rule": ("present", "write a mapping"),
    "not kwargs": ({**rule("values_to_not_be_null"), "kwargs": ["caption"]}, "write a mapping of"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RULES)
def test_a_rule_that_is_not_well_formed_is_named(case, caplog):
    bad, message = BAD_RULES[case]
    with pytest.raises(UserError, match=message) as caught:
        check_captions(table(GOOD), [DEFAULT_EXPECTATIONS[0], bad])
    assert "Caption rule 2" in str(caught.value)
    assert not caplog.records


def test_a_table_without_captions_is_refused():
    with pytest.raises(UserError, match="no column caption; its columns are: row_id, path"):
        check_captions(table(GOOD)[["row_id", "path"]], [])


@pytest.mark.parametrize(
    ("text", "script"),
    [("ball", "LATIN"), ("naïve", "LATIN"), ("мяч", "CYRILLIC"), ("紅色", "CJK"), ("ボール", "KATAKANA"),
     ("αβγ ab", "GREEK"), ("ｂａｌｌ", "LATIN"), ("123 !", "NONE"), ("", "NONE"), ("🎈", "NONE")],
)  # fmt: skip
def test_the_script_is_that_of_most_letters(text, script):
    assert dominant_script(text) == script


def test_normalising_forgets_case_spaces_and_punctuation():
    assert normalise("  A_Red—BALL!\n(straße) ") == "a red ball strasse"


def test_tokens_are_words_and_punctuation_marks():
    assert derive_columns(table("a red ball, twice!", "", None))["num_tokens"].tolist() == [6, 0, pd.NA]


ANY_TEXT = st.none() | st.text(st.characters())  # any character, half surrogate pairs included


@given(st.lists(ANY_TEXT, max_size=5))
def test_derived_columns_exist_for_any_text(captions):
    frame = derive_columns(table(*captions))
    assert frame["characters"].isna().tolist() == [caption is None for caption in captions]
    assert frame["near_duplicate"].between(0, 1).all()
    assert all(frame["script"])


@given(st.lists(ANY_TEXT, min_size=20, max_size=60))
@settings(deadline=None, max_examples=5)
def test_no_text_crashes_the_check_or_the_report(captions):
    check = check_captions(table(*captions), DEFAULT_EXPECTATIONS)
    assert len(check.kept) + len(check.dropped) == len(captions)
    assert check.summary().encode("utf-8")
    caption_report_html(check).encode("utf-8", "replace")


class Tags(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


@given(st.text(st.sampled_from("<>&\"'/ =scriptonload!-"), min_size=1))
def test_the_report_shows_text_and_never_runs_it(text):
    hostile = f"<script>alert(1)</script>{text}<img src=x onerror=alert(1)>"
    outcome = RuleOutcome(hostile, "drop", hostile, False, 1, 2, (RowExample(hostile, hostile, hostile),))
    about_all = replace(outcome, observed=hostile)
    dropped = table(hostile, row_id=[hostile]).assign(reason=hostile)
    drift = Drift(
        statistics=(Statistic(hostile, 1.0, 0.5),),
        shares={hostile: (Share(hostile, 0.0, 1.0),)},
        unseen_words=(hostile,),
    )
    page = caption_report_html(CaptionCheck(table(hostile), dropped, (outcome, about_all)), drift)
    page += caption_report_html(CaptionCheck(dropped, dropped[:0], ()), Drift(nothing_to_compare=hostile))
    tags = Tags()
    tags.feed(page)
    assert tags.names.isdisjoint({"script", "img", "a", "link", "iframe"})
    assert tags.attributes <= {"lang", "charset", "name", "content", "class", "style"}
    assert page.count(html.escape(hostile)) == 15 + 4 + 1


def test_the_report_needs_no_network_and_follows_the_colour_setting():
    page = caption_report_html(check_captions(table(GOOD, None), DEFAULT_EXPECTATIONS))
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page
    assert "the caption is missing" in page
    assert "<b>1</b>kept" in page


def test_the_report_of_many_rows_stays_short():
    captions = table(*["x" * 200] * 100_000)
    failing = tuple(RowExample(f"row{k}", "x", "") for k in range(5))
    broken = RuleOutcome("kind", "drop", "it is so", False, 3, 100_000, failing)
    dropped = captions.assign(reason=["one reason"] * 99_990 + ["another"] * 10)
    page = caption_report_html(CaptionCheck(captions, dropped, (broken,)))
    assert len(page) < 60_000
    assert "<b>200,000</b>in the table" in page
    assert "3 of 100,000 rows, less than 0.1%" in page
    assert "<td>one reason</td><td>99,990</td>" in page
    assert "and 99,950 more rows" in page


def test_importing_the_module_does_not_import_great_expectations():
    code = "import sys, pyoco_pipeline.data.captions as c; sys.exit('great_expectations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
