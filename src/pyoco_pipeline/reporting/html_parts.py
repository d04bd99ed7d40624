"""The building blocks of the HTML report: escaped text, numbers, tables, media."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyoco_pipeline.reporting.report import ReportClip

_MIMES = {"video/mp4", "video/webm", "image/webp", "image/png", "image/gif", "image/jpeg"}
_MAX_ROWS = 50


def text(value: object) -> str:
    """Anything as escaped text: all that users wrote, captions above all, passes through here."""
    return html.escape(str(value), quote=True)


def number(value: object) -> str:
    """A number with four significant digits, thousands set apart; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text("–" if value is None else value)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as people say them: "0.4 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def data_uri(content: bytes, mime: str) -> str:
    """The content as a data: URI; ValueError for a type that a report doesn't show."""
    if mime not in _MIMES:
        raise ValueError(f"{mime} is not shown in reports, expected one of {', '.join(sorted(_MIMES))}")
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def page(title: str, body: str, *, header: str = "", style: str = "", media: bool = False) -> str:
    """A whole HTML file that needs nothing but itself, no network, no script.

    body, header, style: HTML and CSS; header goes beside the title, style behind that of all pages. media: it plays
    videos.
    """
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8") + style
    allowed = "img-src data:; " + ("media-src data:; " if media else "") + "style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; {allowed}">'
        f"<title>{text(title)}</title><style>{css}</style></head><body>"
        f"<header><div class=bar><h1>{text(title)}</h1>{header}</div></header>"
        f"<main>{body}</main></body></html>\n"
    )


def missing(sentence: str) -> str:
    """A part that isn't there, said in a sentence."""
    return f'<p class="missing">{text(sentence)}</p>'


def section(anchor: str, title: str, body: str, lead: str = "") -> str:
    """A section of the page; `body` is HTML, `title` and `lead` are plain text."""
    lead = f'<p class="lead">{text(lead)}</p>' if lead else ""
    return f'<section id="{anchor}"><h2>{text(title)}</h2>{lead}{body}</section>'


def figure(draw: Callable[..., bytes], alt: str, width: int) -> str:
    """A figure in light and in dark; `draw(dark=...)` makes the PNG."""
    light, dark = (data_uri(draw(dark=flag), "image/png") for flag in (False, True))
    return (
        f'<picture class="figure"><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{text(alt)}" style="max-width:{width}px"></picture>'
    )


def picture(png: bytes, alt: str) -> str:
    """A picture as it is, as wide as the page."""
    return f'<img class="figure" src="{data_uri(png, "image/png")}" alt="{text(alt)}" style="max-width:100%">'


def clip_card(clip: ReportClip) -> str:
    """A clip that plays, its caption, and what the reader network saw in it."""
    uri = data_uri(clip.media, clip.mime)
    if clip.mime.startswith("video/"):
        media = f'<video src="{uri}" autoplay loop muted playsinline></video>'
    else:
        media = f'<img src="{uri}" alt="{text(clip.caption)}">'
    caption = text(clip.caption) if clip.caption else '<span class="muted">no caption</span>'
    caption = f'<span class="caption" title="{text(clip.caption)}">{caption}</span>'
    return f'<figure class="clip">{media}<figcaption>{caption}{_readback(clip)}</figcaption></figure>'


def _readback(clip: ReportClip) -> str:
    if not clip.readback:
        return ""
    asked = clip.asked or {}
    chips = []
    for name, seen in clip.readback.items():
        verdict, mark, note = "", "", f"{name}: the reader saw {seen}"
        if name in asked:
            hit = str(asked[name]) == str(seen)
            verdict, mark = ("hit", "✓ ") if hit else ("miss", "✗ ")
            note += f", the caption asks for {asked[name]}"
        chips.append(f'<span class="chip {verdict}" title="{text(note)}">{mark}{text(seen)}</span>')
    return f'<span class="chips">{"".join(chips)}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Iterable[int] = ()) -> str:
    """A table whose cells are HTML already; `numeric` are the columns set flush right."""
    right = set(numeric)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=num' if column in right else ''}>{cell}</{tag}>"
            for column, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    header = f"<thead><tr>{cells('th', [text(name) for name in head])}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'


def records(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal kind as a table; those beyond fifty are counted."""
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    shown = [[number(row.get(name)) for name in columns] for row in rows[:_MAX_ROWS]]
    more = len(rows) - len(shown)
    rest = f'<p class="muted">… and {more:,} more.</p>' if more > 0 else ""
    numeric = [
        index
        for index, name in enumerate(columns)
        if all(isinstance(row.get(name), int | float) for row in rows)
    ]
    return table([_label(name) for name in columns], shown, numeric=numeric) + rest


def facts(values: Mapping[str, Any]) -> str:
    """A two-column table of facts; nested mappings become tables inside it, lists become lists."""
    return (
        f'<table class="facts"><tbody>{"".join(_fact(str(k), v) for k, v in values.items())}</tbody></table>'
    )


def _fact(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        unit = "_s" if name.endswith("_s") else ""
        cell = facts({f"{key}{unit}": item for key, item in value.items()}) if value else "–"
    elif isinstance(value, list | tuple):
        cell = f"<ul>{''.join(f'<li>{number(item)}</li>' for item in value[:_MAX_ROWS])}</ul>"
    elif name.endswith("_s") and isinstance(value, int | float):
        cell = duration(value)
    else:
        cell = number(value)
    return f"<tr><th scope=row>{text(_label(name))}</th><td>{cell}</td></tr>"


def _label(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ")
