"""Clips are cut from segments and scenes, at the rate, in the shape and from the part of the picture asked for."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import video_files as vf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scene_videos import write_scenes

from pyoco_pipeline.data.cutting import CutOptions, cut_image, cut_video, nearest_size
from pyoco_pipeline.data.filters import duplicates
from pyoco_pipeline.data.scenes import SceneOptions
from pyoco_pipeline.data.video import VideoError, decode_frames
from pyoco_pipeline.errors import UserError

SIZE = (16, 24)
needs_scenes = pytest.mark.skipif(
    find_spec("scenedetect") is None, reason="the extra [scenes] is not installed"
)


def options(**changes) -> CutOptions:
    return CutOptions(**{"num_frames": 4, "sizes": (SIZE,), "fps": 4, "max_clips_per_row": 10, **changes})


def segment(row_id: str = "r", start: float | None = math.nan, end: float | None = None) -> dict:
    return {"row_id": row_id, "path": "v.mp4", "start": start, "end": end, "caption": "x"}


def shown(clips) -> list[list[int]]:
    return [vf.indices(clip.video) for clip in clips]


def long_video(path: Path, frames: int = 160, **changes) -> Path:
    """Frame k is two greys, the digits of k to the base 16; see `numbers`."""

    def picture(k: int, height: int, width: int) -> np.ndarray:
        left, right = (vf.grey_picture(digit, height, width // 2) for digit in divmod(k, 16))
        return np.concatenate([left, right], axis=1)

    return vf.write_video(path, frames, picture=picture, **changes)


def numbers(clip) -> list[int]:
    width = clip.video.shape[2]
    left, right = clip.video[:, :, : width // 2 - 1], clip.video[:, :, width // 2 + 1 :]
    return [16 * high + low for high, low in zip(vf.indices(left), vf.indices(right), strict=True)]


def test_a_video_is_cut_into_consecutive_clips(tmp_path):
    clips = cut_video(
        vf.write_video(tmp_path / "v.mp4", 16), segment("000001-v.mp4"), options()
    )  # 2 s at 8 fps
    assert [clip.clip_id for clip in clips] == ["000001-v.mp4-000", "000001-v.mp4-001"]
    assert shown(clips) == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert [clip.attributes for clip in clips] == [
        {"path": "v.mp4", "start_s": "0.000"},
        {"path": "v.mp4", "start_s": "1.000"},
    ]
    assert [clip.fps for clip in clips] == [4, 4]
    assert (clips[0].video.shape, clips[0].video.dtype) == ((4, 16, 24, 3), np.uint8)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.5, 1.5, [[4, 6, 8, 10]]), (0.5, math.nan, [[4, 6, 8, 10]]), (math.nan, 1.4, [[0, 2, 4, 6]]),
     (1.0, 99.0, [[8, 10, 12, 14]]), (None, 1.0, [[0, 2, 4, 6]]), (-3.0, 1.0, [[0, 2, 4, 6]])],
)  # fmt: skip
def test_clips_stay_inside_their_segment(tmp_path, start, end, expected):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    assert shown(cut_video(path, segment(start=start, end=end), options())) == expected
    assert shown(cut_video(path, segment(start=start, end=end), options(stride=2))) == expected


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (1.5, math.nan), (5.0, 9.0), (1.0, 0.5)])
def test_a_segment_that_is_too_short_says_what_it_has_and_what_is_needed(tmp_path, start, end):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    with pytest.raises(VideoError, match=r"has 0\.\d0 s, but a clip of 4 frames at 4 fps needs 1\.00 s"):
        cut_video(path, segment(start=start, end=end), options())
    with pytest.raises(VideoError, match=r"has 0\.\d0 s, but a clip of 4 frames 2 apart needs more"):
        cut_video(path, segment(start=start, end=end), options(stride=2))


@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"octaves": 1}])
def test_no_more_clips_than_asked_for(tmp_path, changes):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    assert len(cut_video(path, segment(), options(max_clips_per_row=1, **changes))) == 1


@needs_scenes
@pytest.mark.parametrize("scenes", [None, SceneOptions(min_scene_s=0)])
@pytest.mark.parametrize("stride", [None, 1, 3])
@pytest.mark.parametrize("end", [None, 4.0, 6.3])
def test_clips_that_are_not_made_are_counted(tmp_path, scenes, stride, end):
    path = write_scenes(tmp_path / "v.mp4", 13, 22, 5, 2, 30)
    wanted = options(num_frames=3, scenes=scenes, stride=stride, max_clips_per_row=64)
    everything = cut_video(path, segment(end=end), wanted)
    assert "more_clips" not in everything[0].attributes
    for count in range(1, len(everything)):
        first, *others = cut_video(path, segment(end=end), replace(wanted, max_clips_per_row=count))
        assert len(others) == count - 1
        assert first.attributes["more_clips"] == f"{len(everything) - count}"
        assert all("more_clips" not in other.attributes for other in others)


def test_the_real_videos_give_clips():
    for path in vf.real_videos():
        clips = cut_video(path, segment(), options(fps=8, num_frames=16))
        assert len(clips) == {"bigbuckbunny.mp4": 2, "bikes.mp4": 5}.get(path.name, 2)


# Scenes


@needs_scenes
@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"octaves": 2}, {"fps": 8, "num_frames": 3}])
def test_a_clip_never_crosses_a_scene_cut(tmp_path, changes):
    lengths = (13, 22, 5, 2, 30)
    path = write_scenes(tmp_path / "v.mp4", *lengths)
    cuts = np.cumsum(lengths)[:-1] / vf.FPS
    clips = cut_video(path, segment(), options(scenes=SceneOptions(min_scene_s=0), **changes))
    assert len(clips) > 3
    for clip in clips:
        corner = (
            clip.video[:, 12:, 22:].reshape(len(clip.video), -1).astype(int)
        )  # the square does not come here
        assert np.abs(corner - corner[:1]).max() < 12
        first = float(clip.attributes["start_s"])
        last = first + (len(clip.video) - 1) / clip.fps
        assert not ((first < cuts) & (cuts <= last)).any()


@needs_scenes
def test_each_scene_begins_a_clip_and_short_ones_are_counted(tmp_path):
    path = write_scenes(tmp_path / "v.mp4", 13, 22, 5, 20)
    clips = cut_video(path, segment(), options(scenes=SceneOptions()))
    assert [clip.attributes["start_s"] for clip in clips] == ["0.000", "1.625", "2.625", "5.000", "6.000"]
    assert [clip.attributes["scene"] for clip in clips] == ["1", "2", "2", "4", "4"]
    assert {(clip.attributes["scenes"], clip.attributes["scenes_skipped"]) for clip in clips} == {("4", "1")}


@needs_scenes
def test_scenes_after_the_last_clip_are_not_called_too_short(tmp_path):
    path = write_scenes(tmp_path / "v.mp4", 13, 22, 5, 20)
    clips = cut_video(path, segment(), options(scenes=SceneOptions(), max_clips_per_row=2))
    assert [clip.attributes["scenes_skipped"] for clip in clips] == ["0", "0"]


@needs_scenes
@pytest.mark.parametrize("stride", [None, 2])
def test_a_video_with_no_scene_that_is_long_enough_says_so(tmp_path, stride):
    path = write_scenes(tmp_path / "v.mp4", 5, 6, 5)
    with pytest.raises(VideoError, match=r"has no scene that is long enough: the longest of 3 has 0\.75 s"):
        cut_video(path, segment(), options(scenes=SceneOptions(), stride=stride))
    with pytest.raises(VideoError, match=r"has no scene of 5 s or more"):
        cut_video(path, segment(), options(scenes=SceneOptions(min_scene_s=5), stride=stride))


# Frame rates


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), octaves=st.integers(0, 3), frames=st.integers(1, 6), end=st.floats(1, 20))
def test_rates_fall_by_octaves_and_clips_follow_one_another(tmp_path, seed, octaves, frames, end):
    path = tmp_path / "v.mp4"
    if not path.exists():
        long_video(path)
    wanted = options(num_frames=frames, octaves=octaves, seed=seed, max_clips_per_row=64)
    try:
        clips = cut_video(path, segment(end=end), wanted)
    except VideoError:
        assert end < (frames - 0.5) / 4
        return
    at = 0.0
    for clip in clips:
        assert 4 / clip.fps in {2**k for k in range(octaves + 1)}
        assert numbers(clip) == [int((at + k / clip.fps) * vf.FPS + 1e-6) for k in range(frames)]
        at += frames / clip.fps
        assert at - 0.5 / clip.fps <= end
    if len(clips) < 64:
        assert end < at + (frames - 0.5) / 4  # there was no room for another one, even at the full rate


def test_every_rate_is_drawn_as_often_as_another(tmp_path):
    path = long_video(tmp_path / "v.mp4", 80)
    rates = Counter(
        cut_video(path, segment(), options(num_frames=2, octaves=2, max_clips_per_row=1, seed=seed))[0].fps
        for seed in range(150)
    )
    assert set(rates) == {4, 2, 1}
    chi_square = sum((count - 50) ** 2 / 50 for count in rates.values())
    assert chi_square < 18.4  # two degrees of freedom, one failure in 10,000


def test_where_a_rate_does_not_fit_the_next_higher_one_is_taken(tmp_path):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    for seed in range(20):
        clips = cut_video(path, segment(), options(octaves=6, seed=seed))
        assert [clip.fps for clip in clips] in ([2], [4, 4])  # 2 s hold four frames at 2 fps, none at 1 fps


def test_a_stride_takes_every_nth_frame_whatever_their_times(tmp_path):
    times = [0, 100, 150, 1000, 1040, 1080, 1500, 1510, 1900, 2000, 2500, 2600]
    path = vf.write_video(tmp_path / "v.mkv", 12, timestamps_ms=times)
    clips = cut_video(path, segment(), options(num_frames=3, stride=2))
    assert shown(clips) == [[0, 2, 4], [6, 8, 10]]
    assert [clip.fps for clip in clips] == [pytest.approx(2 / 1.04), pytest.approx(2 / 1.0)]
    assert [clip.attributes["start_s"] for clip in clips] == ["0.000", "1.500"]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts"])
def test_the_rate_of_a_stride_is_the_file_s_over_the_stride(tmp_path, name):
    path = long_video(tmp_path / name, 64, keyframe_interval=16)
    for stride in (1, 3, 4):
        clips = cut_video(path, segment(start=2.0), options(stride=stride, max_clips_per_row=3))
        assert [clip.fps for clip in clips] == [pytest.approx(8 / stride)] * 3
        for k, clip in enumerate(clips):
            assert numbers(clip) == [16 + stride * (4 * k + j) for j in range(4)]


def test_a_stride_does_not_pass_over_what_is_missing(tmp_path):
    path = long_video(tmp_path / "v.mkv", 64)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match=r"is cut short"):
        cut_video(path, segment(), options(stride=2))


# Shapes and crops


@pytest.mark.parametrize(
    ("aspect_ratio", "expected"),
    [
        (1.0, (64, 64)),
        (4 / 3, (64, 96)),
        (16 / 9, (64, 96)),
        (9 / 16, (96, 64)),
        (0.1, (96, 64)),
        (1.2, (64, 64)),
    ],
)
def test_a_picture_goes_to_the_nearest_aspect_ratio(aspect_ratio, expected):
    assert nearest_size(aspect_ratio, ((64, 64), (64, 96), (96, 64))) == expected


def test_the_first_of_two_equally_near_sizes_is_taken():
    assert nearest_size(1.0, ((64, 32), (32, 64))) == (64, 32)
    assert nearest_size(1.0, ((32, 64), (64, 32))) == (32, 64)
    assert nearest_size(2.0, ((16, 32), (32, 64))) == (16, 32)


def test_the_picture_s_shape_is_that_after_rotation(tmp_path):
    sizes = ((16, 32), (32, 16))
    path = vf.write_video(tmp_path / "v.mp4", 16)
    assert cut_video(path, segment(), options(sizes=sizes))[0].video.shape == (4, 16, 32, 3)
    turned = vf.set_display_matrix(path, 0, 1, -1, 0)
    assert cut_video(turned, segment(), options(sizes=sizes))[0].video.shape == (4, 32, 16, 3)


def stripes(k: int, height: int, width: int) -> np.ndarray:
    columns = np.linspace(20, 230, width).astype(np.uint8)
    return np.broadcast_to(columns[None, :, None], (height, width, 3))


@pytest.mark.parametrize("changes", [{}, {"stride": 1}])
def test_a_random_crop_is_one_for_all_frames_and_its_own_for_each_clip(tmp_path, changes):
    path = vf.write_video(tmp_path / "v.mp4", 64, height=32, width=128, picture=stripes)
    wanted = options(sizes=((32, 32),), crop="random", seed=3, fps=8, max_clips_per_row=12, **changes)
    clips = cut_video(path, segment(), wanted)
    assert len(clips) == 12
    lefts = [clip.video[:, 16, 0, 0].astype(int) for clip in clips]
    assert all(np.ptp(left) <= 2 for left in lefts)
    assert len({int(left[0]) // 5 for left in lefts}) > 5
    assert np.ptp([left[0] for left in lefts]) > 80  # of 158 grey levels
    centre = cut_video(path, segment(), options(sizes=((32, 32),), fps=8))
    assert {abs(int(clip.video[0, 16, 16, 0]) - 125) < 4 for clip in centre} == {True}


def encoded_again(source: Path, target: Path) -> Path:
    """Smaller, at a lower quality, in another container."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        old = before.streams.video[0]
        new = after.add_stream("libx264", rate=old.average_rate, options={"crf": "26"})
        new.width, new.height, new.pix_fmt = 160, 160 * old.height // old.width // 2 * 2, "yuv420p"
        new.thread_count = 1  # else every run encodes other pictures
        new.sample_aspect_ratio = old.sample_aspect_ratio or 1
        for frame in before.decode(old):
            frame.pict_type = 0
            after.mux(new.encode(frame))
        after.mux(new.encode(None))
    return target


