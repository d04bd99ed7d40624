"""UCF-101 as downloaded becomes a table with its official splits."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import video_files as vf

from pyoco_pipeline.data.sources.ucf101 import UCF101Source, words
from pyoco_pipeline.data.video import VideoError, probe
from pyoco_pipeline.errors import UserError

# The files of HandstandPushups are spelled otherwise than their folder, in the download too.
TRAIN = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "HandstandPushups/v_HandStandPushups_g09_c01.avi"]
TEST = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c02.avi"]


@pytest.fixture
def root(tmp_path) -> Path:
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n")
    (lists / "trainlist01.txt").write_bytes(f"{TRAIN[0]} 1\r\n{TRAIN[1]} 2\r\n".encode())
    (lists / "testlist01.txt").write_bytes("".join(f"{name}\r\n" for name in TEST).encode())
    for name in [*TRAIN, *TEST]:
        path = tmp_path / "UCF-101" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        vf.write_video(path, 4, codec="mpeg4")
    return tmp_path


def test_the_official_lists_give_the_splits_and_the_classes_the_captions(root):
    table = UCF101Source(root).captions()
    assert table["path"].tolist() == [f"UCF-101/{name}" for name in [*TRAIN, *TEST]]
    assert table["caption"].tolist() == ["apply eye makeup", "handstand pushups", *["apply eye makeup"] * 2]
    assert table["split"].tolist() == ["train", "train", "test", "test"]
    assert table["label"].tolist() == [1, 2, 1, 1]
    assert table["group"].tolist() == ["g08", "g09", "g01", "g01"]
    assert set(table["path_problem"]) == {""}
    assert table["start"].isna().all()
    assert table["end"].isna().all()
    assert table["row_id"][1] == "000002-v_HandStandPushups_g09_c01.avi"


def test_its_files_decode_after_the_source_was_pickled(root):
    source = pickle.loads(pickle.dumps(UCF101Source(root)))  # noqa: S301
    with source.local_file(f"UCF-101/{TRAIN[1]}") as path:
        assert probe(path).duration_s == pytest.approx(0.5, abs=0.01)
    with pytest.raises(VideoError, match="outside"), source.local_file("../x.avi"):
        pass


def test_a_listed_file_that_is_absent_is_said(root):
    (root / "UCF-101" / TEST[1]).unlink()
    assert UCF101Source(root).captions()["path_problem"].tolist() == ["", "", "", "does not exist"]


def test_files_in_no_list_are_counted(root, caplog):
    UCF101Source(root).captions()
    assert not caplog.records
    for name in ("v_ApplyEyeMakeup_g02_c01.avi", "v_ApplyEyeMakeup_g02_c02.avi"):
        (root / "UCF-101/ApplyEyeMakeup" / name).write_bytes(b"x")
    assert len(UCF101Source(root).captions()) == 4
    assert "2 files below" in caplog.text
    assert "one is UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi" in caplog.text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ApplyEyeMakeup", "apply eye makeup"), ("YoYo", "yo yo"), ("CleanAndJerk", "clean and jerk"),
     ("Archery", "archery"), ("TVShow", "tv show")],
)  # fmt: skip
def test_class_names_are_split_at_their_capitals(name, expected):
    assert words(name) == expected


def test_prompts_replace_the_names_of_classes_one_row_each(root):
    (root / "prompts.csv").write_text(
        "class,caption\nApplyEyeMakeup,a woman applies makeup\nApplyEyeMakeup,eye shadow\n"
        "HandstandPushups,a man does push-ups on his hands\n"
    )
    table = UCF101Source(root, prompts_file="prompts.csv").captions()
    assert len(table) == 7
    assert table["caption"].tolist()[:3] == [
        "a woman applies makeup",
        "eye shadow",
        "a man does push-ups on his hands",
    ]
    assert table["row_id"].is_unique


def test_prompts_must_name_every_class(root):
    (root / "prompts.csv").write_text("class,caption\nApplyEyeMakeup,makeup\n")
    with pytest.raises(UserError, match=r"prompts\.csv has no caption for the class HandstandPushups"):
        UCF101Source(root, prompts_file="prompts.csv").captions()


def test_a_group_in_both_lists_is_leakage(root):
    leaked = "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi"
    (root / "ucfTrainTestlist" / "testlist01.txt").write_text(f"{leaked}\n")
    with pytest.raises(UserError, match=rf"group g08 of ApplyEyeMakeup in both.*{leaked} in test"):
        UCF101Source(root).captions()


BAD_LISTS = {
    "absent": ("trainlist01.txt", None, r"trainlist01\.txt cannot be read"),
    "empty": ("testlist01.txt", "\n", r"testlist01\.txt is empty"),
    "unknown class": (
        "testlist01.txt",
        "Archery/v_Archery_g01_c01.avi\n",
        r"Line 1 of .*not a video of a class",
    ),
    "other label": ("trainlist01.txt", f"{TRAIN[0]} 2\n", r"gives ApplyEyeMakeup the number 2, but .* it 1"),
    "no group": ("testlist01.txt", "ApplyEyeMakeup/clip.avi\n", r"'ApplyEyeMakeup/clip\.avi', which is not"),
    "no number": ("classInd.txt", "ApplyEyeMakeup\n", r"Line 1 of .*classInd\.txt is 'ApplyEyeMakeup', not"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_lists_that_cannot_be_used_say_where(root, case):
    name, text, message = BAD_LISTS[case]
    path = root / "ucfTrainTestlist" / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        UCF101Source(root).captions()


def test_there_are_three_splits(root, tmp_path):
    with pytest.raises(UserError, match="splits 1, 2 and 3, not 4"):
        UCF101Source(root, split=4)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        UCF101Source(tmp_path / "nowhere").captions()
