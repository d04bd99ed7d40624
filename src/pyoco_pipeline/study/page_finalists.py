"""The page's sections on the sampler and on fewer clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyoco_pipeline.reporting.html_parts import figure, number, section, table, text


def sampler_sections(found: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """Scores by solver steps and by the noise level that sampling begins at; nothing of what was not asked for."""
    parts = (
        ("solver", "solver_steps", "Quality against solver steps", "with other numbers of steps"),
        ("sampled_from", "sigma_max", "Quality against sigma_max", "from other noise levels, sigma_max"),
    )
    return "".join(_by_sampler(found, drawn, *part) for part in parts if part[0] in drawn)


def _by_sampler(
    found: Mapping[str, Any], drawn: Mapping[str, Any], name: str, varied: str, title: str, how: str
) -> str:
    values = sorted({row[varied] for row in found[varied]})
    by_name: dict[str, dict[float, str]] = {}
    for row in found[varied]:
        by_name.setdefault(row["configuration"], {})[row[varied]] = interval_words(row["score"])
    rows = [[text(name), *(scores.get(v, "–") for v in values)] for name, scores in by_name.items()]
    body = figure(drawn[name], f"Score against {varied.replace('_', ' ')}", 980)
    head = ("configuration", *(f"{value:g}" for value in values))
    body += table(head, rows, numeric=range(1, len(values) + 1))
    lead = (
        f"{found['metric']} of the finalists' last averaged weights, sampled {how}; nothing is "
        "trained anew. Intervals over seeds."
    )
    return section(name, title, body, lead)


def portions_section(found: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """Scores and tests by number of training clips; nothing where none was asked for."""
    if "clips" not in drawn:
        return ""
    rows = []
    for row in found["fewer_clips"]:
        clips = "all" if row["num_clips"] is None else f"{row['num_clips']:,}"
        pair = f"{row['a']} against {row['b']} at step {row['step']}"
        scores = [interval_words(row[name]) for name in ("score", "iid_score", "difference")]
        rows.append([text(clips), text(pair), *scores, number(row["p_t"])])
    head = (
        "training clips",
        "what was compared",
        found["metric"],
        "of i.i.d.",
        "mean difference",
        "p, paired t",
    )
    body = figure(drawn["clips"], "Score against the number of training clips", 980)
    body += table(head, rows, numeric=range(2, 6))
    lead = (
        "The first so many clips of training, seen as often as time allows: steps and clips per step are the same. "
        "Whether the lead is larger with fewer stands among the claims."
    )
    return section("clips", "With fewer clips", body, lead)


def interval_words(value: Mapping[str, Any]) -> str:
    """A mean, with its interval where there is one."""
    mean = number(value["mean"])
    return mean if value["low"] is None else f"{mean} [{number(value['low'])}, {number(value['high'])}]"
