"""Scenes end where the picture changes at once, and nowhere else."""

from __future__ import annotations

import builtins
from itertools import pairwise

import numpy as np
import pytest
import video_files as vf
from scene_videos import write_scenes

from pyoco_pipeline.data.scenes import SceneOptions, scene_bounds
from pyoco_pipeline.data.video import VideoError, decode_frames, probe
from pyoco_pipeline.errors import UserError

pytest.importorskip("scenedetect")


def close_to(*scenes: tuple[float, float]):
    return [pytest.approx(scene) for scene in scenes]


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_a_cut_is_found_at_the_first_frame_of_the_new_scene(tmp_path, detector):
    path = write_scenes(tmp_path / "v.mp4", 12, 20, 16)
    found = scene_bounds(path, SceneOptions(detector))
    assert found == close_to((0, 1.5), (1.5, 4), (4, 6))


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_a_video_of_one_scene_is_one_scene(tmp_path, detector):
    path = write_scenes(tmp_path / "v.mp4", 40)
    assert scene_bounds(path, SceneOptions(detector)) == close_to((0, 5))


# Where the shots of the real videos begin, as one sees them.
REAL_CUTS = {"bikes.mp4": (1.2, 3.04, 5.48, 7.48, 9.68)}


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_the_shots_of_real_videos_are_found_and_hold_together(detector):
    for path in vf.real_videos():
        edges = (0, *REAL_CUTS.get(path.name, ()), probe(path).duration_s)
        assert scene_bounds(path, SceneOptions(detector, min_scene_s=0)) == close_to(*pairwise(edges))


def test_two_real_videos_in_one_are_two_scenes(tmp_path):
    _, bikes, _, carphone = vf.real_videos()
    pictures = np.concatenate(
        [decode_frames(path, (1.3 + np.arange(16) / 16).tolist(), 48, 64) for path in (carphone, bikes)]
    )
    path = vf.write_video(tmp_path / "v.mp4", 32, picture=lambda k, h, w: pictures[k])
    for detector in ("content", "adaptive"):
        assert scene_bounds(path, SceneOptions(detector)) == close_to((0, 2), (2, 4))


def test_the_times_are_those_of_the_frames_at_a_variable_rate(tmp_path):
    times = [0, 100, 250, 300, 800, 1000, 1900, 2000, 2050, 2700]
    path = write_scenes(tmp_path / "v.mkv", 4, 6, timestamps_ms=times)
    (first, second) = scene_bounds(path, SceneOptions(min_scene_s=0))
    assert first == pytest.approx((0, 0.8))
    assert second[0] == pytest.approx(0.8)


def test_a_short_scene_is_left_out_and_not_joined_to_a_neighbour(tmp_path):
    path = write_scenes(tmp_path / "v.mp4", 12, 2, 16)
    assert scene_bounds(path, SceneOptions(min_scene_s=0.5)) == close_to((0, 1.5), (1.75, 3.75))
    assert scene_bounds(path, SceneOptions(min_scene_s=0.0)) == close_to((0, 1.5), (1.5, 1.75), (1.75, 3.75))


@pytest.mark.parametrize("detector", ["content", "adaptive"])
@pytest.mark.parametrize("start", [0.0, 1.25, 2.0, 3.9])
def test_a_part_of_a_video_has_the_cuts_of_the_whole(tmp_path, start, detector):
    path = write_scenes(tmp_path / "v.mp4", 12, 20, 16, keyframe_interval=6)
    found = scene_bounds(path, SceneOptions(detector, min_scene_s=0), start, 4.1)
    edges = [start, *(cut for cut in (1.5, 4.0) if cut > start), 4.1]
    assert found == close_to(*pairwise(edges))


def test_a_higher_threshold_finds_fewer_cuts(tmp_path):
    path = write_scenes(tmp_path / "v.mp4", 12, 20)
    assert len(scene_bounds(path, SceneOptions(threshold=27))) == 2
    assert len(scene_bounds(path, SceneOptions(threshold=250))) == 1


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "v.mp4").write_text("no video")
    with pytest.raises(VideoError, match="is not a video"):
        scene_bounds(tmp_path / "v.mp4", SceneOptions())


@pytest.mark.parametrize("options", [{"detector": "hash"}, {"threshold": 0.0}, {"min_scene_s": -1.0}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(UserError):
        SceneOptions(**options)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def no_scenedetect(name, *args, **kwargs):
        if name.startswith("scenedetect"):
            raise ModuleNotFoundError("No module named 'scenedetect'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_scenedetect)
    with pytest.raises(UserError, match=r'pip install -e "\.\[scenes\]"'):
        scene_bounds(write_scenes(tmp_path / "v.mp4", 8), SceneOptions())
