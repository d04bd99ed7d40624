"""A folder of videos of another system, or of real ones, as clips to score: which frames, and what is left out."""

import logging
import os
import shutil

import pytest
from tiny_extractors import given, noise_store, use_tiny_extractors
from video_files import cut, indices, write_video

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.clips_to_score import (
    ClipChoice,
    caption_of_name,
    cut_folder,
    is_clips_folder,
    kept_clips,
)
from pyoco_pipeline.evaluation.evaluate import EvaluateSettings, evaluate_folders

FRAMES = 4


@pytest.fixture
def tiny(monkeypatch):
    return use_tiny_extractors(monkeypatch)


def write_folder(folder, num, *, frames=8, **options):
    folder.mkdir(parents=True)
    for i in range(num):
        write_video(folder / f"a_grey_wall-{i:04d}.mp4", frames, **{"height": 16, "width": 24, **options})
    return folder


def clips(folder, into, **choice):
    store, excluded = cut_folder(folder, ClipChoice(**{"num_frames": FRAMES, **choice}), into)
    return list(store.clips()), store, excluded.files


def test_of_a_generated_video_the_first_frames_are_taken_as_they_are(tmp_path):
    items, store, excluded = clips(write_folder(tmp_path / "videos", 3), tmp_path / "clips")
    assert [indices(item.clip.video) for item in items] == [[0, 1, 2, 3]] * 3
    assert (store.shape, store.manifest.fps) == ((FRAMES, 16, 24), 8.0)
    assert [item.clip.attributes["path"] for item in items] == [f"a_grey_wall-{i:04d}.mp4" for i in range(3)]
    assert excluded == {}


def test_of_a_real_video_consecutive_frames_from_a_random_offset_on_are_taken(tmp_path):
    folder = write_folder(tmp_path / "videos", 12, frames=16)
    items, *_ = clips(folder, tmp_path / "a", random_offset=True)
    starts = [indices(item.clip.video)[0] for item in items]
    assert all(
        indices(item.clip.video) == list(range(s, s + FRAMES)) for item, s in zip(items, starts, strict=True)
    )
    assert len(set(starts)) > 4
    assert max(starts) <= 12
    again, other = (
        [
            indices(item.clip.video)[0]
            for item in clips(folder, tmp_path / f"b{s}", random_offset=True, seed=s)[0]
        ]
        for s in (0, 1)
    )
    assert again == starts != other


def test_frames_are_consecutive_whatever_their_timestamps(tmp_path):
    folder = write_folder(tmp_path / "videos", 6, timestamps_ms=[0, 10, 500, 520, 900, 1000, 1300, 1310])
    items, *_ = clips(folder, tmp_path / "clips", random_offset=True)
    starts = [indices(item.clip.video)[0] for item in items]
    assert all(
        indices(item.clip.video) == list(range(s, s + FRAMES)) for item, s in zip(items, starts, strict=True)
    )
    assert len(set(starts)) > 1


def test_every_offset_can_be_drawn_also_the_last(tmp_path):
    folder = write_folder(tmp_path / "videos", 1, frames=FRAMES + 1, b_frames=2)
    seen = {
        indices(clips(folder, tmp_path / str(seed), random_offset=True, seed=seed)[0][0].clip.video)[0]
        for seed in range(8)
    }
    assert seen == {0, 1}


def test_real_videos_are_brought_to_the_size_of_the_generated_ones(tmp_path):
    folder = write_folder(tmp_path / "videos", 2, height=32, width=32)
    write_video(folder / "wide.mp4", 8, height=16, width=48)
    items, _, excluded = clips(folder, tmp_path / "clips", size=(12, 20))
    assert [item.clip.video.shape for item in items] == [(FRAMES, 12, 20, 3)] * 3
    assert excluded == {}


def test_one_corrupt_video_among_many_is_left_out_and_named(tmp_path, caplog):
    folder = write_folder(tmp_path / "videos", 4)
    cut(folder / "a_grey_wall-0001.mp4", 0.5)
    (folder / "a_grey_wall-0002.mp4").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        items, _, excluded = clips(folder, tmp_path / "clips")
    assert len(items) == 2
    assert set(excluded) == {"a_grey_wall-0001.mp4", "a_grey_wall-0002.mp4"}
    assert excluded["a_grey_wall-0002.mp4"] == "is empty"
    assert "a_grey_wall-0001.mp4 is left out: it is cut short" in caplog.text


