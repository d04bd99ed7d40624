"""The report: complete, self-contained, and safe whatever captions say."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pyoco_pipeline.reporting import figures
from pyoco_pipeline.reporting.html import Report, ReportClip, render_report
from pyoco_pipeline.reporting.html_parts import duration, number

METRICS = {
    "schema_version": 1,
    "metrics": {
        "fvd_digits3d": {
            "value": 128.42,
            "floor": 22.31,
            "num_generated": 256,
            "num_reference": 300,
            "extractor": "digits3d",
            "extractor_sha256": "ab" * 32,
            "warning": "256 clips are few",
        },
        "is_digits3d": {"value": 5.7, "standard_deviation": 0.2, "real": 8.9},
        "caption_accuracy": {
            "value": 0.4,
            "standard_error": 0.03,
            "real": 1.0,
            "attributes": {"digit": {"value": 0.62, "standard_error": 0.03, "chance": 0.1, "num": 256}},
        },
    },
    "refused": {"fvd_i3d": "No I3D weights were given."},
    "seed": 7,
}
HISTORY = [
    {"stage": stage, "step": step, "loss": 1 / (step + 1)}
    for stage in ("image", "base")
    for step in range(50)
]


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_full_report_shows_every_part_and_loads_nothing() -> None:
    report = Report(
        "a title",
        run={"env": "base", "wall_time_s": {"ingest": 3.2, "finetune_video": 200}},
        videos=[
            ReportClip(
                "a red 7", b"mp4", "video/mp4", {"digit": 1, "colour": "red"}, {"digit": "7", "colour": "red"}
            )
        ],
        real_videos=[ReportClip("a real 3", b"webp", "image/webp")],
        metrics=METRICS,
        history=HISTORY,
        config={"noise": {"alpha": 2.0}, "store": {"password": "hunter2"}},  # pragma: allowlist secret
        captions={"distinct": 420},
        ingest={"kept": 1190, "quarantined": [{"row": 17, "reason": "caption is empty"}]},
        prior="Progressive noise, α = 2.",
        covariance=np.eye(4),
    )
    page = render_report(report)
    for expected in (
        "a title", "a red 7", "a real 3", "✗ 1", "✓ red", "128.4", "22.31", "abababababab", "256 clips are few",
        "No I3D weights were given.", "62.0%", "± 3.0", "10.0%", "alpha: 2.0", "420", "1,190", "caption is empty",
        "Progressive noise, α = 2.", "3.2 s", "3 min 20 s",
    ):  # fmt: skip
        assert expected in page, expected
    assert "hunter2" not in page
    tags = _Tags(page).tags
    video = next(attributes for tag, attributes in tags if tag == "video")
    assert {"autoplay", "loop", "muted", "playsinline"} <= set(video)
    addresses = [item[key] or "" for _, item in tags for key in ("src", "srcset", "href") if key in item]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    assert "url(" not in page


def test_what_is_missing_is_said() -> None:
    page = render_report(Report("empty"))
    assert page.count('class="missing"') == 8
    assert "run the evaluate pipeline" in page


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=60))
def test_no_text_can_become_markup(words: str) -> None:
    hostile = f"<b onclick=x>'\"&{words}</style><script>"
    clip = ReportClip(hostile, b"", "image/png", {hostile: hostile}, {hostile: "x"})
    report = Report(
        hostile,
        run={hostile: {hostile: hostile}},
        videos=[clip],
        metrics={"metrics": {hostile: {"value": "nan"}}, "refused": {hostile: hostile}},
        config={hostile: [hostile]},
        captions={hostile: [hostile]},
        ingest={"quarantined": [{hostile: hostile}]},
        prior=hostile,
    )
    tags = _Tags(render_report(report)).tags
    assert not {"b", "script"} & {tag for tag, attributes in tags if tag != "b" or "onclick" in attributes}
    assert all(not name.startswith("on") for _, attributes in tags for name in attributes)


def test_a_mime_type_that_is_no_picture_or_video_is_refused() -> None:
    with pytest.raises(ValueError, match="text/html is not shown"):
        render_report(Report("x", videos=[ReportClip("x", b"", "text/html")]))


def test_many_quarantined_rows_are_counted_not_listed() -> None:
    page = render_report(Report("x", ingest={"quarantined": [{"row": row} for row in range(2000)]}))
    assert "and 1,950 more" in page


@pytest.mark.parametrize("dark", [False, True])
def test_figures_are_png_pictures(dark: bool) -> None:
    for content in (
        figures.loss_curves(HISTORY, dark=dark),
        figures.noise_covariance(np.eye(4), "α = 2 costs $1", dark=dark),
        figures.metric_bars(METRICS, dark=dark),
    ):
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200


def test_figures_without_data_say_so() -> None:
    with pytest.raises(ValueError, match="no finite loss"):
        figures.loss_curves([{"stage": "base", "step": 0, "loss": float("nan")}])
    with pytest.raises(ValueError, match="no metric"):
        figures.metric_bars({"metrics": {"caption_accuracy": {"digit": {"value": 1.0}}}})


def test_smoothing_keeps_constants_lines_and_length() -> None:
    np.testing.assert_allclose(figures.smoothed(np.full(200, 0.3)), 0.3)
    np.testing.assert_allclose(figures.smoothed(np.arange(200.0)), np.arange(200.0))
    assert len(figures.smoothed(np.ones(1))) == 1


def test_numbers_and_durations_read_well() -> None:
    assert [number(value) for value in (1234567, 0.123456, 1234.56, None, True)] == [
        "1,234,567", "0.1235", "1,234.6", "–", "True",
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (0.42, 31, 200, 7500)] == [
        "0.4 s",
        "31 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert re.fullmatch(r"nan", number(float("nan")))
