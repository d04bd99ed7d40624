"""An open video is read in several passes, and a part of its picture can be chosen."""

from __future__ import annotations

import numpy as np
import pytest
import video_files as vf
from test_video import ORIENTATIONS

from pyoco_pipeline.data.pictures import cropped
from pyoco_pipeline.data.video import Video, VideoError, decode_frames, probe


def test_a_stream_without_timestamps_is_read_at_its_nominal_rate(tmp_path):
    path = vf.write_video(tmp_path / "v.h264", 16)
    assert probe(path).duration_s == pytest.approx(16 / probe(path).fps)
    assert vf.indices(decode_frames(path, [k / probe(path).fps for k in (0, 3, 15)], 48, 64)) == [0, 3, 15]


@pytest.mark.parametrize("name", ["v.mp4", "v.h264", "v.ts", "v.gif"])
def test_an_open_video_can_be_read_more_than_once(tmp_path, name):
    codec, pix_fmt = ("gif", "rgb8") if name == "v.gif" else ("libx264", "yuv420p")
    path = vf.write_video(tmp_path / name, 16, codec=codec, pix_fmt=pix_fmt, keyframe_interval=4)
    with Video(path) as video:
        times = [at for at, _ in video.frames()]
        assert len(times) == 16
        assert video.info.duration_s == pytest.approx(times[-1] + times[1], abs=0.3)
        for start in (0, 7, 12, 3):
            assert video.sample([times[start]], 48, 64)[0] == pytest.approx(
                decode_frames(path, [times[start]], 48, 64)[0]
            )
            passed = [at for at, _ in video.frames(times[start])]
            assert passed[0] <= times[start]
            assert passed == times[-len(passed) :]


def test_a_part_of_the_picture_can_be_chosen(tmp_path):
    def ramp(k: int, height: int, width: int) -> np.ndarray:
        return np.broadcast_to(np.linspace(30, 220, width)[None, :, None], (height, width, 3)).astype(
            np.uint8
        )

    path = vf.write_video(tmp_path / "v.mp4", 2, height=32, width=128, picture=ramp)
    with Video(path) as video:
        whole = video.covering(video.first(), 32, 32)
    parts = [cropped(whole, 32, 32, crop) for crop in ((0.0, 0.0), None, (0.5, 0.999))]
    for part, left in zip(parts, (0, 48, 96), strict=True):
        assert part[16, :, 0].astype(float) == pytest.approx(
            ramp(0, 1, 128)[0, left : left + 32, 0].astype(float), abs=4
        )


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_part_lies_where_it_is_shown(tmp_path, name):
    def noise(k: int, height: int, width: int) -> np.ndarray:
        coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 1), dtype=np.uint8)
        return coarse.repeat(8, axis=0).repeat(8, axis=1).repeat(3, axis=2)

    matrix, _, _ = ORIENTATIONS[name]
    path = vf.set_display_matrix(vf.write_video(tmp_path / "v.mp4", 1, picture=noise), *matrix)
    with Video(path) as video:
        height, width = video.info.height, video.info.width
        whole = video.sample([0.0], height, width)[0].astype(int)
        side = min(height, width)
        covering = video.covering(video.first(), side, side)
    last = cropped(covering, side, side, (0.999, 0.999))
    assert np.abs(last - whole[height - side :, width - side :]).mean() < 1
    first = cropped(covering, side, side, (0.0, 0.0))
    assert np.abs(first - whole[:side, :side]).mean() < 1


def test_pixels_that_are_not_square_are_in_the_aspect_ratio(tmp_path):
    path = vf.write_video(tmp_path / "v.mkv", 2)
    assert probe(path).aspect_ratio == pytest.approx(64 / 48)
    phone = vf.set_display_matrix(
        vf.write_video(tmp_path / "p.mp4", 2), *ORIENTATIONS["quarter turn clockwise"][0]
    )
    assert probe(phone).aspect_ratio == pytest.approx(48 / 64)
    carphone = probe(vf.real_videos()[2])  # 176 × 144 pixels of 128:117
    assert carphone.aspect_ratio == pytest.approx(176 / 144 * 128 / 117)


def test_a_picture_far_from_the_clip_s_shape_is_refused_not_blown_up(tmp_path):
    path = vf.write_video(tmp_path / "v.mkv", 2, height=2, width=600, codec="ffv1", pix_fmt="yuv444p")
    with pytest.raises(VideoError, match="too long or too flat"):
        decode_frames(path, [0.0], 512, 512)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts"])
def test_a_frame_is_not_shown_before_its_time(tmp_path, name):
    path = vf.write_video(tmp_path / name, 16)
    for k in (0, 1, 5, 12):
        times = [k / vf.FPS, (k + 0.5) / vf.FPS, (k + 0.98) / vf.FPS, (k + 1) / vf.FPS]
        assert vf.indices(decode_frames(path, times, 48, 64)) == [k, k, k, k + 1]


def test_a_picture_that_would_take_gigabytes_is_refused(tmp_path):
    path = vf.write_video(
        tmp_path / "v.mkv", 1, height=8000, width=9000, codec="ffv1", pix_fmt="gray",
        picture=lambda k, h, w: np.zeros((h, w), np.uint8), picture_format="gray",
    )  # fmt: skip
    with pytest.raises(VideoError, match=r"is too large: 9000 × 8000 pixels"):
        probe(path)
