"""The validator of the catalog: what it keeps, writes and refuses, whoever executes it."""

from __future__ import annotations

import logging

import pandas as pd
import pytest
from caption_rules import DEFAULT_EXPECTATIONS
from test_captions import GOOD, PROJECT, rule, table

from pyoco_pipeline.data.caption_validator import CaptionValidator
from pyoco_pipeline.data.captions import check_captions
from pyoco_pipeline.errors import UserError


def test_the_validator_keeps_good_rows_writes_the_report_and_says_so(tmp_path, caplog):
    report = tmp_path / "reports" / "captions.html"
    with caplog.at_level(logging.INFO):
        kept = CaptionValidator(str(report), DEFAULT_EXPECTATIONS).validate(table(GOOD, None, "мяч"))
    assert kept["row_id"].tolist() == ["row0", "row2"]
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in report.parent.iterdir()] == ["captions.html"]
    assert [record.name for record in caplog.records] == ["pyoco_pipeline.data.caption_validator"] * 2
    assert "not in Latin script" in caplog.messages[0]
    assert "Dropped 1 of 3 captions" in caplog.messages[1]


def test_the_validator_takes_its_own_rules(tmp_path):
    only = [rule("values_to_match_regex", column="caption", regex="^digit")]
    kept = CaptionValidator(str(tmp_path / "r.html"), expectations=only).validate(table("digit 7", GOOD))
    assert kept["caption"].tolist() == ["digit 7"]


def test_the_validator_raises_on_a_broken_fail_rule_and_when_nothing_is_left(tmp_path):
    validator = CaptionValidator(str(tmp_path / "r.html"), DEFAULT_EXPECTATIONS)
    with pytest.raises(UserError, match=r"break a rule that must hold(.|\n)*row0"):
        validator.validate(table(GOOD, "b", path=["a", "a"], split=["train", "test"]))
    assert "failed" in (tmp_path / "r.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no row left"):
        validator.validate(table(None, None))


def test_the_validator_works_from_a_kedro_catalog(tmp_path):
    from kedro.io import DataCatalog

    options = {"filepath": str(tmp_path / "captions.html"), "expectations": DEFAULT_EXPECTATIONS}
    validator = {"class": "pyoco_pipeline.data.caption_validator.CaptionValidator", "on": ["save"]}
    catalog = DataCatalog.from_config(
        {"captions": {"type": "kedro.io.MemoryDataset", "validator": {**validator, "options": options}}}
    )
    catalog.save("captions", table(GOOD, None))
    assert len(catalog.load("captions")) == 1
    assert (tmp_path / "captions.html").is_file()


def test_the_validators_files_are_in_the_project_when_kedro_starts_in_a_subfolder(monkeypatch):
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    monkeypatch.chdir(PROJECT / "conf")
    bootstrap_project(PROJECT)
    with KedroSession.create(PROJECT) as session:
        spec = session.load_context().catalog.validator_specs["captions"]
    validator = CaptionValidator(**spec.options)
    assert validator.report == PROJECT / "data/02_intermediate/captions.html"
    assert validator.drift["filepath"] == str(PROJECT / "data/02_intermediate/captions.parquet")


EXECUTORS = ["inline", *(pytest.param(name, marks=pytest.mark.slow) for name in ("processes", "ray"))]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_executor_keeps_the_same_rows(tmp_path, executor):
    if executor == "ray":
        pytest.importorskip("ray")
    captions = table(*[GOOD, None, "<b>", "x"] * 5)
    options = {"shard_rows": 7, "executor": executor, "workers": 2}
    kept = CaptionValidator(str(tmp_path / "r.html"), DEFAULT_EXPECTATIONS, **options).validate(captions)
    pd.testing.assert_frame_equal(kept, check_captions(captions, DEFAULT_EXPECTATIONS).kept)


BAD_OPTIONS = {
    "executor": ({"executor": "dask"}, "executor 'dask' is not known; choose inline"),
    "data docs": ({"data_docs": {"folder": "x"}}, r"write \{path: <folder>\}"),
    "drift": (
        {"drift": {"filepath": "x", "max_psi": 1}},
        "unknown option max_psi; it knows filepath, action",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_an_option_that_the_validator_does_not_know_is_named(tmp_path, case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(UserError, match=message):
        CaptionValidator(str(tmp_path / "r.html"), DEFAULT_EXPECTATIONS, **options).validate(table(GOOD))


def test_great_expectations_own_site_is_built_where_it_is_asked_for(tmp_path):
    options = {"data_docs": {"path": str(tmp_path / "docs")}}
    validator = CaptionValidator(str(tmp_path / "r.html"), DEFAULT_EXPECTATIONS, **options)
    for captions in (table(GOOD, None), table(GOOD, GOOD)):
        validator.validate(captions)
    site = tmp_path / "docs/gx/uncommitted/data_docs/local_site"
    assert (site / "index.html").is_file()
    pages = [path.read_text() for path in site.glob("validations/**/*.html")]
    assert len(pages) == 2
    assert all("values must never be null" in page for page in pages)
    assert "the caption is missing (drop)" in (site / "expectations/captions.html").read_text()
