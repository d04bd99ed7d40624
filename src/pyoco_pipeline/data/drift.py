"""How captions differ from those of the previous version: rows, lengths, vocabulary, class balance.

Each statistic has a limit, a parameter. Two samples of one distribution differ too: what that alone would give is
allowed in the limit (lengths) or taken off the statistic (vocabulary, classes), so that tables of some tens of rows
seldom alarm by chance.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from pyoco_pipeline.data.caption_columns import caption_text, count_tokens, normalise
from pyoco_pipeline.errors import UserError

Action = Literal["warn", "fail"]
Counts = Mapping[Any, int]

_CLASS_COLUMNS = ("class", "category", "label")
_KEY = ("path", "start", "end", "split", "caption")  # what makes a row the same; row_id may count rows
MOST_FREQUENT = 20  # captions whose shares are compared
SHOWN = 10  # values of a column, words


@dataclass(frozen=True)
class DriftOptions:
    """What to compare with, and when to say so.

    filepath: the previous table, Parquet; normally the file that is about to be overwritten. action: on a statistic
    above its limit. max_length_ks: Kolmogorov-Smirnov statistic of lengths in characters and in tokens, 0 to 1.
    max_unseen_words: share of words that the previous version does not have. max_vocabulary_divergence:
    Jensen-Shannon divergence of word frequencies in bits, 0 to 1. max_class_psi: population stability index of
    splits, of classes and of the most frequent captions; 0.1 is commonly called small, 0.25 large. class_column: by
    default the first of class, category and label that both tables have.
    """

    filepath: str
    action: Action = "warn"
    max_length_ks: float = 0.1
    max_unseen_words: float = 0.1
    max_vocabulary_divergence: float = 0.1
    max_class_psi: float = 0.2
    class_column: str | None = None


@dataclass(frozen=True)
class Statistic:
    """A measure of difference, 0 for none, and the value up to which it is let pass."""

    name: str
    value: float
    limit: float

    @property
    def exceeded(self) -> bool:
        return self.value > self.limit


@dataclass(frozen=True)
class Share:
    """Share of rows with one value, of 1, in either version."""

    value: str
    before: float
    now: float


@dataclass(frozen=True)
class Drift:
    """What `compare` found; with `nothing_to_compare` only that. `lengths`: mean and median of either version."""

    nothing_to_compare: str = ""
    rows_before: int = 0
    rows_now: int = 0
    rows_added: int = 0
    rows_removed: int = 0
    statistics: tuple[Statistic, ...] = ()
    lengths: Mapping[str, Mapping[str, float]] | None = None
    shares: Mapping[str, tuple[Share, ...]] | None = None  # by column, the values of largest change
    unseen_words: tuple[str, ...] = ()  # the most frequent ones

    @property
    def exceeded(self) -> tuple[Statistic, ...]:
        """The statistics above their limits."""
        return tuple(statistic for statistic in self.statistics if statistic.exceeded)

    def json(self) -> str:
        """Everything, as JSON: a function of the two tables and the options alone."""
        statistics = [{**asdict(s), "exceeded": s.exceeded} for s in self.statistics]
        return json.dumps({**asdict(self), "statistics": statistics}, indent=2, ensure_ascii=False) + "\n"


def parse_drift_options(options: Mapping[str, Any]) -> DriftOptions:
    """Options as the catalog gives them; UserError names one that is unknown, missing or does not fit."""
    known = [field.name for field in fields(DriftOptions)]
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"The captions' drift has the unknown option {name}; it knows {', '.join(known)}."
            )
        if name.startswith("max_") and (
            isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0
        ):
            raise UserError(f"The captions' drift.{name} is {value!r}; give a number of at least 0.")
    if not options.get("filepath"):
        raise UserError("The captions' drift has no filepath: name the table of the previous version.")
    if options.get("action", "warn") not in get_args(Action):
        raise UserError(f"The captions' drift.action is {options['action']!r}; use warn or fail.")
    return DriftOptions(**options)


def compare_with_previous(now: pd.DataFrame, options: DriftOptions) -> Drift:
    """`compare` with the table in the options' file; where there is none or it can't be read, that is said."""
    path = Path(options.filepath)
    if not path.is_file():
        return Drift(nothing_to_compare="there is no previous version")
    try:
        before = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        return Drift(nothing_to_compare=f"the previous version cannot be read: {error}")
    if missing := [name for name in ("path", "caption") if name not in before.columns]:
        return Drift(nothing_to_compare=f"the previous version has no column {missing[0]}")
    return compare(before, now, options)


def compare(before: pd.DataFrame, now: pd.DataFrame, options: DriftOptions) -> Drift:
    """How the captions of `now` differ from those of `before`: columns path and caption, others where both have them.

    Raises UserError when `options.class_column` is not in `now`.
    """
    if options.class_column and options.class_column not in now.columns:
        raise UserError(
            f"The captions' drift.class_column is {options.class_column!r}, which is none of: "
            f"{', '.join(map(str, now.columns))}."
        )
    if before.empty or now.empty:
        return Drift(
            nothing_to_compare="one of the versions has no rows", rows_now=len(now), rows_before=len(before)
        )
    tables = (before, now)
    old, new = (Counter(_keys(table, _common(_KEY, tables))) for table in tables)
    texts = [[caption_text(value) or "" for value in table["caption"]] for table in tables]
    words = [Counter(word for text in of_one for word in normalise(text).split()) for of_one in texts]
    unseen = Counter({word: count for word, count in words[1].items() if word not in words[0]})
    lengths = {
        "characters": [np.array([len(text.strip()) for text in of_one]) for of_one in texts],
        "tokens": [_num_tokens(table, of_one, tables) for table, of_one in zip(tables, texts, strict=True)],
    }
    balance = _balance(tables, texts, options)
    statistics = [
        *(_length_statistic(f"length in {unit}", values, options) for unit, values in lengths.items()),
        Statistic(
            "share of unseen words", unseen.total() / max(1, words[1].total()), options.max_unseen_words
        ),
        Statistic("divergence of word frequencies", divergence(*words), options.max_vocabulary_divergence),
        *(
            Statistic(f"balance of {name}", stability(*counts), options.max_class_psi)
            for name, counts in balance.items()
        ),
    ]
    return Drift(
        rows_before=len(before),
        rows_now=len(now),
        rows_added=(new - old).total(),
        rows_removed=(old - new).total(),
        statistics=tuple(statistics),
        lengths={unit: _middle(*values) for unit, values in lengths.items()},
        shares={name: _largest_changes(*counts) for name, counts in balance.items()},
        unseen_words=tuple(sorted(unseen, key=lambda word: (-unseen[word], word))[:SHOWN]),
    )


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance of two samples' cumulative distributions, 0 to 1."""
    values = np.union1d(a, b)
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def divergence(a: Counts, b: Counts) -> float:
    """Jensen-Shannon divergence of two frequency tables in bits, 0 to 1, less its mean for samples of one distribution.

    That mean is (V - 1) (1/N + 1/M) / (8 ln 2) for V words and N and M occurrences (chi-squared approximation).
    """
    counts = _aligned(a, b)
    if counts.shape[1] == 0 or not counts.sum(1).all():
        return 0.0
    p, q = counts / counts.sum(1, keepdims=True)
    middle = (p + q) / 2
    bits = sum(float(np.sum(x[x > 0] * np.log2(x[x > 0] / middle[x > 0]))) / 2 for x in (p, q))
    by_chance = (counts.shape[1] - 1) * float((1 / counts.sum(1)).sum()) / (8 * np.log(2))
    return max(0.0, float(bits - by_chance))


