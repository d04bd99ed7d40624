"""Frames are found by time, shown upright, and every unreadable file says why."""

from __future__ import annotations

import os
import pickle
import re
import resource
import struct
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import video_files as vf
from PIL import Image

from pyoco_pipeline.data.media import unusable
from pyoco_pipeline.data.pictures import Scaler
from pyoco_pipeline.data.video import VideoError, _timed_frames, decode_frames, probe


def test_the_frame_shown_at_a_time_is_the_last_one_not_after_it(tmp_path):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    assert vf.indices(decode_frames(path, [0.0, 0.124, 0.125, 0.2, 1.0, 1.99], 48, 64)) == [0, 0, 1, 1, 8, 15]


def test_variable_frame_rate_is_sampled_by_time_not_by_count(tmp_path):
    path = vf.write_video(tmp_path / "v.mp4", 5, timestamps_ms=[0, 100, 150, 1000, 1040])
    assert vf.indices(decode_frames(path, [0.0, 0.12, 0.15, 0.9, 1.0, 1.05], 48, 64)) == [0, 1, 2, 2, 3, 4]


def test_timestamps_that_a_container_rounds_still_count_as_on_time(tmp_path):
    path = vf.write_video(tmp_path / "v.mkv", 9, timestamps_ms=[0, 33, 67, 100, 133, 167, 200, 233, 267])
    times = [k / 30 for k in range(9)]
    assert vf.indices(decode_frames(path, times, 48, 64)) == list(range(9))


def test_a_frame_can_be_asked_for_more_than_once(tmp_path):
    path = vf.write_video(tmp_path / "v.mp4", 4)
    assert vf.indices(decode_frames(path, [0.3] * 5, 48, 64)) == [2] * 5


def test_no_times_give_no_frames(tmp_path):
    assert decode_frames(vf.write_video(tmp_path / "v.mp4", 2), [], 8, 9).shape == (0, 8, 9, 3)


@pytest.mark.parametrize("times", [[1.0, 0.0], [-0.1], [float("nan")]])
def test_times_must_ascend_from_zero(tmp_path, times):
    with pytest.raises(ValueError, match="ascending"):
        decode_frames(tmp_path / "v.mp4", times, 8, 8)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts"])
