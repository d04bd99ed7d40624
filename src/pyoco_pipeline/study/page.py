"""The study as one HTML file that needs nothing but itself, no network, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyoco_pipeline.reporting.html_parts import (
    data_uri,
    facts,
    figure,
    missing,
    number,
    page,
    section,
    table,
    text,
)
from pyoco_pipeline.reporting.video_files import write_webp
from pyoco_pipeline.study import figures, figures_finalists
from pyoco_pipeline.study.analyse import study_table
from pyoco_pipeline.study.finalists import portion_points, portions, resampled_table
from pyoco_pipeline.study.page_finalists import interval_words, portions_section, sampler_sections
from pyoco_pipeline.study.settings import AblateAlphaSettings
from pyoco_pipeline.study.table import Row, StudyTable

_TITLE = "The α study"
_MOST_SHOWN = 10  # configurations whose samples stand side by side
_SIDE = 96  # pixels, of a sample
Samples = Mapping[str, Sequence[np.ndarray]]  # configuration -> clips (T, H, W, 3) of the same captions


def shown_rows(study: StudyTable) -> list[Row]:
    """The configurations that curves and samples show: the paper's, and the best of each family."""
    best = [
        study.best([row for row in study.rows if row.family == f]) for f in {r.family: 0 for r in study.rows}
    ]
    chosen = [row for row in study.rows if row.is_papers or row in best]
    return [row for row in chosen if row.steps(study.metric)][:_MOST_SHOWN]


def draw_figures(found: Mapping[str, Any], settings: AblateAlphaSettings) -> dict[str, Any]:
    """The figures by name, each a function of `dark` that gives a PNG."""
    study, real = study_table(found["cells"], settings), found["real"]
    scored = {name for row in study.rows for name in row.scores}
    metrics = [m for m in (settings.metric, settings.second_metric) if m in scored]
    rows = shown_rows(study)
    drawn: dict[str, Any] = {"spectrum": partial(figures.snr_curves, found["spectrum"])}
    if not metrics:
        return drawn
    floor = real.get(metrics[0])
    for varied, figure_name in (("solver_steps", "solver"), ("sigma_max", "sampled_from")):
        again = resampled_table(found["cells"], settings, varied)
        if again.rows:
            names = [row.name for row in rows]
            drawn[figure_name] = partial(figures_finalists.sampler_curves, again, varied, names, floor)
    if parts := portions(found["cells"], settings):
        points = portion_points(parts, found["num_clips"])
        drawn["clips"] = partial(figures_finalists.portion_curves, points, parts, floor)
    if any(law["step"] is not None for law in found["motion"]["laws"]):
        drawn["motion"] = partial(figures.motion_scatter, study, found["motion"], metrics[0])
    drawn["alpha"] = partial(figures.alpha_curves, study, metrics, real)
    drawn["steps"] = partial(figures.step_curves, study, rows, metrics[0], floor)
    return drawn


def render_page(
    found: Mapping[str, Any],
    settings: AblateAlphaSettings,
    samples: Samples,
    captions: Sequence[str],
    compare_link: str | None = None,
    fps: float = 8.0,
) -> str:
    """The page: text is escaped, figures and clips are inside. found: what `analyse` gave."""
    drawn = draw_figures(found, settings)
    body = "".join(
        (
            _answer(found, compare_link),
            _curves(found, drawn),
            _samples(samples, captions, fps),
            _hypotheses(found),
            sampler_sections(found, drawn),
            portions_section(found, drawn),
            _spectrum(found, drawn),
            _motion(found, drawn),
            _cells(found),
            _made(found, settings),
        )
    )
    return page(_TITLE, body, style=_STYLE)


_STYLE = (
    ".grid img { display: block; image-rendering: pixelated; border-radius: 4px; margin: 0 auto; } "
    ".grid th, .grid td { text-align: center; vertical-align: middle; padding: .3rem .5rem; font-size: .8rem; } "
    ".grid td:first-child { text-align: left; max-width: 14rem; } "
    ".verdict { white-space: nowrap; font-weight: 600; } .verdict.yes { color: var(--good); } "
    ".verdict.no { color: var(--bad); } .verdict.open { color: var(--muted); }"
)


def _answer(found: Mapping[str, Any], compare_link: str | None) -> str:
    body = f"<p><strong>{text(found['conclusion'])}</strong></p>"
    if not found["finished"]:
        body += missing(
            "The study is not finished: what stands here is what there is. The same command goes on."
        )
    rows = []
    for row in found["best"]:
        score = row["score"]
        rows.append(
            [
                text(row["family"]),
                text(row["best"]),
                interval_words(score),
                number(score["count"]),
                number(row["step"]),
                number(row["tried"]),
            ]
        )
    head = ("family", "its best", found["metric"], "seeds", "step", "configurations tried")
    body += table(head, rows, numeric=(2, 3, 4, 5))
    real = "; ".join(f"{name} of real clips: {number(value)}" for name, value in found["real"].items())
    body += f'<p class="muted">{text(real)}. Intervals are of {1 - found["level"]:.0%} over seeds.</p>'
    body += (
        '<p class="muted">A family\'s best is chosen by the scores that it is then compared by, which favours the '
        "family of which more was tried. Losses of different priors can't be compared, and are not.</p>"
    )
    if compare_link:
        body += f'<p class="muted">All cells in MLflow: <a href="{text(compare_link)}">{text(compare_link)}</a></p>'
    return section("answer", "What the data support", body)


