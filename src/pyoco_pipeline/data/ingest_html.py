"""What ingest kept, what it left out and why, as one self-contained page. Names and captions are escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pyoco_pipeline.data.clips import SCORES, ClipStore

ROWS_SHOWN = 100
CLIPS_SHOWN = 12
_BARS = 32
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1c2430}
.counts{display:flex;gap:1.5rem;flex-wrap:wrap}.counts b{display:block;font-size:1.6rem}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;width:100%}td,th{text-align:left;padding:.25rem .6rem;
border-bottom:1px solid #dde2ea;overflow-wrap:anywhere}.muted{color:#667}
.clips{display:flex;flex-wrap:wrap;gap:1rem}.clips figure{margin:0;width:128px;font-size:12px}
.clips img{width:128px;image-rendering:pixelated;border-radius:4px}
.scores{display:flex;flex-wrap:wrap;gap:2rem}
"""


def ingest_report_html(
    report: Mapping[str, Any],
    store: ClipStore,
    quarantine: Sequence[tuple[str, str, str]],
    left_out: Sequence[tuple[str, str, str]],
) -> str:
    """The page. report: what report.json holds; quarantine, left_out: (name, path, reason)."""
    counts = {
        "captions": report["captions"],
        "segments of files": report["segments"],
        "could not be used": len(quarantine),
        "clips left out by filters": len(left_out),
        **{f"clips for {split}": count for split, count in report["clips"].items()},
        **({"images": report["images"]} if report["images"] else {}),
        **{
            name.replace("_", " "): report[name]
            for name in ("scenes_too_short", "clips_beyond_max_clips_per_row")
            if report[name]
        },
    }
    tiles = "".join(f"<div><b>{value}</b>{escape(name)}</div>" for name, value in counts.items())
    sizes = _table(("frames x height x width", "clips"), report["sizes"].items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Ingest</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f'<h1>Ingest</h1><div class="counts">{tiles}</div><h2>Clips</h2>{_examples(store)}{sizes}'
        f"{_scores(store)}{_section('Could not be used', 'row', report['quarantine'], quarantine)}"
        f"{_section('Left out by filters', 'clip', report['left_out'], left_out)}</body></html>\n"
    )


def _section(title: str, name: str, reasons: Mapping[str, int], rows: Sequence[tuple[str, str, str]]) -> str:
    if not rows:
        return f'<h2>{title}</h2><p class="muted">none</p>'
    more = len(rows) - ROWS_SHOWN
    note = f'<p class="muted">and {more} more rows</p>' if more > 0 else ""
    shown = _table((name, "path", "reason"), rows[:ROWS_SHOWN])
    return f"<h2>{title}</h2>{_table(('reason', 'count'), reasons.items())}{shown}{note}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _examples(store: ClipStore) -> str:
    figures = []
    for split in store.manifest.counts:
        for item in store.take(split, CLIPS_SHOWN // len(store.manifest.counts)):
            middle = item.clip.video[len(item.clip.video) // 2]
            figures.append(
                f"<figure>{_picture(middle)}<figcaption>{escape(item.caption)}</figcaption></figure>"
            )
    return f'<div class="clips">{"".join(figures)}</div>'


def _picture(frame: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _scores(store: ClipStore) -> str:
    values: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    for shard in store.shards():
        with store.open_shard(shard) as file:
            table = file.read(columns=list(SCORES))
        for name, parts in values.items():
            parts.append(table[name].drop_null().to_numpy())
    charts = [_histogram(name, np.concatenate(v)) for name, v in values.items() if sum(map(len, v))]
    if not charts:
        return ""
    return f'<h2>Scores of the clips kept</h2><div class="scores">{"".join(charts)}</div>'


def _histogram(name: str, values: np.ndarray) -> str:
    counts, edges = np.histogram(values, bins=_BARS)
    top = counts.max()
    bars = "".join(
        f'<rect x="{8 * i}" y="{60 - 60 * count / top:.1f}" width="7" height="{60 * count / top:.1f}"/>'
        for i, count in enumerate(counts)
    )
    low, middle, high = edges[0], np.median(values), edges[-1]
    return (
        f'<div><b>{escape(name)}</b><br><svg width="{8 * _BARS}" height="60" fill="#4b6fb5" role="img">{bars}</svg>'
        f'<div class="muted">{low:.3g} … {high:.3g}, median {middle:.3g}</div></div>'
    )


def write_report(
    folder: Path,
    report: Mapping[str, Any],
    quarantine: Sequence[tuple[str, str, str]],
    left_out: Sequence[tuple[str, str, str]],
) -> None:
    """Write report.html beside the clips in `folder`."""
    page = ingest_report_html(report, ClipStore(folder), quarantine, left_out)
    (folder / "report.html").write_text(page, encoding="utf-8", errors="replace")
