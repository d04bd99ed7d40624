"""A rule of every kind, with the action its test needs; the project's own are in conf/base/catalog.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# Control characters, zero-width and direction marks, and U+FFFD, which stands for undecodable bytes. The
# joiners U+200C and U+200D belong to Persian letters and to emoji, so they pass.
_UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffd]"
_MARKUP = [r"<[A-Za-z/!][^<>]*>", r"&(?:[A-Za-z]{2,8}|#[0-9]{1,6});", r"(?i)\b(?:https?://|www\.)[^ ]"]

DEFAULT_EXPECTATIONS: list[dict[str, Any]] = [
    {
        "type": "expect_column_values_to_not_be_null",
        "kwargs": {"column": "caption"},
        "action": "drop",
        "reason": "the caption is missing",
    },
    {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "characters", "min_value": 1},
        "action": "drop",
        "reason": "the caption is blank",
    },
    {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "characters", "max_value": 1000},
        "action": "drop",
        "reason": "the caption is longer than 1000 characters",
    },
    {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "num_tokens", "max_value": 77},
        "action": "warn",
        "reason": "the caption has more than 77 tokens, so a text encoder may cut it off",
    },
    {
        "type": "expect_column_values_to_not_match_regex",
        "kwargs": {"column": "caption", "regex": _UNPRINTABLE},
        "action": "drop",
        "reason": "the caption holds control characters or undecodable bytes",
    },
    {
        "type": "expect_column_values_to_not_match_regex_list",
        "kwargs": {"column": "caption", "regex_list": _MARKUP},
        "action": "drop",
        "reason": "the caption holds markup or a web address",
    },
    {
        "type": "expect_column_mean_to_be_between",
        "kwargs": {"column": "near_duplicate", "max_value": 0.5},
        "action": "warn",
        "reason": "more than half of the captions repeat an earlier one",
    },
    {
        "type": "expect_column_values_to_be_in_set",
        "kwargs": {"column": "script", "value_set": ["LATIN"]},
        "action": "warn",
        "reason": "the caption is not in Latin script, which the text encoder was trained on",
    },
    {
        "type": "expect_column_values_to_be_in_set",
        "kwargs": {"column": "path_problem", "value_set": [""]},
        "action": "drop",
        "reason": "the video file cannot be used",
    },
    {
        "type": "expect_column_values_to_be_in_set",
        "kwargs": {"column": "segment_ok", "value_set": [True]},
        "action": "drop",
        "reason": "the segment does not start before it ends",
    },
    {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "splits_of_file", "max_value": 1},
        "action": "fail",
        "reason": "the same part of a video is in more than one split, so the test set leaks into training",
    },
]


def project_expectations() -> list[dict[str, Any]]:
    """The rules of the project itself."""
    catalog = Path(__file__).parents[1] / "conf/base/catalog.yml"
    options = yaml.safe_load(catalog.read_text(encoding="utf-8"))["captions"]["validator"]["options"]
    expectations: list[dict[str, Any]] = options["expectations"]
    return expectations
