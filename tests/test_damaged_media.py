"""Whatever has happened to a file, it gives clips or a VideoError."""

from __future__ import annotations

import contextlib
import math

import pytest
import video_files as vf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scene_videos import write_scenes
from test_cutting import SIZE, needs_scenes, options, segment
from test_images import two_colours

from pyoco_pipeline.data.cutting import cut_image, cut_video
from pyoco_pipeline.data.scenes import SceneOptions
from pyoco_pipeline.data.video import VideoError, probe


@pytest.mark.parametrize(
    "name", ["i.png", "i.jpg", "i.webp", "i.gif", "i.tif", "i.bmp", "i.tga", "i.ppm", "i.avif"]
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_image_never_raises_anything_else(tmp_path, name, data):
    path = tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = {} if name in ("i.gif", "i.bmp", "i.tga", "i.ppm") else {"exif": exif}
    Image.fromarray(two_colours(24, 36)).save(path, **extra)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        (clip,) = cut_image(path, segment(), options())
        assert clip.video.shape == (1, *SIZE, 3)
    except VideoError:
        pass


@needs_scenes
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts", "v.gif"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_video_never_raises_anything_else(tmp_path, name, data):
    path = tmp_path / f"whole-{name}"
    if not path.exists():
        codec = {"codec": "gif", "pix_fmt": "rgb8"} if name == "v.gif" else {}
        write_scenes(path, 10, 14, keyframe_interval=8, **codec)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 12))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    damaged = tmp_path / name
    damaged.write_bytes(content)
    changes = data.draw(st.sampled_from([{}, {"stride": 2}, {"octaves": 2}, {"scenes": SceneOptions()}]))
    start = data.draw(st.sampled_from([math.nan, 0.3, 1.6]))
    try:
        for clip in cut_video(damaged, segment(start=start), options(num_frames=2, **changes)):
            assert clip.video.shape == (2, *SIZE, 3)
    except VideoError:
        pass


def test_a_file_of_unusual_figures_gives_clips_or_says_why(tmp_path):
    files = [
        vf.write_video(tmp_path / "tiny.mkv", 16, height=1, width=1, codec="ffv1", pix_fmt="yuv444p"),
        vf.write_video(tmp_path / "fast.mkv", 20, timestamps_ms=list(range(20))),
        vf.write_video(tmp_path / "slow.mkv", 3, timestamps_ms=[0, 3_600_000, 7_200_000]),
        vf.write_video(tmp_path / "one.mp4", 1),
    ]
    for path in files:
        for changes in ({"fps": 1e5}, {"fps": 1e-4}, {"fps": 8}, {"stride": 1}, {"stride": 10**9}):
            with contextlib.suppress(VideoError):
                for clip in cut_video(path, segment(), options(num_frames=2, max_clips_per_row=2, **changes)):
                    assert clip.video.shape == (2, *SIZE, 3)
                    assert clip.fps is None or 0 < clip.fps < math.inf
    assert probe(files[2]).duration_s > 7000
