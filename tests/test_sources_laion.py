"""What img2dataset leaves on disk: tables beside files, and tables that hold the files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pyoco_pipeline.data.sources import parquet
from pyoco_pipeline.data.sources.laion import LaionSource
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError


def rows(**more) -> pd.DataFrame:
    """The columns of img2dataset's tables; the second row's address was dead."""
    return pd.DataFrame(
        {
            "url": ["http://a/1.jpg", "http://a/2.jpg", "http://a/3.jpg"],
            "caption": ["a red ball", "gone", None],
            "key": ["000000000", "000000001", "000000002"],
            "status": ["success", "failed_to_download", "success"],
            "error_message": [None, "HTTP Error 404", None],
            "width": [256, None, 256],
            "height": [256, None, 256],
            "exif": ["{}", None, "{}"],
            **more,
        }
    )


@pytest.fixture
def files(tmp_path) -> Path:
    rows().to_parquet(tmp_path / "00000.parquet")
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000/000000000.jpg").write_bytes(b"first")
    (tmp_path / "00000_stats.json").write_text("{}")
    return tmp_path


def test_files_lie_by_key_in_the_folder_of_their_table(files, caplog):
    source = LaionSource(files)
    table = source.captions()
    assert table["path"].tolist() == ["00000/000000000.jpg", "00000/000000002.jpg"]
    assert table["caption"].tolist() == ["a red ball", None]
    assert table["path_problem"].tolist() == ["", "does not exist"]
    assert "1 of 3 rows" in caplog.text  # what was left out is counted
    with source.local_file(table["path"][0]) as path:
        assert path.read_bytes() == b"first"
    assert source.media == "image"


def test_a_table_may_hold_the_files(tmp_path):
    rows(jpg=[b"first", None, b"third"], txt=["a red ball", None, None]).to_parquet(
        tmp_path / "00000.parquet"
    )
    source = LaionSource(tmp_path)
    table = source.captions()
    assert table["path"].tolist() == ["00000.parquet#0", "00000.parquet#2"]
    with source.local_file("00000.parquet#2") as path:
        assert path.read_bytes() == b"third"
    with pytest.raises(VideoError, match="is missing"), source.local_file("00000.parquet#1"):
        pass
    with pytest.raises(VideoError, match="does not exist"), source.local_file("00001.parquet#1"):
        pass


def test_much_media_in_one_row_group_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(parquet, "LARGE_GROUP_BYTES", 20_000)
    images = [bytes([k]) * 200 for k in range(150)]
    table = pd.DataFrame({"caption": ["x"] * 150, "jpg": images})
    table.to_parquet(tmp_path / "00000.parquet", row_group_size=100, compression=None)
    LaionSource(tmp_path).captions()
    assert not caplog.records
    table.to_parquet(tmp_path / "00000.parquet", compression=None)
    LaionSource(tmp_path).captions()
    assert "00000.parquet has 150 rows with 0 MB of jpg in one row group" in caplog.text


def test_a_table_may_name_the_files(tmp_path):
    pd.DataFrame({"URL": ["http://a"], "TEXT": ["a ball"], "file": ["v/1.mp4"]}).to_parquet(
        tmp_path / "t.parquet"
    )
    (tmp_path / "v").mkdir()
    (tmp_path / "v/1.mp4").write_bytes(b"video")
    source = LaionSource(tmp_path, path_column="file", media="video")
    assert source.captions()[["path", "caption", "path_problem"]].values.tolist() == [
        ["v/1.mp4", "a ball", ""]
    ]
    with source.local_file("v/1.mp4") as path:
        assert path.read_bytes() == b"video"


def test_two_spellings_of_a_file_are_one_path_in_one_split(tmp_path):
    names = [f"{k}.jpg" for k in range(20)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    spelled = [spelling for name in names for spelling in (name, f"./{name}")]
    pd.DataFrame({"TEXT": ["x"] * 40, "file": spelled}).to_parquet(tmp_path / "t.parquet")
    table = LaionSource(tmp_path, path_column="file", test_share=0.5).captions()
    assert table["path"].tolist() == [name for name in names for _ in range(2)]
    assert set(table.groupby("path")["split"].nunique()) == {1}


def test_a_list_of_captions_is_a_row_each(files, caplog):
    rows(caption=[["a red ball", "a ball"], ["gone", "lost"], []]).to_parquet(files / "00000.parquet")
    table = LaionSource(files).captions()
    assert table["caption"].tolist() == ["a red ball", "a ball", None]
    assert table["path"].tolist() == ["00000/000000000.jpg"] * 2 + ["00000/000000002.jpg"]
    assert "1 of 3 rows" in caplog.text


def test_addresses_alone_are_never_fetched(tmp_path):
    pd.DataFrame({"URL": ["http://a/1.jpg"], "TEXT": ["x"]}).to_parquet(tmp_path / "part-00000.parquet")
    with pytest.raises(
        UserError, match=r"no column key; its columns: URL, TEXT\. A table of addresses alone"
    ):
        LaionSource(tmp_path).captions()


def test_keys_cannot_lead_out_of_the_root(tmp_path):
    rows(key=["../../x", "1", "/etc/passwd"]).to_parquet(tmp_path / "00000.parquet")
    problems = LaionSource(tmp_path).captions()["path_problem"].tolist()
    assert problems[0].startswith("is outside the data root")
    assert problems[1] == "does not exist"  # 00000//etc/passwd.jpg


def test_what_cannot_be_used_is_named(files):
    with pytest.raises(UserError, match=r"00000\.parquet has no column title"):
        LaionSource(files, caption_column="title").captions()
    with pytest.raises(UserError, match=r"No table below .* fits 'x\*\.parquet'"):
        LaionSource(files, tables=("x*.parquet",)).captions()
    rows(status=["failed_to_download"] * 3).to_parquet(files / "00000.parquet")
    with pytest.raises(UserError, match="None of the 3 rows"):
        LaionSource(files).captions()


def test_the_test_split_is_drawn_by_the_path(files):
    assert set(LaionSource(files, test_share=1).captions()["split"]) == {"test"}
    assert set(LaionSource(files, test_share=0).captions()["split"]) == {"train"}
