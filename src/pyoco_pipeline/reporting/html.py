"""The report: one HTML file that needs nothing but itself, no network, no script."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import yaml

from pyoco_pipeline.reporting import figures
from pyoco_pipeline.reporting.html_parts import (
    clip_card,
    facts,
    figure,
    missing,
    number,
    page,
    picture,
    records,
    section,
    table,
    text,
)
from pyoco_pipeline.reporting.redact import redact
from pyoco_pipeline.reporting.report import Report, ReportClip

__all__ = ["Report", "ReportClip", "render_report"]

_SECTIONS = {
    "clips": "Clips",
    "cascade": "Cascade",
    "metrics": "Metrics",
    "captions": "Caption accuracy",
    "training": "Training",
    "prior": "Noise prior",
    "data": "Data",
    "configuration": "Configuration",
    "run": "Run",
}
_HEADER_FACTS = 5
# (prefix of the metric's name, what it is, which way is better)
_METRIC_KINDS = (
    ("fvd", "Fréchet video distance", "lower is better"),
    ("kvd", "Kernel video distance", "lower is better"),
    ("clip_fid", "Fréchet distance of CLIP frame features", "lower is better"),
    ("fid", "Fréchet distance of frame features", "lower is better"),
    ("is_", "Inception score", "higher is better"),
    ("clipsim", "Frame-to-caption similarity", "higher is better"),
    ("temporal_consistency", "Similarity of neighbouring frames", "closest to real is best"),
    ("frame_consistency", "Similarity of neighbouring frames", "closest to real is best"),
    ("motion_magnitude", "Change between neighbouring frames, in grey levels", "closest to real is best"),
)


def render_report(report: Report) -> str:
    """The report as one self-contained HTML page: text is escaped, secrets in `config` are masked."""
    body = "".join(
        (
            _clips(report),
            _cascade(report),
            _metrics(report.metrics),
            _caption_accuracy(report.metrics),
            _training(report),
            _prior(report),
            _data(report),
            _configuration(report.config),
            _run(report.run),
        )
    )
    shown = {anchor: name for anchor, name in _SECTIONS.items() if anchor != "cascade" or report.cascade}
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in shown.items())
    main = f"{_header_facts(report.run)}{body}"
    return page(report.title, main, header=f"<nav>{links}</nav>", media=True)


def _header_facts(run: Mapping[str, Any]) -> str:
    plain = [(key, value) for key, value in run.items() if not isinstance(value, Mapping | list | tuple)]
    items = (
        f"<div><dt>{text(key.replace('_', ' '))}</dt><dd>{number(value)}</dd></div>"
        for key, value in plain[:_HEADER_FACTS]
    )
    return f'<dl class="strip">{"".join(items)}</dl>' if plain else ""


def _clips(report: Report) -> str:
    if not report.videos and not report.real_videos:
        return section("clips", _SECTIONS["clips"], missing("No clips yet: run the generate pipeline."))
    columns = [
        _clip_column(
            "Generated", report.videos, "No clips were generated in this run: run the generate pipeline."
        )
    ]
    if report.real_videos:
        columns.append(_clip_column("Real, for comparison", report.real_videos, ""))
    lead = ""
    if any(clip.readback for clip in report.videos):
        lead = (
            "The marks under a clip are what a reader network saw in it without knowing the caption: "
            "✓ as the caption asks, ✗ otherwise."
        )
    classes = "sides" if report.real_videos else "sides single"
    return section("clips", _SECTIONS["clips"], f'<div class="{classes}">{"".join(columns)}</div>', lead)


def _cascade(report: Report) -> str:
    if not report.cascade:
        return ""
    body = records(report.cascade)
    if report.cascade_sheet is not None:
        words = "What each stage made of the same prompts, frames of one moment below each other"
        body += picture(report.cascade_sheet, words)
    lead = "Every stage is given the clips of the one above it."
    return section("cascade", _SECTIONS["cascade"], body, lead)


def _clip_column(title: str, clips: Any, otherwise: str) -> str:
    cards = "".join(clip_card(clip) for clip in clips)
    content = f'<div class="clips">{cards}</div>' if cards else missing(otherwise)
    count = f' <span class="count">{len(clips)}</span>' if cards else ""
    return f"<div><h3>{text(title)}{count}</h3>{content}</div>"


def _metrics(metrics: Mapping[str, Any] | None) -> str:
    entries = {name: item for name, item in (metrics or {}).get("metrics", {}).items() if _has_value(item)}
    refused = (metrics or {}).get("refused") or {}
    if not entries and not refused:
        return section("metrics", _SECTIONS["metrics"], missing("No metrics yet: run the evaluate pipeline."))
    body = ""
    if entries:
        rows = [_metric_row(name, item) for name, item in entries.items()]
        head = ("metric", "value", "real clips score", "generated", "reference", "extractor")
        body = table(head, rows, numeric=(1, 2, 3, 4))
        body += figure(
            partial(figures.metric_bars, entries), "Each metric beside the score of real clips", 920
        )
    warnings = [(name, item["warning"]) for name, item in entries.items() if item.get("warning")]
    body += _notes("Read with care", warnings, "warn") + _notes("Not computed", refused.items(), "refused")
    provenance = {key: (metrics or {})[key] for key in _PROVENANCE if (metrics or {}).get(key) is not None}
    body += f'<p class="provenance muted">{_provenance(provenance)}</p>' if provenance else ""
    lead = "Two sets of real clips are not at distance zero either: judge a value beside its floor."
    return section("metrics", _SECTIONS["metrics"], body, lead)


_PROVENANCE = ("protocol", "seed", "reference_sha256", "generated_sha256")


def _provenance(items: Mapping[str, Any]) -> str:
    parts = (
        f'{text(key.replace("_", " "))} <code title="{text(value)}">{text(str(value)[:12])}</code>'
        for key, value in items.items()
    )
    return " · ".join(parts)


def _has_value(item: object) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("value"), int | float)


def _metric_row(name: str, item: Mapping[str, Any]) -> list[str]:
    kind = next((kind for kind in _METRIC_KINDS if name.startswith(kind[0])), ("", "", ""))
    note = f'<span class="muted">{text(kind[1])}, {text(kind[2])}</span>' if kind[1] else ""
    value = f"<strong>{number(item['value'])}</strong>"
    spread = item.get("standard_error", item.get("standard_deviation"))
    if spread:
        value += f' <span class="muted">± {number(spread)}</span>'
    if item.get("interval"):
        low, high, share = (item["interval"][key] for key in ("low", "high", "confidence"))
        value += f' <span class="muted">{number(low)} to {number(high)} ({share:.0%})</span>'
    if item.get("extrapolated"):
        limit = item["extrapolated"]
        value += (
            f' <span class="muted">{number(limit["value"])} ± {number(limit["standard_error"])} at infinitely many '
            "clips</span>"
        )
    if item.get("floor") is not None:
        real = f'{number(item["floor"])} <span class="muted">floor</span>'
    else:
        real = number(item.get("real"))
    sha256 = str(item.get("extractor_sha256") or "")
    extractor = text(item.get("extractor") or "none")
    if sha256:
        extractor += f' <code title="sha256 {text(sha256)}">{text(sha256[:12])}</code>'
    counts = [number(item.get("num_generated")), number(item.get("num_reference"))]
    return [f"<code>{text(name)}</code>{note}", value, real, *counts, extractor]


def _notes(title: str, items: Any, kind: str) -> str:
    rows = "".join(f"<li><code>{text(name)}</code> {text(sentence)}</li>" for name, sentence in items)
    return f'<div class="note {kind}"><h3>{text(title)}</h3><ul>{rows}</ul></div>' if rows else ""


def _caption_accuracy(metrics: Mapping[str, Any] | None) -> str:
    measured = ((metrics or {}).get("metrics") or {}).get("caption_accuracy") or {}
    attributes = measured.get("attributes") or {}
    rows = [_accuracy_row(name, item) for name, item in attributes.items() if _has_value(item)]
    if not rows:
        return section(
            "captions", _SECTIONS["captions"], missing("Caption accuracy was not measured in this run.")
        )
    lead = (
        "How often a reader network sees in a generated clip what its caption asks for, ± one standard error."
    )
    head = ("attribute", "accuracy", "", "chance", "clips")
    return section("captions", _SECTIONS["captions"], table(head, rows, numeric=(1, 3, 4)), lead)


def _accuracy_row(name: str, item: Mapping[str, Any]) -> list[str]:
    value, chance = item["value"], item.get("chance")
    error = item.get("standard_error")
    shown = f"<strong>{value:.1%}</strong>"
    shown += f' <span class="muted">± {100 * error:.1f}</span>' if error is not None else ""
    tick = f'<i style="left:{100 * chance:.1f}%"></i>' if chance is not None else ""
    meter = f'<div class="meter"><b style="width:{100 * min(max(value, 0), 1):.1f}%"></b>{tick}</div>'
    return [text(name), shown, meter, f"{chance:.1%}" if chance is not None else "–", number(item.get("num"))]


def _training(report: Report) -> str:
    try:
        curves = figure(partial(figures.loss_curves, report.history), "Training loss against step", 1080)
    except ValueError:
        sentence = "No training history: nothing was trained, or its history file is missing."
        return section("training", _SECTIONS["training"], missing(sentence))
    last: dict[str, Mapping[str, Any]] = {}
    for row in report.history:
        last[str(row.get("stage", "training"))] = row
    lead = (
        "Losses of different priors are losses of different tasks: compare priors by their clips, not here."
    )
    rows = "<h3>Last logged step</h3>" + records(list(last.values()))
    return section("training", _SECTIONS["training"], curves + rows, lead)


def _prior(report: Report) -> str:
    body = f"<p>{text(report.prior)}</p>" if report.prior else ""
    if report.covariance is not None:
        draw = partial(figures.noise_covariance, report.covariance, "Covariance of the noise")
        body += figure(draw, "Covariance of the noise between the frames of a clip", 460)
    return section(
        "prior", _SECTIONS["prior"], body or missing("The noise prior of this run was not recorded.")
    )


def _data(report: Report) -> str:
    ingest = dict(report.ingest)
    quarantined = ingest.pop("quarantined", None)
    body = facts(ingest) if ingest else ""
    if isinstance(quarantined, list | tuple) and quarantined:
        body += f'<h3>Quarantined <span class="count">{len(quarantined):,}</span></h3>{records(quarantined)}'
    elif quarantined is not None:
        count = 0 if isinstance(quarantined, list | tuple) else quarantined
        body += f"<p>{number(count) if count else 'No'} rows were quarantined.</p>"
    if report.captions:
        body += f"<h3>Captions</h3>{facts(report.captions)}"
    return section(
        "data", _SECTIONS["data"], body or missing("No summary of the data: run the ingest pipeline.")
    )


def _configuration(config: Mapping[str, Any]) -> str:
    if not config:
        return section(
            "configuration", _SECTIONS["configuration"], missing("The configuration was not recorded.")
        )
    blocks = []
    for key, value in redact(config).items():
        content = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=100)
        blocks.append(f"<details><summary>{text(key)}</summary><pre>{text(content)}</pre></details>")
    return section(
        "configuration", _SECTIONS["configuration"], f'<div class="config">{"".join(blocks)}</div>'
    )


def _run(run: Mapping[str, Any]) -> str:
    return section(
        "run", _SECTIONS["run"], facts(run) if run else missing("Nothing was recorded about the run.")
    )