def stability(a: Counts, b: Counts) -> float:
    """Population stability index sum (q - p) ln(q / p), less its mean for samples of one distribution.

    Half a row is added to each category, so that none is empty; the mean is (V - 1) (1/N + 1/M) for V categories
    (Yurdakul 2018, chi-squared approximation).
    """
    counts = _aligned(a, b)
    p, q = (counts + 0.5) / (counts + 0.5).sum(1, keepdims=True)
    by_chance = (counts.shape[1] - 1) * float((1 / counts.sum(1)).sum())
    return max(0.0, float(np.sum((q - p) * np.log(q / p)) - by_chance))


def _aligned(a: Counts, b: Counts) -> np.ndarray:
    keys = sorted({*a, *b}, key=str)
    return np.array([[of_one.get(key, 0) for key in keys] for of_one in (a, b)], dtype=np.float64)


def _length_statistic(name: str, lengths: list[np.ndarray], options: DriftOptions) -> Statistic:
    a, b = lengths
    # The statistic's critical value at 1%: below it, two samples of one distribution are often as far apart.
    by_chance = 1.63 * float(np.sqrt((len(a) + len(b)) / (len(a) * len(b))))
    return Statistic(name, kolmogorov_smirnov(a, b), max(options.max_length_ks, by_chance))


