"""Clips cut from the rows of a folder of captioned videos."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
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
