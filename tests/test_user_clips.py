"""Clips that sampling starts from: cut out of the user's videos and pictures, or as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import video_files as vf
from PIL import Image
from tiny import make_store

from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.pipelines.generate.user_clips import UserClips, user_clips

SHAPE, FPS = (4, 24, 32), 4.0


def asked(folder: Path, num_clips: int = 2, **changes: Any) -> GenerateSettings:
    return GenerateSettings(num_clips=num_clips, video={"clips": str(folder), "sigma": 1.0}, **changes)


def taken(
    folder: Path, num_clips: int = 2, shape: tuple[int, int, int] = SHAPE, fps: float = FPS, **changes: Any
) -> list[Any]:
    with user_clips(asked(folder, num_clips, **changes), shape, fps) as found:
        return list(found.clips())


def test_a_video_is_cut_at_the_rate_and_size_of_the_stage(tmp_path: Path) -> None:
    """Every other frame of one at 8 frames per second, for a stage at 4: motion keeps its speed."""
    vf.write_video(tmp_path / "a street.mp4", 16)
    (item,) = taken(tmp_path, 1)
    assert item.clip.video.shape == (*SHAPE, 3)
    assert vf.indices(item.clip.video) == [0, 2, 4, 6]
    assert (item.caption, item.split, item.clip.clip_id) == ("a street", "generated", "generated-000000")


def test_a_picture_stands_still(tmp_path: Path) -> None:
    Image.fromarray(np.full((48, 64, 3), (200, 40, 40), np.uint8)).save(tmp_path / "a_red_wall.png")
    (item,) = taken(tmp_path, 1)
    assert item.clip.video.shape == (*SHAPE, 3)
    assert (item.clip.video == (200, 40, 40)).all()
    assert item.caption == "a red wall"


def test_as_many_clips_as_are_asked_for_begin_from_the_first_again(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        vf.write_video(tmp_path / f"{name}.mp4", 16)
    assert [item.caption for item in taken(tmp_path, 5)] == ["a", "b", "c", "a", "b"]
    assert [item.caption for item in taken(tmp_path, 2)] == ["a", "b"]
    assert [item.caption for item in taken(tmp_path, 3, prompts=("x", "y"))] == ["x", "y", "x"]
    with user_clips(asked(tmp_path, 5), SHAPE, FPS) as found:
        assert len(found.distinct()) == 3


def test_captions_and_segments_are_those_of_the_table(tmp_path: Path) -> None:
    vf.write_video(tmp_path / "one.mp4", 16)
    (tmp_path / "captions.csv").write_text(
        "path,caption,start,end\none.mp4,a light,1.0,\none.mp4,all of it,,\n"
    )
    light, whole = taken(tmp_path)
    assert (light.caption, vf.indices(light.clip.video)) == ("a light", [8, 10, 12, 14])
    assert (whole.caption, vf.indices(whole.clip.video)) == ("all of it", [0, 2, 4, 6])


def test_what_can_not_be_used_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vf.write_video(tmp_path / "long.mp4", 16)
    vf.write_video(tmp_path / "short.mp4", 3)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert [item.caption for item in taken(tmp_path, 1)] == ["long"]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "broken.mp4 is left out" in said
    assert "broken.png is left out" in said
    (tmp_path / "long.mp4").unlink()
    with pytest.raises(UserError, match=r"none of the 3 files in .* can be used; the first, broken\.mp4, "):
        taken(tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 8, 8), None), ((8, 8, 8), r"\(4, 8, 8\), and stage base takes \(8, 8"), ((4, 8, 6), r"takes \(4, 8, 6\)")],
)  # fmt: skip
def test_a_folder_of_clips_is_taken_as_it_is(tmp_path: Path, shape, message: str | None, caplog) -> None:
    store = make_store(tmp_path / "clips", 2, 1)
    if message:
        with pytest.raises(UserError, match=message):
            taken(tmp_path / "clips", shape=shape, fps=8.0)
        return
    items = taken(tmp_path / "clips", 3, shape=shape, fps=8.0)
    for item, own in zip(items, store.take(), strict=True):
        assert (item.clip.video == own.clip.video).all()
        assert (item.caption, item.clip.attributes) == (own.caption, own.clip.attributes)
    assert not caplog.records
    taken(tmp_path / "clips", 3, shape=shape, fps=4.0)
    assert "holds clips at 8 frames per second, and stage base takes 4" in caplog.text


def test_latents_and_folders_without_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is no folder: give one of videos or pictures"):
        taken(tmp_path / "none")
    with pytest.raises(UserError, match="holds no videos or pictures"):
        taken(tmp_path)


def test_attributes_of_a_clip_are_of_its_own_caption_only(tmp_path: Path) -> None:
    store = make_store(tmp_path / "clips", 1, 0)
    own, other = (
        next(UserClips(store, asked(tmp_path, 1, prompts=prompts)).clips()) for prompts in (None, ("x",))
    )
    assert own.clip.attributes
    assert not other.clip.attributes
