"""Pages show names, captions and reasons as text, and what serves pages listens on this machine only."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from projects import REPOSITORY
from test_noise_analysis_pipeline import QUICK, noise_maps, sample_maps
from tiny import make_store

from pyoco_pipeline.analysis.analyse import analyse
from pyoco_pipeline.analysis.page import render_page
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.ingest_html import ingest_report_html
from pyoco_pipeline.noise import IIDNoise


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(words: str) -> str:
    return f"</style></pre><script>alert('{words}')</script><img src=x onerror=\"alert(1)\">"


def assert_harmless(page: str, shown: str, least: int) -> None:
    tags = Tags(page)
    assert "script" not in tags.tags
    assert [name for name in tags.attributes if name.startswith("on")] == []
    assert tags.text.count(shown) >= least


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["C"]), max_size=20))
def test_the_page_of_ingest_shows_names_paths_reasons_and_captions_as_text(tmp_path_factory, words):
    evil, folder = hostile(words), tmp_path_factory.mktemp("clips")
    item = make_store(folder / "digits", 1, 1).take("train")[0]
    write_clips(
        folder / "evil", [CaptionedClip(item.clip, evil, "train")], kind=evil, shape=(4, 8, 8), fps=8.0
    )
    report = {
        "captions": 1, "segments": 1, "clips": {evil: 1}, "images": 0, "sizes": {evil: 1}, "scenes_too_short": 0,
        "clips_beyond_max_clips_per_row": 0, "quarantine": {evil: 1}, "left_out": {evil: 1},
    }  # fmt: skip
    rows = [(evil, evil, evil)]

    page = ingest_report_html(report, ClipStore(folder / "evil"), rows, rows)

    assert_harmless(page, evil, least=1 + 1 + 1 + 2 * 4)


def test_the_page_of_the_noise_analysis_shows_what_it_is_told_as_text():
    maps = torch.from_numpy(sample_maps(IIDNoise(), (8, 3, 1, 4, 4), 0))
    found = analyse(noise_maps(maps), QUICK)
    evil = hostile("1")

    page = render_page(replace(found, source=replace(found.source, text=evil)))

    assert_harmless(page, evil, least=1)


@pytest.mark.parametrize("command", ["mlflow ui", "kedro viz run"])
def test_what_make_serves_listens_on_this_machine_only(command):
    lines = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ").splitlines()

    (served,) = [line for line in lines if command in line]
    assert re.search(r"--host 127\.0\.0\.1(\s|$)", served)
