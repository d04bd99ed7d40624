"""What changed since the previous version of the captions is measured, shown, and ends a run where that is asked."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
from caption_rules import DEFAULT_EXPECTATIONS
from hypothesis import given, settings
from hypothesis import strategies as st

from pyoco_pipeline.data.caption_validator import CaptionValidator
from pyoco_pipeline.data.captions import check_captions
from pyoco_pipeline.data.captions_html import caption_report_html
from pyoco_pipeline.data.drift import (
    Drift,
    DriftOptions,
    compare,
    divergence,
    kolmogorov_smirnov,
    parse_drift_options,
    stability,
)
from pyoco_pipeline.errors import UserError

OPTIONS = DriftOptions(filepath="captions.parquet")
WORDS = ["red", "blue", "green", "small", "large", "ball", "dog", "cat", "bird", "rolls", "jumps"]
WORDS += ["runs", "flies", "left", "right", "up", "down", "slowly", "fast"]


def captions(seed: int, rows: int = 400, words: list[str] = WORDS, **columns) -> pd.DataFrame:
    """Rows of random words; every table of this function has the same distribution unless it is told otherwise."""
    draw = np.random.default_rng(seed)
    texts = [" ".join(draw.choice(words, size=draw.integers(3, 12))) for _ in range(rows)]
    base = {
        "row_id": [f"row{k}" for k in range(rows)],
        "path": [f"{seed}-{k}.mp4" for k in range(rows)],
        "caption": pd.Series(texts, dtype=object),
        "start": np.full(rows, np.nan),
        "end": np.full(rows, np.nan),
        "split": draw.choice(["train", "test"], p=[0.9, 0.1], size=rows),
    }
    return pd.DataFrame({**base, **columns})


def found(drift: Drift) -> dict[str, float]:
    return {statistic.name: statistic.value for statistic in drift.statistics}


def exceeded(drift: Drift) -> set[str]:
    return {statistic.name for statistic in drift.exceeded}


def test_a_table_does_not_differ_from_itself_read_from_a_file(tmp_path):
    now = captions(0, start=pd.Series([None] * 400, dtype=object))
    now.to_parquet(tmp_path / "captions.parquet")
    drift = compare(pd.read_parquet(tmp_path / "captions.parquet"), now, OPTIONS)
    assert (drift.rows_before, drift.rows_now, drift.rows_added, drift.rows_removed) == (400, 400, 0, 0)
    assert set(found(drift).values()) == {0.0}
    assert drift.unseen_words == ()


def test_rows_are_counted_by_what_they_say_and_not_by_their_number():
    before = captions(0)
    now = pd.concat([captions(1, rows=3), before.iloc[5:], before.iloc[-1:]])
    now["row_id"] = [f"other{k}" for k in range(len(now))]
    drift = compare(before, now, OPTIONS)
    assert (drift.rows_added, drift.rows_removed) == (4, 5)


@pytest.mark.parametrize("rows", [30, 400])
def test_two_samples_of_one_distribution_are_alike(rows):
    # Each of the two lengths alarms in at most 1%, so that more than 5 of 60 have a probability below 0.2%.
    alarms = sum(
        bool(
            exceeded(compare(captions(k, rows), captions(k + 1000, rows), OPTIONS))
            - {"share of unseen words"}
        )
        for k in range(60)
    )
    assert alarms <= 5


def test_longer_captions_are_noticed():
    now = captions(1)
    now["caption"] += " and so it goes on"
    drift = compare(captions(0), now, OPTIONS)
    assert {"length in characters", "length in tokens"} <= exceeded(drift)
    assert drift.lengths["tokens"]["mean_now"] - drift.lengths["tokens"]["mean_before"] == pytest.approx(
        5, abs=1
    )


def test_lengths_are_in_the_tables_own_tokens_where_both_have_them():
    drift = compare(captions(0, num_tokens=5), captions(1, num_tokens=9), OPTIONS)
    assert drift.lengths["tokens"] == {"mean_before": 5, "mean_now": 9, "median_before": 5, "median_now": 9}


def test_new_words_are_counted_and_named():
    now = captions(1)
    now.loc[:199, "caption"] = "ein roter Ball, ein HUND"
    drift = compare(captions(0), now, OPTIONS)
    assert exceeded(drift) >= {"share of unseen words", "divergence of word frequencies"}
    total = sum(len(text.replace(",", "").split()) for text in now["caption"])
    assert found(drift)["share of unseen words"] == pytest.approx(200 * 4 / total)
    assert drift.unseen_words == ("ein", "hund", "roter")


def test_other_frequencies_of_the_same_words_are_noticed():
    drift = compare(captions(0), captions(1, words=[*WORDS, *WORDS[:4] * 10]), OPTIONS)
    assert json.loads(drift.json())["statistics"][3]["exceeded"]
    assert "divergence of word frequencies" in exceeded(drift)
    assert found(drift)["share of unseen words"] == 0


def test_another_balance_of_splits_is_noticed():
    drift = compare(captions(0), captions(1, split=["train", "test"] * 200), OPTIONS)
    assert exceeded(drift) == {"balance of split"}
    assert drift.shares["split"][0].now == 0.5


@pytest.mark.parametrize("name", ["class", "category", "label"])
def test_another_balance_of_classes_is_noticed(name):
    before = captions(0, **{name: ["run", "jump", "swim", "fly"] * 100})
    drift = compare(before, captions(1, **{name: ["run"] * 250 + ["jump", "swim", "fly"] * 50}), OPTIONS)
    assert exceeded(drift) == {f"balance of {name}"}
    assert drift.shares[name][0].value == "run"
    assert compare(before, captions(1), OPTIONS).shares.keys() == {"split"}


def test_any_column_can_be_the_class_and_one_that_is_not_there_is_named():
    options = DriftOptions(filepath="", class_column="camera")
    drift = compare(captions(0, camera="a"), captions(1, camera="b"), options)
    assert exceeded(drift) == {"balance of camera"}
    with pytest.raises(UserError, match="class_column is 'camera', which is none of: row_id, path"):
        compare(captions(0), captions(1), options)


def test_where_captions_are_classes_their_balance_is_judged():
    before = captions(0, caption=["run", "jump"] * 200)
    drift = compare(before, captions(1, caption=["run"] * 380 + ["jump"] * 20), OPTIONS)
    assert "balance of captions" in exceeded(drift)
    assert [(s.value, s.before, s.now) for s in drift.shares["captions"][:2]] == [
        ("run", 0.5, 0.95),
        ("jump", 0.5, 0.05),
    ]


COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50), min_size=1)


@given(COUNTS, COUNTS)
def test_statistics_are_symmetric_and_within_their_bounds(a, b):
    if sum(a.values()) and sum(b.values()):
        assert 0 <= divergence(a, b) <= 1
        assert stability(a, b) >= 0
        assert divergence(a, b) == pytest.approx(divergence(b, a), abs=1e-12)
        assert divergence(a, a) == stability(a, a) == 0


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30)
)
@settings(max_examples=50)
def test_the_length_statistic_is_that_of_scipy(a, b):
    from scipy.stats import ks_2samp

    theirs = ks_2samp(a, b, method="asymp").statistic
    assert kolmogorov_smirnov(np.array(a), np.array(b)) == pytest.approx(theirs, abs=1e-12)


def test_disjoint_vocabularies_of_many_words_are_a_bit_apart():
    assert divergence({"a": 10**6}, {"b": 10**6}) == pytest.approx(1, abs=1e-5)


# --- In the validator ---


def validator(tmp_path, **options) -> CaptionValidator:
    previous = {"filepath": str(tmp_path / "captions.parquet"), **options}
    return CaptionValidator(str(tmp_path / "captions.html"), DEFAULT_EXPECTATIONS[:1], drift=previous)


def in_json(tmp_path) -> dict:
    return json.loads((tmp_path / "captions_drift.json").read_text())


def test_a_first_version_has_nothing_to_compare_and_the_report_says_so(tmp_path):
    validator(tmp_path).validate(captions(0))
    assert "Nothing to compare: there is no previous version." in (tmp_path / "captions.html").read_text()
    assert in_json(tmp_path)["nothing_to_compare"] == "there is no previous version"


PREVIOUS = {
    "not Parquet": (lambda path: path.write_text("row_id,caption\n"), "cannot be read"),
    "no captions": (lambda path: captions(0)[["path"]].to_parquet(path), "has no column caption"),
    "no rows": (lambda path: captions(0).iloc[:0].to_parquet(path), "has no rows"),
}


@pytest.mark.parametrize("case", PREVIOUS)
def test_a_previous_version_that_cannot_be_compared_stops_nothing_and_is_said(tmp_path, case):
    write, reason = PREVIOUS[case]
    write(tmp_path / "captions.parquet")
    assert len(validator(tmp_path, action="fail").validate(captions(0))) == 400
    assert reason in in_json(tmp_path)["nothing_to_compare"]


def test_what_will_be_stored_is_compared_with_the_file_that_is_about_to_be_replaced(tmp_path, caplog):
    from kedro.io import DataCatalog

    options = {
        "filepath": str(tmp_path / "captions.html"),
        "expectations": DEFAULT_EXPECTATIONS[:1],
        "drift": {"filepath": str(tmp_path / "captions.parquet")},
    }
    entry = {
        "type": "pandas.ParquetDataset",
        "filepath": str(tmp_path / "captions.parquet"),
        "validator": {
            "class": "pyoco_pipeline.data.caption_validator.CaptionValidator", "on": ["save"], "options": options,
        },
    }  # fmt: skip
    catalog = DataCatalog.from_config({"captions": entry})
    catalog.save("captions", captions(0))
    catalog.save("captions", pd.concat([captions(0), captions(1, caption=None, rows=3)]))  # three are dropped
    assert (in_json(tmp_path)["rows_added"], in_json(tmp_path)["rows_removed"]) == (0, 0)
    with caplog.at_level(logging.WARNING):
        catalog.save("captions", captions(0, split="test"))
    assert "balance of split" in caplog.text
    assert in_json(tmp_path)["rows_added"] > 300


def test_drift_ends_the_run_where_that_is_asked_for_and_keeps_the_report(tmp_path):
    captions(0).to_parquet(tmp_path / "captions.parquet")
    with pytest.raises(UserError, match=r"balance of split .*drift\.action: warn"):
        validator(tmp_path, action="fail").validate(captions(0, split="test"))
    assert "changed" in (tmp_path / "captions.html").read_text()
    lenient = validator(tmp_path, action="fail", max_class_psi=100)
    assert len(lenient.validate(captions(0, split="test"))) == 400


def test_the_same_tables_give_the_same_bytes(tmp_path):
    captions(0).to_parquet(tmp_path / "captions.parquet")
    written = []
    for _ in range(2):
        validator(tmp_path).validate(captions(1))
        written.append([(tmp_path / name).read_bytes() for name in ("captions.html", "captions_drift.json")])
    assert written[0] == written[1]


def test_the_report_shows_shares_lengths_and_new_words():
    now = captions(1, caption=["zebra <b>"] * 400)
    page = caption_report_html(check_captions(now, []), compare(captions(0), now, OPTIONS))
    assert "400 rows before, 400 now: 400 added, 400 removed." in page
    assert "Most frequent unseen words: b, zebra" in page
    assert "<td>zebra &lt;b&gt;</td><td>0.00%</td><td>100.00%</td>" in page


BAD_OPTIONS = {
    "no file": ({}, "has no filepath"),
    "action": ({"filepath": "x", "action": "drop"}, "drift.action is 'drop'; use warn or fail"),
    "name": (
        {"filepath": "x", "max_ks": 1},
        "unknown option max_ks; it knows filepath, action, max_length_ks",
    ),
    "number": ({"filepath": "x", "max_class_psi": "high"}, "max_class_psi is 'high'; give a number"),
    "negative": ({"filepath": "x", "max_class_psi": -1}, "max_class_psi is -1; give a number of at least 0"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_do_not_fit_are_named(case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(UserError, match=message):
        parse_drift_options(options)
