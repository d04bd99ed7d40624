"""The caption check as one page that needs no network and follows the reader's light or dark setting."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from pyoco_pipeline.data.captions import CaptionCheck, RuleOutcome
    from pyoco_pipeline.data.drift import Drift

DROPPED_SHOWN = 50  # rows listed at the end of the page
CAPTION_SHOWN = 300  # characters

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --muted: #5b6570; --paper: #fff; --line: #d8dde3;
  --good: #2e7d4f; --warn: #b26a00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --muted: #9aa5b1; --paper: #15181c; 
  --line: #343b43; --good: #6cc08b; --warn: #e6a94a; --bad: #f2857d; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; }
.counts { display: flex; gap: 2.5rem; } .counts b { display: block; font-size: 1.8rem; }
section { border-top: 1px solid var(--line); padding: .8rem 0; }
section p { margin: .2rem 0; }
.muted, th { color: var(--muted); font-weight: normal; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.bar { height: .5rem; background: var(--good); border-radius: .25rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--bad); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top; overflow-wrap: anywhere; }
"""


def caption_report_html(check: CaptionCheck, drift: Drift | None = None) -> str:
    """A self-contained page of a check: counts, what changed, every rule with its first failing rows, dropped rows.

    All text from the table and from the rules is escaped. Its length does not grow with the table's.
    """
    kept, dropped = len(check.kept), len(check.dropped)
    verdict = '<b class="bad">failed</b>' if check.failed or not kept else '<b class="good">passed</b>'
    rules = "".join(_rule(rule) for rule in check.rules)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Captions</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f'<h1>Captions</h1><div class="counts"><div>{verdict}check</div><div><b>{kept:,}</b>kept</div>'
        f"<div><b>{dropped:,}</b>dropped</div><div><b>{kept + dropped:,}</b>in the table</div></div>"
        f"<h2>Rules</h2>{rules}{_dropped_rows(check.dropped)}{_drift(drift)}</body></html>\n"
    )


def _rule(rule: RuleOutcome) -> str:
    colour = "good" if rule.success else {"fail": "bad"}.get(rule.action, "warn")
    if rule.success:
        state = "within bounds" if rule.observed or rule.num_failing else "not found"
    else:
        state = {"drop": "rows dropped", "warn": "warning", "fail": "failed"}[rule.action]
    bar = "" if rule.observed else f'<div class="bar"><i style="width:{rule.percent_failing:.2f}%"></i></div>'
    rows = [(e.row_id, e.caption, e.detail) for e in rule.examples]
    found = escape(rule.count_in_words)
    return (
        f'<section><p><b class="{colour}">{state}</b>: {escape(rule.reason)}</p>'
        f'<p class="muted">action {escape(rule.action)} · {escape(rule.type)} · {found}</p>{bar}'
        f"{_table(('row', 'caption', 'found'), rows)}</section>"
    )


def _dropped_rows(dropped: pd.DataFrame) -> str:
    if dropped.empty:
        return ""
    reasons = [(reason, f"{count:,}") for reason, count in dropped["reason"].value_counts().items()]
    counts = _table(("reason", "rows"), [(str(reason), count) for reason, count in reasons[:DROPPED_SHOWN]])
    first = dropped.head(DROPPED_SHOWN)
    captions = ["" if not isinstance(c, str) else c[:CAPTION_SHOWN] for c in first["caption"]]
    rows = list(zip(map(str, first["row_id"]), captions, map(str, first["reason"]), strict=True))
    more = len(dropped) - len(first)
    note = f'<p class="muted">and {more:,} more rows</p>' if more else ""
    return (
        f"<h2>Dropped rows</h2>{counts}<h3>The first</h3>{_table(('row', 'caption', 'reason'), rows)}{note}"
    )


def _drift(drift: Drift | None) -> str:
    if drift is None:
        return ""
    if drift.nothing_to_compare:
        return f"<h2>Since the previous version</h2><p>Nothing to compare: {escape(drift.nothing_to_compare)}.</p>"
    statistics = "".join(
        f'<p><b class="{"warn" if s.exceeded else "good"}">{"changed" if s.exceeded else "alike"}</b>: '
        f'{escape(s.name)} <span class="muted">{s.value:.3g}, limit {s.limit:.3g}</span></p>'
        for s in drift.statistics
    )
    lengths = [
        (f"{kind} {unit}", *(f"{values[f'{kind}_{when}']:,.1f}" for when in ("before", "now")))
        for unit, values in (drift.lengths or {}).items()
        for kind in ("mean", "median")
    ]
    parts = [_table(("length of a caption", "before", "now"), lengths)]
    for name, shares in (drift.shares or {}).items():
        rows = [(s.value[:CAPTION_SHOWN], f"{s.before:.2%}", f"{s.now:.2%}") for s in shares]
        parts.append(_table((name, "before", "now"), rows))
    if drift.unseen_words:
        parts.append(f"<p>Most frequent unseen words: {escape(', '.join(drift.unseen_words))}</p>")
    return (
        f"<h2>Since the previous version</h2><p>{drift.rows_before:,} rows before, {drift.rows_now:,} now: "
        f"{drift.rows_added:,} added, {drift.rows_removed:,} removed.</p>{statistics}{''.join(parts)}"
    )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
