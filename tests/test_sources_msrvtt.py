"""MSR-VTT's annotations become a table: a row for each sentence, official splits, whole files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyoco_pipeline.data.sources.msrvtt import MSRVTTSource
from pyoco_pipeline.errors import UserError

SPLITS = {"video0": "train", "video6513": "validate", "video7010": "test", "video7011": "test"}


def video(id_: str, split: str, **changes) -> dict:
    entry = {
        "category": 9,
        "url": "https://www.youtube.com/watch?v=9lZi22qLlEo",
        "video_id": id_,
        "start time": 137.72,
        "end time": 149.44,
        "split": split,
        "id": int(id_.removeprefix("video")),
    }
    return {**entry, **changes}


def sentences(*ids: str) -> list[dict]:
    return [
        {"caption": f"{id_} sentence {k}", "video_id": id_, "sen_id": 20 * n + k}
        for n, id_ in enumerate(ids)
        for k in range(3)
    ]


def write(path: Path, videos: list[dict], captions: list[dict]) -> None:
    path.write_text(json.dumps({"info": {"year": "2016"}, "videos": videos, "sentences": captions}))


@pytest.fixture
def root(tmp_path) -> Path:
    for name, ids, folder in [
        ("train_val_videodatainfo.json", ["video0", "video6513"], "TrainValVideo"),
        ("test_videodatainfo.json", ["video7010", "video7011"], "TestVideo"),
    ]:
        write(tmp_path / name, [video(id_, SPLITS[id_]) for id_ in ids], sentences(*ids))
        (tmp_path / folder).mkdir()
        for id_ in ids:
            (tmp_path / folder / f"{id_}.mp4").write_bytes(id_.encode())
    return tmp_path


def split_of(table) -> dict[str, str]:
    return {
        path.split("/")[-1].removesuffix(".mp4"): split
        for path, split in zip(table["path"], table["split"], strict=True)
    }


def test_every_sentence_is_a_row_of_its_whole_clip(root):
    table = MSRVTTSource(root).captions()
    assert len(table) == 12
    assert table["path"].tolist()[::3] == [
        "TrainValVideo/video0.mp4",
        "TrainValVideo/video6513.mp4",
        "TestVideo/video7010.mp4",
        "TestVideo/video7011.mp4",
    ]
    assert table["caption"][1] == "video0 sentence 1"
    assert set(table["path_problem"]) == {""}
    assert table[["start", "end"]].isna().all(axis=None)  # the files are cut already
    assert table[["original_start", "original_end"]].iloc[0].tolist() == [137.72, 149.44]
    with MSRVTTSource(root).local_file(table["path"][0]) as path:
        assert path.read_bytes() == b"video0"


@pytest.mark.parametrize(("validate", "expected"), [("train", "train"), ("test", "test"), ("drop", None)])
def test_validation_clips_go_where_they_are_sent(root, validate, expected):
    splits = split_of(MSRVTTSource(root, validate_split=validate).captions())
    assert splits.pop("video6513", None) == expected
    assert splits == {"video0": "train", "video7010": "test", "video7011": "test"}


def test_validation_clips_that_are_left_out_are_counted(root, caplog):
    MSRVTTSource(root).captions()
    assert not caplog.records
    MSRVTTSource(root, validate_split="drop").captions()
    assert "1 validation clips below" in caplog.text


def test_whole_original_videos_are_cut_at_the_annotated_times(root):
    table = MSRVTTSource(root, originals=True).captions()
    assert set(table["start"]) == {137.72}
    assert set(table["end"]) == {149.44}


def test_one_sentence_a_clip_is_the_first_or_a_drawn_one(root):
    first = MSRVTTSource(root, sentences="first").captions()["caption"].tolist()
    assert first == [f"{id_} sentence 0" for id_ in SPLITS]
    draws = {
        tuple(MSRVTTSource(root, sentences="random", seed=seed).captions()["caption"]) for seed in range(20)
    }
    assert len(draws) > 5  # of 81 possible ones; fewer has a chance below 1e-15
    again = MSRVTTSource(root, sentences="random", seed=3).captions()["caption"]
    assert tuple(again) == tuple(MSRVTTSource(root, sentences="random", seed=3).captions()["caption"])


def test_a_list_of_ids_makes_other_splits(root):
    (root / "val_list_jsfusion.txt").write_text("video7010\n")
    table = MSRVTTSource(root, test_list="val_list_jsfusion.txt", validate_split="drop").captions()
    assert split_of(table) == {
        "video0": "train",
        "video6513": "train",
        "video7010": "test",
        "video7011": "train",
    }


def test_the_table_of_1k_a_brings_its_sentence(root):
    (root / "MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\nret0,msr7010,video7010,a woman creating a fondant baby and flower\n"
    )
    table = MSRVTTSource(root, test_list="MSRVTT_JSFUSION_test.csv").captions()
    assert table["caption"][table["split"] == "test"].tolist() == [
        "a woman creating a fondant baby and flower"
    ]


def test_an_absent_file_is_said_and_all_folders_are_searched(root):
    (root / "TestVideo" / "video7011.mp4").unlink()
    (root / "TestVideo" / "video0.mp4").write_bytes(b"elsewhere")
    (root / "TrainValVideo" / "video0.mp4").unlink()
    table = MSRVTTSource(root, sentences="first").captions().set_index("path")
    assert table["path_problem"].to_dict() == {
        "TestVideo/video0.mp4": "",
        "TrainValVideo/video6513.mp4": "",
        "TestVideo/video7010.mp4": "",
        "TrainValVideo/video7011.mp4": "does not exist",
    }


def test_a_clip_without_sentences_keeps_a_row_to_be_judged(root):
    write(root / "test_videodatainfo.json", [video("video7010", "test")], [])
    table = MSRVTTSource(root).captions()
    assert table["caption"].tolist()[6:] == [None]


BAD = {
    "not JSON": ("{", r"train_val_videodatainfo\.json cannot be read as JSON"),
    "other layout": ('{"images": [], "annotations": []}', r'lacks the lists "videos" and "sentences"'),
    "no id": (json.dumps({"videos": [{"split": "train"}], "sentences": []}), r"Video 1 of .* no text for 'video_id'"),
    "other split": (
        json.dumps({"videos": [video("video0", "public")], "sentences": []}),
        r"Video 1 of .* names the split 'public'",
    ),
    "time in words": (
        json.dumps({"videos": [video("video0", "train", **{"start time": "2:17"})], "sentences": []}),
        r"Video 1 of .*, start time, is '2:17', not a number of seconds",
    ),
    "unknown video": (
        json.dumps({"videos": [], "sentences": [{"caption": "x", "video_id": "video9"}]}),
        r"Sentence 1 of .* is of no video",
    ),
    "list for a caption": (
        json.dumps({"videos": [video("video0", "train")], "sentences": [{"caption": [1], "video_id": "video0"}]}),
        r"Sentence 1 of .*, caption, holds \[1\]",
    ),
    "twice": (json.dumps({"videos": [video("video0", "train")] * 2, "sentences": []}), "repeats the video_id 'video0'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_annotations_that_cannot_be_used_say_where(root, case):
    text, message = BAD[case]
    (root / "train_val_videodatainfo.json").write_text(text)
    with pytest.raises(UserError, match=message):
        MSRVTTSource(root).captions()


def test_a_test_list_of_unknown_clips_is_refused(root):
    (root / "list.txt").write_text("video7010\nvideo1\n")
    with pytest.raises(UserError, match=r"list\.txt names 'video1', which the annotations do not list"):
        MSRVTTSource(root, test_list="list.txt").captions()