def test_a_video_whose_frames_are_damaged_in_the_middle_is_left_out_or_cut_before(tmp_path):
    folder = write_folder(tmp_path / "videos", 2)
    path = folder / "a_grey_wall-0000.mp4"
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + 4
    content[at : at + 400] = bytes(400)
    path.write_bytes(content)
    items, _, excluded = clips(folder, tmp_path / "clips")
    assert [item.clip.attributes["path"] for item in items] == ["a_grey_wall-0001.mp4"]
    assert set(excluded) == {"a_grey_wall-0000.mp4"}


def test_videos_that_are_too_short_are_discarded_and_counted(tmp_path):
    folder = write_folder(tmp_path / "videos", 2)
    write_video(folder / "short.mp4", 3, height=16, width=24)
    items, _, excluded = clips(folder, tmp_path / "clips")
    assert len(items) == 2
    assert excluded == {"short.mp4": "is too short: 3 frames of 4"}


def test_generated_videos_of_another_size_than_most_are_left_out(tmp_path):
    folder = write_folder(tmp_path / "videos", 2)
    write_video(folder / "large.mp4", 8, height=32, width=48)
    _, _, excluded = clips(folder, tmp_path / "clips")
    assert excluded == {"large.mp4": "is 32x48, where most of the videos are 16x24"}


@pytest.mark.parametrize(
    "make", [lambda f: None, lambda f: f.mkdir(), lambda f: (f.mkdir(), (f / "a.txt").touch())]
)
def test_a_folder_without_videos_is_an_error(tmp_path, make):
    make(tmp_path / "videos")
    with pytest.raises(UserError, match=r"is missing|holds no videos"):
        clips(tmp_path / "videos", tmp_path / "clips")


def test_a_folder_of_which_no_video_can_be_used_is_an_error_that_says_why(tmp_path):
    folder = write_folder(tmp_path / "videos", 2, frames=3)
    with pytest.raises(UserError, match=r"None of the 2 videos .* a_grey_wall-0000.mp4, is too short"):
        clips(folder, tmp_path / "clips")


def test_captions_come_from_a_table_in_the_folder_or_from_the_names(tmp_path):
    folder = write_folder(tmp_path / "videos", 2)
    assert {item.caption for item in clips(folder, tmp_path / "a")[0]} == {"a grey wall"}
    assert {item.caption for item in clips(folder, tmp_path / "b", name_is_caption=False)[0]} == {""}
    (folder / "captions.csv").write_text("path,caption\na_grey_wall-0001.mp4,a white wall\n")
    items = clips(folder, tmp_path / "c")[0]
    assert [(item.clip.attributes["path"], item.caption) for item in items] == [
        ("a_grey_wall-0001.mp4", "a white wall")
    ]


def test_of_several_rows_of_a_real_video_one_is_drawn_and_segments_are_kept_to(tmp_path):
    folder = write_folder(tmp_path / "videos", 1, frames=16)
    rows = "".join(f"a_grey_wall-0000.mp4,number {i},1.0,1.5,test\n" for i in range(5))
    (folder / "captions.csv").write_text("path,caption,start,end,split\n" + rows)
    items, *_ = clips(folder, tmp_path / "clips", random_offset=True, split="test")
    assert len(items) == 1
    assert indices(items[0].clip.video) == [8, 9, 10, 11]
    with pytest.raises(UserError, match="holds no videos"):
        clips(folder, tmp_path / "other", split="train")


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a_red_ball-0003.mp4", "a red ball"),
        ("x/A dog.mp4", "A dog"),
        ("sample 12.avi", "sample"),
        ("7.mp4", "7"),
    ],
)
def test_the_caption_of_a_name_leaves_out_the_number(name, caption):
    assert caption_of_name(name) == caption


def test_clips_of_real_videos_are_cut_once_as_long_as_the_files_stay(tmp_path):
    folder = write_folder(tmp_path / "videos", 3)
    choice = ClipChoice(FRAMES, (8, 8), random_offset=True)
    first, _ = kept_clips(folder, choice, tmp_path / "kept")
    stamp = (tmp_path / "kept/manifest.json").stat().st_mtime_ns
    kept_clips(folder, choice, tmp_path / "kept")
    assert (tmp_path / "kept/manifest.json").stat().st_mtime_ns == stamp
    os.utime(folder / "a_grey_wall-0000.mp4", ns=(0, 0))
    second, _ = kept_clips(folder, choice, tmp_path / "kept")
    assert (tmp_path / "kept/manifest.json").stat().st_mtime_ns != stamp
    assert first.manifest.sha256 == second.manifest.sha256
    third, _ = kept_clips(folder, ClipChoice(FRAMES, (8, 8), random_offset=True, seed=3), tmp_path / "kept")
    assert third.manifest.sha256 != first.manifest.sha256


