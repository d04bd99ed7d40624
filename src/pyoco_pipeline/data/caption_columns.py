"""Columns of captions that rules are about, so that each rule is one plain expectation.

They stand beside the table's own:

characters      length of the caption without surrounding space; null where the caption is
num_tokens      the table's own column if it has one, else words and punctuation marks counted by a regular
                expression; null where the caption is
normalised      the caption in NFKC, case-folded, runs of spaces and punctuation collapsed to one space
near_duplicate  1.0 where the normalised caption occurred in a row above, else 0.0: its mean is their share
script          Unicode script of most letters (LATIN, CYRILLIC, CJK, HIRAGANA, ...), "NONE" without letters
splits_of_file  number of splits that show some of this segment of this file: more than 1 is leakage; where there is
                a column source, files of one name in two sources are two files. Rows with a path_problem are never
                read, so they leak nothing
segment_ok      whether 0 <= start < end, where they are given
path_problem    the table's own column if it has one, else ""

near_duplicate and splits_of_file compare rows, so they are derived from the whole table; the others from a row alone.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from pyoco_pipeline.errors import UserError


def derive_columns(table: pd.DataFrame) -> pd.DataFrame:
    """A copy of `table`, indexed from 0, with the columns that the module describes."""
    frame = table.reset_index(drop=True).copy()
    captions = [caption_text(value) for value in table["caption"]]
    texts = [caption or "" for caption in captions]
    absent = np.array([caption is None for caption in captions], dtype=bool)
    frame["caption"] = pd.Series(captions, dtype=object)
    frame["characters"] = pd.Series([len(text.strip()) for text in texts], dtype="Int64").mask(absent)
    if "num_tokens" not in frame.columns:
        tokens = [count_tokens(text) for text in texts]
        frame["num_tokens"] = pd.Series(tokens, dtype="Int64").mask(absent)
    normalised = pd.Series([normalise(text) for text in texts], dtype=object)
    frame["normalised"] = normalised
    frame["near_duplicate"] = (normalised.duplicated() & (normalised != "")).astype(np.float64)
    frame["script"] = pd.Series([dominant_script(text) for text in texts], dtype=object)
    start, end = (_seconds(frame, name) for name in ("start", "end"))
    begins = np.where(np.isnan(start), 0.0, start)
    ends = np.where(np.isnan(end), np.inf, end)
    frame["segment_ok"] = (begins >= 0) & (begins < ends)
    if "path_problem" not in frame.columns:
        frame["path_problem"] = ""
    frame["splits_of_file"] = 1
    usable = (frame["path_problem"].fillna("") == "").to_numpy()
    frame.loc[usable, "splits_of_file"] = _splits_of_file(
        frame[usable], begins[usable], np.maximum(begins, ends)[usable]
    )
    return frame


def count_tokens(text: str) -> int:
    """Number of words and punctuation marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


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


def caption_text(value: Any) -> str | None:
    """A caption as any file can hold it; None where there is none."""
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
    paths = (posixpath.normpath(str(path)) for path in frame["path"])
    places = frame["source"] if "source" in frame.columns else [0] * len(frame)
    files = pd.factorize(pd.Series(list(zip(places, paths, strict=True)), dtype=object))[0]
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
