"""Tables in WebVid's columns and the files beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyoco_pipeline.data.sources.webvid import WebVidSource
from pyoco_pipeline.errors import UserError

HEADER = "videoid,contentUrl,duration,page_dir,name\n"


def line(video: str, page: str = "013001_013050", name: str = "Waves at sunset") -> str:
    return f'{video},https://ak.picdn.net/x/{video}/preview/{video}.mp4,PT00H00M09S,{page},"{name}"\n'


@pytest.fixture
def root(tmp_path) -> Path:
    rows = line("28872181") + line("1016", name="Tourists, walking") + line("7", page="")
    (tmp_path / "results_2M_train.csv").write_text(HEADER + rows)
    for name in ("013001_013050/28872181.mp4", "7.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_rows_are_files_by_page_and_id_with_their_names_as_captions(root):
    table = WebVidSource(root).captions()
    assert table["path"].tolist() == [
        "videos/013001_013050/28872181.mp4",
        "videos/013001_013050/1016.mp4",
        "videos/7.mp4",
    ]
    assert table["caption"].tolist() == ["Waves at sunset", "Tourists, walking", "Waves at sunset"]
    assert table["path_problem"].tolist() == ["", "does not exist", ""]
    assert table["videoid"].tolist() == ["28872181", "1016", "7"]
    with WebVidSource(root).local_file(table["path"][0]) as path:
        assert path.read_bytes() == b"x"


def test_the_validation_table_is_the_test_split_or_the_hash_decides(root):
    (root / "results_2M_val.csv").write_text(HEADER + line("99"))
    table = WebVidSource(root, test=("results_2M_val.csv",)).captions()
    assert table["split"].tolist() == ["train", "train", "train", "test"]
    assert set(WebVidSource(root, test_share=1).captions()["split"]) == {"test"}
    assert set(WebVidSource(root, test_share=0).captions()["split"]) == {"train"}


def test_a_video_in_both_splits_is_refused(root):
    (root / "results_2M_val.csv").write_text(HEADER + line("99") + line("1016"))
    with pytest.raises(
        UserError, match=r"Row 2 of .*val\.csv has the videoid 1016 that is in a train table too"
    ):
        WebVidSource(root, test=("results_2M_val.csv",)).captions()


def test_ids_and_pages_cannot_lead_out_of_the_root(root):
    (root / "results_2M_train.csv").write_text(HEADER + line("x", page="../..") + line("../../../etc/passwd"))
    problems = WebVidSource(root).captions()["path_problem"]
    assert all(problem.startswith("is outside the data root") for problem in problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [(HEADER + line(""), r"Row 1 of .*train\.csv has no videoid"), ("id,name\n1,x\n", "no column videoid; its columns"),
     (HEADER, "has no rows")],
)  # fmt: skip
def test_tables_that_cannot_be_used_say_where(root, text, message):
    (root / "results_2M_train.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        WebVidSource(root).captions()
