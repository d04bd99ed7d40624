"""A folder of captioned videos or images becomes a table, and says what is wrong with it."""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from pyoco_pipeline.data.sources.video_folder import VideoFolderSource
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError


def source(root: Path, captions_file: str = "captions.csv", **changes) -> VideoFolderSource:
    return VideoFolderSource(root, captions_file, **{"test_share": 0.5, **changes})


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
            with pytest.raises(VideoError) as caught, source(root).local_file(row["path"]):
                pass
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


def test_a_file_has_one_path_however_it_is_spelled(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    spellings = [
        "a.mp4",
        "./a.mp4",
        "sub/../a.mp4",
        f"{tmp_path}/a.mp4",
        "link.mp4",
        "./none.mp4",
        "../x.mp4",
    ]
    table = source(
        write(tmp_path, "path,caption\n" + "".join(f"{path},x\n" for path in spellings))
    ).captions()
    assert table["path"].tolist() == ["a.mp4"] * 5 + ["./none.mp4", "../x.mp4"]
    assert table["row_id"][1] == "000002-a.mp4"
    assert table["row_id"][4] == "000005-link.mp4"


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


def test_a_share_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"from 0 to 1, not 1\.5"):
        source(tmp_path, test_share=1.5)


def test_images_are_listed_like_videos(tmp_path):
    write(tmp_path, "path,caption\na.png,a red square\n")
    (tmp_path / "a.png").write_bytes(b"png")
    images = source(tmp_path, media="image")
    assert images.media == "image"
    with images.local_file(images.captions()["path"][0]) as path:
        assert path == tmp_path / "a.png"


def test_a_table_in_a_store_reads_like_one_on_disk(tmp_path):
    store = fsspec.filesystem("memory")
    url = f"memory://{uuid.uuid4().hex}"
    table = "path,caption\na.mp4,red\nsub/b.mp4,blue\n../c.mp4,out\nd.mp4,gone\n"
    for name, content in {"captions.csv": table.encode(), "a.mp4": b"a", "sub/b.mp4": b"b"}.items():
        store.pipe_file(f"{url}/{name}", content)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert_frame_equal(source(url).captions(), source(tmp_path).captions())
    with source(url).local_file("sub/b.mp4") as path:
        assert path.read_bytes() == b"b"
    store.pipe_file(f"{url}/captions.csv", b"path,caption\na.mp4,red, round\n")
    with pytest.raises(UserError, match=r"Line 2 of memory://.*/captions\.csv has 3 cells"):
        source(url).captions()