def _common(names: tuple[str, ...], tables: tuple[pd.DataFrame, pd.DataFrame]) -> list[str]:
    return [name for name in names if all(name in table.columns for table in tables)]


def _keys(table: pd.DataFrame, names: list[str]) -> list[int]:
    """One integer per row: a hash of the named columns, the same for a table and for its copy in a file."""
    parts: dict[str, Any] = {}
    for name in names:
        if name in ("start", "end"):
            parts[name] = pd.to_numeric(table[name], errors="coerce").to_numpy(
                dtype=np.float64, na_value=np.nan
            )
        else:
            parts[name] = [caption_text(value) or "" for value in table[name]]
    return pd.util.hash_pandas_object(pd.DataFrame(parts), index=False).tolist()


def _num_tokens(
    table: pd.DataFrame, texts: list[str], tables: tuple[pd.DataFrame, pd.DataFrame]
) -> np.ndarray:
    if _common(("num_tokens",), tables):
        return pd.to_numeric(table["num_tokens"]).fillna(0).to_numpy(dtype=np.int64)
    return np.array([count_tokens(text) for text in texts])


def _balance(
    tables: tuple[pd.DataFrame, pd.DataFrame], texts: list[list[str]], options: DriftOptions
) -> dict[str, list[Counts]]:
    """Rows per value of what should keep its balance, in either version."""
    classes = [options.class_column] if options.class_column else _common(_CLASS_COLUMNS, tables)[:1]
    columns = [*_common(("split",), tables), *_common(tuple(map(str, classes)), tables)]
    counts: dict[str, list[Counts]] = {
        name: [Counter(caption_text(value) or "" for value in table[name]) for table in tables]
        for name in columns
    }
    captions = [Counter(of_one) for of_one in texts]
    # A caption that occurs once is no class; all but the most frequent are one.
    frequent = {c for one in captions for c, count in _most_common(one)[:MOST_FREQUENT] if count > 1}
    if frequent:
        counts["captions"] = [
            {
                **{c: one[c] for c in frequent},
                "(all others)": sum(n for c, n in one.items() if c not in frequent),
            }
            for one in captions
        ]
    return counts


def _most_common(counts: Counts) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _middle(before: np.ndarray, now: np.ndarray) -> dict[str, float]:
    return {
        "mean_before": float(before.mean()),
        "mean_now": float(now.mean()),
        "median_before": float(np.median(before)),
        "median_now": float(np.median(now)),
    }


def _largest_changes(before: Counts, now: Counts) -> tuple[Share, ...]:
    totals = [max(1, sum(counts.values())) for counts in (before, now)]
    shares = [
        Share(key, before.get(key, 0) / totals[0], now.get(key, 0) / totals[1]) for key in {*before, *now}
    ]
    return tuple(sorted(shares, key=lambda s: (-round(abs(s.now - s.before), 9), -s.now, s.value))[:SHOWN])