def test_no_more_real_videos_are_cut_than_are_needed_and_another_takes_a_broken_ones_place(tmp_path):
    folder = write_folder(tmp_path / "videos", 8)
    for i in range(4):
        (folder / f"a_grey_wall-{i:04d}.mp4").write_bytes(b"")
    items, *_ = clips(folder, tmp_path / "clips", limit=4)
    assert {item.clip.attributes["path"] for item in items} == {
        f"a_grey_wall-{i:04d}.mp4" for i in range(4, 8)
    }


# The whole way.


def settings(generated, reference, **changes):
    return EvaluateSettings.model_validate(
        {
            "generated": str(generated),
            "reference": None if reference is None else str(reference),
            "metrics": ["fvd_i3d_tats", "clipsim"],
            "extractors": given("i3d_tats", "clip_vitb32"),
            "num_frames": FRAMES,
            **changes,
        }
    )


def test_a_folder_of_another_system_is_scored_against_a_folder_of_real_videos(tmp_path, tiny):
    generated = write_folder(tmp_path / "generated", 4, frames=6)
    reference = write_folder(tmp_path / "reference", 12, frames=10, height=32, width=40)
    cut(reference / "a_grey_wall-0003.mp4", 0.5)
    cache = tmp_path / "cache"
    cache.mkdir()
    result = evaluate_folders("unused", "unused", settings(generated, reference), cache_folder=cache)
    entry = result["metrics"]["fvd_i3d_tats"]
    assert (entry["num_generated"], entry["num_held_out"], entry["num_reference"]) == (4, 4, 7)
    assert (entry["frames"], entry["height"], entry["width"], entry["fps"]) == (FRAMES, 16, 24, 8.0)
    assert list(result["excluded"]["reference"]["files"]) == ["a_grey_wall-0003.mp4"]
    assert result["excluded"]["generated"] == {"num": 0, "files": {}}
    # Names of real files are no captions.
    assert "real" not in result["metrics"]["clipsim"]
    assert not any(path.name.startswith(".cut-") for path in cache.iterdir())
    read = tiny["i3d_tats"].clips_read
    assert evaluate_folders("unused", "unused", settings(generated, reference), cache_folder=cache) == result
    assert tiny["i3d_tats"].clips_read == read + 4


def test_a_clips_folder_can_be_named_on_either_side(tmp_path, tiny):
    generated = write_folder(tmp_path / "generated", 3, frames=6)
    store = noise_store(tmp_path / "real", 9, frames=FRAMES, size=16, fps=8.0)
    square = tmp_path / "square"
    shutil.copytree(generated, square)
    for path in square.iterdir():
        write_video(path, 6, height=16, width=16)
    assert is_clips_folder(store.folder)
    assert not is_clips_folder(square)
    result = evaluate_folders("unused", store.folder, settings(square, None))
    assert result["reference_sha256"] == store.manifest.sha256
    both = evaluate_folders("unused", "unused", settings(store.folder, store.folder))
    assert both["generated_sha256"] == both["reference_sha256"] == store.manifest.sha256
    with pytest.raises(UserError, match=r"has width 24, but .* has 16"):
        evaluate_folders("unused", store.folder, settings(generated, None))


def test_another_frame_rate_is_an_error_unless_the_rate_means_nothing(tmp_path, tiny):
    generated = write_folder(tmp_path / "generated", 3, frames=6, height=16, width=16)
    store = noise_store(tmp_path / "real", 9, frames=FRAMES, size=16, fps=25.0)
    with pytest.raises(UserError, match=r"has fps 8\.0, but .* has 25\.0.*set evaluate\.ignore_fps"):
        evaluate_folders("unused", store.folder, settings(generated, None))
    result = evaluate_folders("unused", store.folder, settings(generated, None, ignore_fps=True))
    assert "8 and 25 frames per second" in result["metrics"]["fvd_i3d_tats"]["warning"]


def test_a_folder_that_is_neither_is_an_error(tmp_path, tiny):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no videos to score"):
        evaluate_folders("unused", "unused", settings(tmp_path / "empty", None))