def are_found(clips, among) -> np.ndarray:
    """Which clips the filter takes for near duplicates of those among which they are looked for."""
    hashes = np.array([clip.phash for clip in (*among, *clips)], np.uint64)
    return duplicates(hashes, 4)[len(among) :]


@pytest.mark.parametrize("octaves", [0, 2])
@pytest.mark.parametrize("crop", ["centre", "random"])
def test_copies_of_a_file_are_found_whatever_is_drawn(tmp_path, crop, octaves):
    wanted = options(sizes=((16, 16),), fps=8, crop=crop, octaves=octaves, max_clips_per_row=64)
    for path in vf.real_videos():
        copy = Path(shutil.copy(path, tmp_path / "another_name.mp4"))
        clips, copied = (cut_video(file, segment(file.name), wanted) for file in (path, copy))
        assert are_found(copied, among=clips).all()


@pytest.mark.parametrize("crop", ["centre", "random"])
def test_a_copy_that_was_encoded_again_is_found_whatever_part_is_cut(tmp_path, crop):
    wanted = options(sizes=((16, 16),), fps=8, crop=crop, max_clips_per_row=64)
    found: list[bool] = []
    for path in vf.real_videos():
        again = encoded_again(path, tmp_path / "v.mkv")
        clips, copied = (cut_video(file, segment(file.name), wanted) for file in (path, again))
        found += are_found(copied, among=clips).tolist()
    assert np.mean(found) > 0.8  # a hash of the cut part finds one in twenty when parts are drawn