def _curves(found: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    if "alpha" not in drawn:
        return section("curves", "Scores", missing("No cell has been scored yet."))
    body = figure(drawn["alpha"], "Scores against alpha for both families of priors", 980)
    body += "<h3>From the first step on</h3>" + figure(drawn["steps"], "Score against training steps", 980)
    lead = (
        "Each point is the last score of its configuration; hollow ones were stopped by halving and trained less. Bars "
        "and bands: intervals over seeds, none for one seed. Step 0 is the inflated image model with each prior."
    )
    return section("curves", "Scores", body, lead)


def _samples(samples: Samples, captions: Sequence[str], fps: float) -> str:
    if not samples:
        return section("samples", "Samples", missing("No samples yet."))
    rows = []
    for place, caption in enumerate(captions):
        clips = [clips[place] for clips in samples.values()]
        rows.append([text(caption), *(_clip(clip, caption, fps) for clip in clips)])
    lead = "The same captions and the same seed: the columns differ in the prior and in what was trained with it."
    body = f'<div class="grid">{table(["", *samples], rows)}</div>'
    return section("samples", "Samples", body, lead)


def _clip(clip: np.ndarray, caption: str, fps: float) -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        content = write_webp(Path(folder) / "clip.webp", clip, fps, scale=1).read_bytes()
    return f'<img src="{data_uri(content, "image/webp")}" width="{_SIDE}" alt="{text(caption)}">'


_CLASSES = {"confirmed": "yes", "not confirmed": "no", "undecided": "open"}


def _hypotheses(found: Mapping[str, Any]) -> str:
    head = (
        "claim", "verdict", "what was compared", "mean difference", "p, paired t", "p, Holm", "p, sign flips",
    )  # fmt: skip
    body = ""
    for law in dict.fromkeys(h["law"] for h in found["hypotheses"]):
        rows = [_hypothesis(h) for h in found["hypotheses"] if h["law"] == law]
        body += f"<h3>{text(law[0].upper() + law[1:])}</h3>" + table(head, rows, numeric=(3, 4, 5, 6))
    tests = sum(h["test"] is not None and h["test"]["p_t"] is not None for h in found["hypotheses"])
    lead = (
        f"Confirmed: at least {found['min_seeds']} seeds, and p of the paired t test at most {found['level']:g}. Not "
        f"confirmed: as many seeds without that, or with the opposite. Else undecided. A difference is the first "
        f"configuration's {found['metric']} less the second's. Of {tests} such tests about "
        f"{tests * found['level']:.1f} would come out by chance if nothing were true; Holm's p allows for it."
    )
    return section("hypotheses", "The paper's claims", body, lead)


def _hypothesis(h: Mapping[str, Any]) -> list[str]:
    verdict = f'<span class="verdict {_CLASSES[h["verdict"]]}">{text(h["verdict"])}</span>'
    row = [text(h["claim"]), verdict, text(h["detail"])]
    test = h["test"]
    if test is None:
        return [*row, "–", "–", "–", "–"]
    flips = f"{number(test['p_flips'])} (at least {number(test['smallest_p_flips'])})"
    return [*row, interval_words(test["difference"]), number(test["p_t"]), number(test["p_holm"]), flips]


def _spectrum(found: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    spectrum = found["spectrum"]
    rows = []
    for row in spectrum["priors"]:
        best = row["found"]
        seen = "–" if best is None else number(best["sigma_mean"])
        if best and best["at_end_of_range"]:
            seen += " (an end of what was tried)"
        rows.append([text(row["prior"]), number(row["predicted_mean"]), text(seen), number(row["mismatch"])])
    head = ("prior", "P_mean predicted", "P_mean found", "mismatch left")
    body = figure(drawn["spectrum"], "Signal-to-noise ratio of the clips per temporal frequency", 980)
    body += table(head, rows, numeric=(1, 2, 3)) + f"<p>{text(_prediction(spectrum['correlation']))}</p>"
    how = "as found" if spectrum["iid_mean_is_found"] else "of the paper's law, since no best one was found"
    lead = (
        "A prior is a noise level per temporal frequency. Predicted: the P_mean at which a prior takes as much of the "
        "clips' variance from the best linear denoiser as i.i.d. noise does at its best P_mean "
        f"({spectrum['iid_mean']:g}, {how}). The mismatch is what no P_mean removes."
    )
    return section("spectrum", "Why: noise per temporal frequency", body, lead)


def _motion(found: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    motion = found["motion"]
    laws = motion["laws"]
    rows = [
        [
            text(prior["prior"]),
            number(prior["decided_at"]),
            number(prior["open_at"]),
            *(
                number(100 * law["share"][prior["prior"]]) if prior["prior"] in law["share"] else "–"
                for law in laws
            ),
        ]
        for prior in motion["priors"]
    ]
    shares = (f"% at ln σ = {law['sigma_mean']:g} ± {law['sigma_std']:g}" for law in laws)
    head = ("prior", "σ at d' = 3", "σ at d' = 1", *shares)
    body = ""
    if "motion" in drawn:
        body += figure(drawn["motion"], "Scores against training where motion is decided", 980)
    body += table(head, rows, numeric=range(1, len(head)))
    seen = [_order(law, correlation) for law in laws for correlation in law["correlations"]]
    if seen:
        head = (
            "ln σ",
            "step",
            "priors",
            "score",
            "with the share",
            "by seed",
            "with neighbours' correlation",
        )
        body += table(head, seen, numeric=(1, 2, 4, 6))
    else:
        body += "<p>Too few priors were scored at one sigma law to say how that orders them.</p>"
    lead = (
        "Which way a clip goes is decided between the noise levels at which the best observer tells it from itself "
        "backwards with d' = 3 and with d' = 1. Shares: of what a prior is trained on, how much lies between. Rank "
        "correlations, Spearman's, are of scores over the priors, with the shares and, to compare, with the "
        "correlation of a prior's noise in neighbouring frames. Left out: a prior that repeats a frame, which hides no "
        "motion."
    )
    return section("motion", "Why: where motion is decided", body, lead)


def _order(law: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    by_seed = ", ".join(number(value) for value in found["share_by_seed"].values())
    return [
        text(f"{law['sigma_mean']:g} ± {law['sigma_std']:g}"),
        number(law["step"]),
        number(len(law["share"])),
        text(found["metric"]),
        number(found["share"]),
        text(by_seed),
        number(found["neighbours"]),
    ]


def _prediction(correlation: Mapping[str, Any]) -> str:
    count = correlation["priors"]
    if not count:
        return "No correlated prior was scored at several P_mean, so the prediction is not tested."
    error = f"mean absolute error {correlation['mean_absolute_error']:.2g}"
    if correlation["pearson"] is None:
        return f"{count} correlated priors were scored at several P_mean: {error}; too few, or too alike, to correlate."
    pearson = f"{correlation['pearson']:.2f}"
    return f"Over {count} correlated priors predicted and found P_mean correlate by {pearson}; {error}."


def _cells(found: Mapping[str, Any]) -> str:
    metrics = [found["metric"], *([found["second_metric"]] if found["second_metric"] else [])]
    rows = []
    for cell in found["cells"]:
        last = cell["evaluations"][-1] if cell["evaluations"] else {"step": None, "values": {}}
        scores = [number(last["values"].get(metric)) for metric in (*metrics, "caption_accuracy")]
        seen = last.get("clips_seen")
        rows.append([text(cell["name"]), _status(cell), number(last["step"]), number(seen), *scores])
    head = ("cell", "", "step", "clips seen", *metrics, "caption_accuracy")
    lead = "All seeds that ran, each at the last step that it was scored at."
    body = table(head, rows, numeric=range(2, 7))
    return section("cells", "All cells", body, lead)


def _status(cell: Mapping[str, Any]) -> str:
    if cell["status"] == "failed":
        return f'<span class="verdict no">failed</span> {text(cell["error"])}'
    return "" if cell["status"] == "done" else '<span class="verdict open">to go on</span>'


def _image_model(found: Mapping[str, Any]) -> dict[str, str]:
    image = found["image_model"]
    if image is None:
        return {}
    return {"right digits before training": f"{image['accuracy']:.1%}, with {image['prior']} noise"}


def _made(found: Mapping[str, Any], settings: AblateAlphaSettings) -> str:
    rungs = {
        f"up to step {rung['steps']}": f"{len(rung['trained'])} configurations, {len(rung['kept'])} of them kept"
        for rung in found["rungs"]
    }
    cost = found["cost"]
    body = facts(
        {
            "study": found["study"],
            "halving": rungs,
            "minutes of training": cost["train_minutes"],
            "minutes of sampling and scoring": cost["score_minutes"],
            "device": ", ".join(cost["device"]) or "–",
            "clips per step": settings.train.batch_size,
            "clips per score": settings.num_clips,
            **_image_model(found),
            "initial weights": found["shared"]["initial_weights_sha256"][:12],
            "clips": found["shared"]["data_sha256"][:12],
        }
    )
    if (image := found["image_model"]) and not image["enough"]:
        body += missing(
            f"The image model's frames show the right digit in {image['accuracy']:.1%} of clips only: train it longer."
        )
    if len(found["code"]) > 1:
        body += missing(
            f"Cells were made by {len(found['code'])} versions of the code: {', '.join(found['code'])}."
        )
    return section("made", "How it was made", body)