def test_seeking_finds_the_same_frames_as_decoding_from_the_start(tmp_path, name):
    def picture(k: int, height: int, width: int) -> np.ndarray:
        left, right = (vf.grey_picture(digit, height, width // 2) for digit in divmod(k, 16))
        return np.concatenate([left, right], axis=1)

    b_frames = 0 if name == "v.avi" else 3
    path = vf.write_video(tmp_path / name, 100, keyframe_interval=20, b_frames=b_frames, picture=picture)
    for start in (20, 39, 40, 41, 57, 83):
        clip = decode_frames(path, [(start + k + 0.5) / vf.FPS for k in range(3)], 48, 64)
        found = [
            16 * high + low
            for high, low in zip(vf.indices(clip[:, :, :30]), vf.indices(clip[:, :, 34:]), strict=True)
        ]
        assert found == [start, start + 1, start + 2]


def test_a_long_video_is_not_decoded_from_its_start(tmp_path, monkeypatch):
    import pyoco_pipeline.data.video as module

    path = vf.write_video(
        tmp_path / "v.mp4", 160, keyframe_interval=10, picture=lambda k, h, w: vf.grey_picture(k % 16, h, w)
    )
    decoded = []
    timed_frames = module._timed_frames

    def counting(*args):
        for item in timed_frames(*args):
            decoded.append(item)
            yield item

    monkeypatch.setattr(module, "_timed_frames", counting)
    decode_frames(path, [18.05], 16, 16)
    assert len(decoded) < 30


def test_a_sound_track_that_is_longer_than_the_video_does_not_lengthen_it(tmp_path):
    for name in ("v.mp4", "v.mkv"):
        assert probe(vf.write_video(tmp_path / name, 16, with_audio=True)).duration_s == pytest.approx(
            2.0, abs=0.02
        )


# The display matrix x' = a x + c y, y' = b x + d y, and the pixel that must come to the top left.
ORIENTATIONS = {
    "upright": ((1, 0, 0, 1), 0, (0, 0)),
    "quarter turn clockwise": ((0, 1, -1, 0), 90, (-1, 0)),
    "half turn": ((-1, 0, 0, -1), 180, (-1, -1)),
    "quarter turn anticlockwise": ((0, -1, 1, 0), 270, (0, -1)),
    "mirrored": ((-1, 0, 0, 1), 0, (0, -1)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_rotation_metadata_is_applied(tmp_path, name):
    matrix, degrees, corner = ORIENTATIONS[name]

    def four_corners(k: int, height: int, width: int) -> np.ndarray:
        picture = np.zeros((height, width, 3), np.uint8)
        picture[: height // 2, : width // 2] = 40
        picture[: height // 2, width // 2 :] = 90
        picture[height // 2 :, : width // 2] = 140
        picture[height // 2 :, width // 2 :] = 200
        return picture

    path = vf.set_display_matrix(vf.write_video(tmp_path / "v.mp4", 2, picture=four_corners), *matrix)
    info = probe(path)
    assert info.rotation == degrees
    assert (info.width, info.height) == ((48, 64) if degrees in (90, 270) else (64, 48))
    shown = decode_frames(path, [0.0], info.height, info.width)[0]
    stored = four_corners(0, 48, 64)
    assert abs(int(shown[4, 4, 0]) - int(stored[corner][0])) <= 3
    if degrees == 90:
        assert np.abs(shown.astype(int) - np.rot90(stored, k=-1)).mean() < 4


@pytest.mark.parametrize(("height", "width"), [(47, 63), (1, 3), (48, 17)])
def test_odd_sizes_decode(tmp_path, height, width):
    path = vf.write_video(tmp_path / "v.mkv", 3, height=height, width=width, codec="ffv1", pix_fmt="yuv444p")
    assert vf.indices(decode_frames(path, [0.0, 0.13, 0.26], 21, 33)) == [0, 1, 2]


def test_the_centre_is_kept_when_the_aspect_ratio_changes(tmp_path):
    def ramp(k: int, height: int, width: int) -> np.ndarray:
        return np.broadcast_to(np.linspace(30, 220, width)[None, :, None], (height, width, 3)).astype(
            np.uint8
        )

    wide = vf.write_video(tmp_path / "v.mp4", 1, height=32, width=128, picture=ramp)
    row = decode_frames(wide, [0.0], 16, 16)[0, 8, :, 0].astype(float)
    expected = ramp(0, 1, 128)[0, 48:80, 0].reshape(16, 2).mean(1)
    assert np.abs(row - expected).max() < 4


def test_shrinking_averages_the_pixels_it_covers(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 128, 1), dtype=np.uint8).repeat(3, axis=2)
    path = vf.write_video(tmp_path / "v.mkv", 1, height=96, width=128, codec="ffv1", pix_fmt="yuv444p",
                          picture=lambda k, h, w: noise)  # fmt: skip
    shown = decode_frames(path, [0.0], 12, 16)[0]
    boxed = np.asarray(Image.fromarray(noise).resize((16, 12), Image.Resampling.BOX))
    assert np.abs(shown.astype(int) - boxed).mean() < 2


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("v.mkv", "ffv1", "gray"), ("v.mp4", "libx264", "yuv420p10le"), ("v.mkv", "libvpx-vp9", "yuv420p"),
     ("v.webm", "libvpx-vp9", "yuva420p"), ("v.avi", "mjpeg", "yuvj420p"), ("v.mov", "qtrle", "rgb24")],
)  # fmt: skip
def test_other_pixel_formats_become_8_bit_rgb(tmp_path, name, codec, pix_fmt):
    path = vf.write_video(tmp_path / name, 6, codec=codec, pix_fmt=pix_fmt)
    clip = decode_frames(path, [0.0, 0.3, 0.6], 24, 32)
    assert clip.dtype == np.uint8
    assert vf.indices(clip) == [0, 2, 4]


@pytest.mark.parametrize(("codec", "pix_fmt"), [("qtrle", "argb"), ("png", "rgba")])
def test_alpha_is_composited_onto_black(tmp_path, codec, pix_fmt):
    def half_clear(k: int, height: int, width: int) -> np.ndarray:
        picture = np.full((height, width, 4), 200, np.uint8)
        picture[..., 3] = 255
        picture[:, width // 2 :, 3] = 0
        return picture

    path = vf.write_video(
        tmp_path / "v.mov", 2, codec=codec, pix_fmt=pix_fmt, picture=half_clear, picture_format="rgba"
    )
    shown = decode_frames(path, [0.0], 24, 32)[0]
    assert shown[:, :14].min() > 195
    assert shown[:, 18:].max() < 5


def test_all_four_real_videos_decode():
    paths = vf.real_videos()
    assert [path.name for path in paths] == [
        "bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4",
    ]  # fmt: skip
    for path in paths:
        info = probe(path)
        assert (info.fps, info.duration_s) == (pytest.approx(25, abs=5), pytest.approx(7, abs=3.1))
        clip = decode_frames(path, np.arange(16) / 8 + 1.5, 64, 64)
        assert clip.shape == (16, 64, 64, 3)
        assert clip.std() > 20


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def empty_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def renamed_text(path: Path) -> Path:
    path.write_text("This is a list of things to buy.\n" * 40)
    return path


def playlist(path: Path) -> Path:
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.mp4\n#EXT-X-ENDLIST\n")
    return path


BROKEN = {
    "empty": (empty_file, "v.mp4", "^is empty$"),
    "text": (renamed_text, "v.mp4", "^is not a video: "),
    "text that a player would draw": (renamed_text, "v.txt", "^is not a video: "),
    "playlist": (playlist, "v.m3u8", "^is not a video: "),
    "sound": (vf.write_audio, "v.m4a", "^has no video stream$"),
    "no frames": (vf.write_without_frames, "v.mp4", "^holds no frames$"),
    "index missing": (lambda path: vf.cut(vf.write_video(path), 0.6), "v.mp4", "^is cut short: "),
    "data missing": (
        lambda path: vf.cut(vf.write_video(path, faststart=True), 0.6),
        "v.mp4",
        "^is cut short: ",
    ),
    "data missing in matroska": (
        lambda path: vf.cut(vf.write_video(path), 0.5),
        "v.mkv",
        "cut short|ends at",
    ),
    "missing": (lambda path: path, "v.mp4", "^does not exist$"),
    "folder": (lambda path: path.mkdir() or path, "v.mp4", "^is not a regular file$"),
    "pipe": (lambda path: os.mkfifo(path) or path, "v.mp4", "^is not a regular file$"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_unreadable_file_says_why(tmp_path, case):
    make, name, reason = BROKEN[case]
    path = make(tmp_path / name)
    with pytest.raises(VideoError) as caught:
        decode_frames(path, [0.0, 1.9], 16, 16)
    assert caught.value.path == str(path)
    assert re.search(reason, caught.value.reason), caught.value.reason


def test_a_video_that_ends_too_early_says_what_it_has_and_what_is_needed(tmp_path):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    for times in ([0.0, 2.5], [2.5], [60.0]):
        with pytest.raises(VideoError, match=rf"ends at 2\.00 s, but the clip needs {times[-1]:.2f} s"):
            decode_frames(path, times, 16, 16)


def test_a_cut_file_is_reported_as_such_unless_nothing_that_is_shown_is_missing(tmp_path):
    for faststart in (False, True):
        for share in np.linspace(0.02, 0.98, 13):
            path = vf.cut(vf.write_video(tmp_path / "v.mp4", faststart=faststart), float(share))
            if not faststart and share > 0.95:  # only tags are missing
                assert vf.indices(decode_frames(path, [0.0, 1.9], 16, 16)) == [0, 15]
            else:
                with pytest.raises(VideoError, match="is cut short: "):
                    decode_frames(path, [0.0, 1.9], 16, 16)


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    data = vf.write_video(tmp_path / "whole.mp4").read_bytes()
    for _ in range(40):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 30):
            damaged[position] = rng.integers(256)
        path = tmp_path / "v.mp4"
        path.write_bytes(damaged)
        try:
            assert decode_frames(path, [0.0, 1.0], 16, 16).shape == (2, 16, 16, 3)
            probe(path)
        except VideoError:
            pass


def test_a_file_of_millions_of_boxes_is_not_walked_to_its_end(tmp_path):
    path = tmp_path / "v.mp4"
    kind = struct.pack(">I4s16s", 24, b"ftyp", b"isom\0\0\2\0isommp42")
    path.write_bytes(kind + struct.pack(">I4s", 8, b"free") * 3_000_000)
    start = time.process_time()
    assert "cut short" in unusable(path, "has no video stream").reason
    assert time.process_time() - start < 0.3


def test_a_file_that_needs_too_much_memory_says_so(tmp_path, monkeypatch):
    def covering(*_: object) -> None:
        raise MemoryError

    path = vf.write_video(tmp_path / "v.mp4")
    monkeypatch.setattr(Scaler, "covering", covering)
    with pytest.raises(VideoError, match="needs more memory than there is"):
        decode_frames(path, [0.0], 16, 16)


def test_where_data_breaks_off_is_never_before_the_start(tmp_path, monkeypatch):
    class Packet:
        is_corrupt, pts, time_base = True, -30, Fraction(1, 90)

    with vf.av.open(str(vf.write_video(tmp_path / "v.mp4"))) as container:
        stream = container.streams.video[0]
        demuxed = SimpleNamespace(demux=lambda _: [Packet()])
        with pytest.raises(VideoError, match=r"breaks off at 0\.00 s"):
            next(_timed_frames("v.mp4", demuxed, stream))


def test_the_error_survives_a_trip_between_processes():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "is empty")))  # noqa: S301
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is empty", "a.mp4 is empty")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_files_are_closed_and_memory_is_given_back(tmp_path):
    good = vf.write_video(tmp_path / "good.mp4", 4)
    short = vf.cut(vf.write_video(tmp_path / "short.mp4", 4, faststart=True), 0.7)

    def decode_often(times: int) -> None:
        for _ in range(times):
            decode_frames(good, [0.1], 16, 16)
            with pytest.raises(VideoError):
                decode_frames(short, [0.4], 16, 16)

    decode_often(20)
    open_files, peak = num_open_files(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decode_often(200)
    assert num_open_files() == open_files
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50 * 1024  # KiB