def test_copies_of_an_image_are_found_whatever_part_is_cut(tmp_path):
    frame = decode_frames(vf.real_videos()[1], [2.0], 96, 160)[0]
    Image.fromarray(frame).save(tmp_path / "p.png")
    wanted = options(sizes=((32, 32),), crop="random")
    images = [cut_image(tmp_path / "p.png", segment(f"row{k}"), wanted)[0] for k in range(10)]
    assert len({image.video.tobytes() for image in images}) > 3
    assert len({image.phash for image in images}) == 1


def test_different_videos_draw_different_rates(tmp_path):
    files = [long_video(tmp_path / f"{k}.mp4", 80 + 8 * k) for k in range(2)]
    files.append(
        vf.write_video(tmp_path / "v.mp4", 80, picture=lambda k, h, w: vf.grey_picture(15 - k % 16, h, w))
    )
    drawn = [[clip.fps for seed in range(10) for clip in cut_video(path, segment(), options(octaves=2, seed=seed))]
             for path in files]  # fmt: skip
    assert len(set(map(tuple, drawn))) == 3


@needs_scenes
def test_the_same_segment_and_options_make_the_same_clips_in_any_order(tmp_path):
    path = write_scenes(tmp_path / "v.mp4", 20, 30)
    wanted = options(octaves=2, crop="random", scenes=SceneOptions(), seed=7)
    once = cut_video(path, segment(), wanted)
    cut_video(path, segment("other"), wanted)
    again = cut_video(path, segment(), wanted)
    assert [(clip.clip_id, clip.attributes, clip.fps) for clip in once] == [
        (clip.clip_id, clip.attributes, clip.fps) for clip in again
    ]
    assert all((one.video == other.video).all() for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("changes", [{"num_frames": 0}, {"fps": 0}, {"fps": math.nan}, {"max_clips_per_row": 0},
                                     {"sizes": ()}, {"sizes": ((0, 4),)}, {"stride": 0}, {"octaves": -1},
                                     {"octaves": 1, "stride": 2}, {"crop": "left"}])  # fmt: skip
def test_options_that_make_no_clip_are_refused(changes):
    with pytest.raises(UserError):
        options(**changes)
