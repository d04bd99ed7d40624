"""A folder of captioned videos becomes a table and clips, and says what is wrong with either."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import video_files as vf

from pyoco_pipeline.data.folder import VideoFolderSource
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError


def source(root: Path, captions_file: str = "captions.csv", **changes) -> VideoFolderSource:
    settings = {
        "num_frames": 4,
        "height": 16,
        "width": 24,
        "fps": 4,
        "max_clips_per_row": 10,
        "test_share": 0.5,
    }
    return VideoFolderSource(root, captions_file, **{**settings, **changes})


def write(root: Path, text: str, name: str = "captions.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root


ROWS = [
    {"path": "a.mp4", "caption": 'a "red", round ball', "start": 0.5, "end": 2.0, "split": "train"},
    {"path": "b/c.mp4", "caption": "Ein Fuß – 日本語", "start": None, "end": None, "split": "test"},
    {"path": "a.mp4", "caption": None, "start": 1, "end": None, "split": "train"},
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_reads_the_same_from_every_format(tmp_path, suffix):
    path = tmp_path / f"captions.{suffix}"
    table = pd.DataFrame(ROWS)
    if suffix == "csv":
        table.to_csv(path, index=False, encoding="utf-8-sig")
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    else:
        table.to_parquet(path)
    captions = source(tmp_path, path.name).captions()
    assert list(captions) == ["row_id", "path", "caption", "start", "end", "split", "path_problem"]
    assert captions["row_id"].tolist() == ["000001-a.mp4", "000002-b_c.mp4", "000003-a.mp4"]
    assert captions["path"].tolist() == ["a.mp4", "b/c.mp4", "a.mp4"]
    assert captions["caption"].tolist() == [ROWS[0]["caption"], ROWS[1]["caption"], None]
    assert captions["start"].tolist()[::2] == [0.5, 1.0]
    assert math.isnan(captions["start"][1])
    assert captions["end"][0] == 2.0
    assert captions["split"].tolist() == ["train", "test", "train"]


def test_words_that_pandas_takes_for_missing_values_are_captions(tmp_path):
    write(tmp_path, "path,caption\na.mp4,NA\nb.mp4,null\nc.mp4,\n")
    assert source(tmp_path).captions()["caption"].tolist() == ["NA", "null", None]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path):
    write(tmp_path, '{"path": "a.mp4", "caption": "x\\ud800y"}\n', "captions.jsonl")
    assert source(tmp_path, "captions.jsonl").captions()["caption"].tolist() == ["x\ufffdy"]


def test_an_absolute_captions_file_may_lie_elsewhere(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    write(tmp_path, "path,caption\na.mp4,x\n")
    assert len(source(root, str(tmp_path / "captions.csv")).captions()) == 1


def test_paths_are_confined_to_the_root(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(b"x")
    (root / "good.mp4").write_bytes(b"x")
    (root / "link.mp4").symlink_to(outside)
    (root / "inner.mp4").symlink_to(root / "good.mp4")
    (root / "circle.mp4").symlink_to(root / "circle.mp4")
    (root / "linked").symlink_to(tmp_path)
    problems = {
        "good.mp4": "",
        "sub/../good.mp4": "",
        "inner.mp4": "",
        str(root / "good.mp4"): "",
        "../outside.mp4": "is outside the data root",
        str(outside): "is outside the data root",
        "link.mp4": "is outside the data root",
        "linked/outside.mp4": "is outside the data root",
        "../root2/x.mp4": "is outside the data root",
        "none.mp4": "does not exist",
        "sub": "is not a regular file",
        "circle.mp4": "is not a usable path",
        "nul\\u0000.mp4": "is not a usable path",
        "x" * 300: "is not a usable path",
        "": "is missing",
    }
    lines = [f'{{"path": "{path}", "caption": "x"}}' for path in problems]
    captions = source(write(root, "\n".join(lines), "captions.jsonl"), "captions.jsonl").captions()
    for found, expected in zip(captions["path_problem"], problems.values(), strict=True):
        assert found.startswith(expected)
        assert bool(found) == bool(expected)
    for row in captions.to_dict("records"):
        if row["path_problem"]:
            with pytest.raises(VideoError) as caught:
                next(source(root).clips(row))
            assert caught.value.reason == row["path_problem"]


def test_without_a_split_column_a_file_never_falls_in_two_splits(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in "abcdefgh":
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
        (tmp_path / f"link_{name}.mp4").symlink_to(tmp_path / f"{name}.mp4")
    spellings = ["{}.mp4", "./{}.mp4", "sub/../{}.mp4", f"{tmp_path}/{{}}.mp4", "link_{}.mp4"]
    lines = [f"{spelling.format(name)},x" for name in "abcdefgh" for spelling in spellings]
    captions = source(write(tmp_path, "path,caption\n" + "\n".join(lines))).captions()
    by_file = captions.groupby(np.repeat(list("abcdefgh"), len(spellings)))["split"].nunique()
    assert set(by_file) == {1}
    assert set(captions["split"]) == {"train", "test"}


def test_the_share_of_test_files_is_the_one_asked_for(tmp_path):
    write(tmp_path, "path,caption\n" + "".join(f"{k}.mp4,x\n" for k in range(1000)))
    share = (source(tmp_path, test_share=0.2).captions()["split"] == "test").mean()
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 1000)  # four standard deviations of a fair draw
    assert set(source(tmp_path, test_share=0).captions()["split"]) == {"train"}
    assert set(source(tmp_path, test_share=1).captions()["split"]) == {"test"}


BAD_TABLES = {
    "missing column": ("captions.csv", "file,caption\na,b\n", "no column path; its columns: file, caption"),
    "no rows": ("captions.csv", "path,caption\n", "has no rows"),
    "no header": ("captions.csv", "", "has no rows"),
    "unquoted comma": (
        "captions.csv",
        "path,caption\na.mp4,red, round\n",
        "Line 2 .* 3 cells .* 2; put a caption",
    ),
    "repeated column": ("captions.csv", "path,caption,caption\na,b,c\n", "more than one column 'caption'"),
    "open quote": ("captions.csv", 'path,caption\na.mp4,"red\n', "cannot be read"),
    "not JSON": ("captions.jsonl", '{"path": "a", "caption": "b"}\n{"path": \n', "Line 2 .* is not JSON"),
    "not an object": ("captions.jsonl", "[1]\n", "Line 1 .* is not an object"),
    "not Parquet": ("captions.parquet", "path,caption\n", "cannot be read as .parquet"),
    "other format": ("captions.xlsx", "x", "is not a .csv, .jsonl or .parquet file"),
    "unknown split": (
        "captions.csv",
        "path,caption,split\na,b,train\na,b,dev\n",
        "Row 2 .* split, holds 'dev'",
    ),
    "words for a time": (
        "captions.csv",
        "path,caption,start\na,b,1\na,b,soon\n",
        "Row 2 .* start, holds 'soon'",
    ),
    "endless time": ("captions.csv", "path,caption,end\na,b,inf\n", "Row 1 .* end, holds 'inf'"),
    "list for a caption": ("captions.jsonl", '{"path": "a", "caption": ["b"]}\n', "Row 1 .* caption, holds"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_cannot_be_used_says_what_and_where(tmp_path, case):
    name, text, message = BAD_TABLES[case]
    with pytest.raises(UserError, match=message) as caught:
        source(write(tmp_path, text, name), name).captions()
    assert name in str(caught.value)


def test_bytes_that_are_not_utf_8_are_named(tmp_path):
    (tmp_path / "captions.csv").write_bytes("path,caption\na.mp4,für\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"cannot be read as \.csv in UTF-8"):
        source(tmp_path).captions()


def test_a_missing_root_or_captions_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        source(tmp_path / "nowhere").captions()
    with pytest.raises(UserError, match=r"has no captions file .*captions\.csv; write"):
        source(tmp_path).captions()


@pytest.mark.parametrize(
    "changes", [{"num_frames": 0}, {"fps": 0}, {"max_clips_per_row": 0}, {"test_share": 1.5}]
)
def test_settings_that_make_no_clip_are_refused(tmp_path, changes):
    with pytest.raises(UserError, match=r"must be positive|from 0 to 1"):
        source(tmp_path, **changes)


def row(**changes) -> dict:
    return {"row_id": "000001-v.mp4", "path": "v.mp4", "start": math.nan, "end": math.nan, **changes}


def test_a_video_is_cut_into_consecutive_clips(tmp_path):
    vf.write_video(tmp_path / "v.mp4", 16)  # 2 s at 8 fps
    clips = list(source(tmp_path).clips(row()))
    assert [clip.clip_id for clip in clips] == ["000001-v.mp4-000", "000001-v.mp4-001"]
    assert [vf.indices(clip.video) for clip in clips] == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert [clip.attributes for clip in clips] == [
        {"path": "v.mp4", "start_s": "0.000"},
        {"path": "v.mp4", "start_s": "1.000"},
    ]
    assert (clips[0].video.shape, clips[0].video.dtype) == ((4, 16, 24, 3), np.uint8)


def test_no_more_clips_than_asked_for(tmp_path):
    vf.write_video(tmp_path / "v.mp4", 16)
    assert len(list(source(tmp_path, max_clips_per_row=1).clips(row()))) == 1


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.5, 1.5, [[4, 6, 8, 10]]), (0.5, math.nan, [[4, 6, 8, 10]]), (math.nan, 1.4, [[0, 2, 4, 6]]),
     (1.0, 99.0, [[8, 10, 12, 14]])],
)  # fmt: skip
def test_clips_stay_inside_their_segment(tmp_path, start, end, expected):
    vf.write_video(tmp_path / "v.mp4", 16)
    clips = source(tmp_path).clips(row(start=start, end=end))
    assert [vf.indices(clip.video) for clip in clips] == expected


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (1.5, math.nan), (5.0, 9.0), (1.0, 0.5)])
def test_a_segment_that_is_too_short_says_what_it_has_and_what_is_needed(tmp_path, start, end):
    vf.write_video(tmp_path / "v.mp4", 16)
    with pytest.raises(VideoError, match=r"has 0\.\d0 s, but a clip of 4 frames at 4 fps needs 1\.00 s"):
        list(source(tmp_path).clips(row(start=start, end=end)))


def test_the_real_videos_give_clips():
    for path in vf.real_videos():
        clips = list(source(path.parent, fps=8, num_frames=16).clips(row(path=path.name)))
        assert len(clips) == {"bigbuckbunny.mp4": 2, "bikes.mp4": 5}.get(path.name, 2)
