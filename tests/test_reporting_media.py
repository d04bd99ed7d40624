"""Clips written for people to watch: the colours and the number of frames survive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.reporting.contact_sheet import _CAPTION_WIDTH, _font, _wrapped, contact_sheet
from pyoco_pipeline.reporting.video_files import enlarge, watchable_scale, write_video


@pytest.fixture
def video() -> np.ndarray:
    """Eight frames of 16x16 in saturated colours, each frame another."""
    rng = np.random.default_rng(0)
    return np.repeat(np.repeat(rng.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8), 4, 1), 4, 2)


def test_mp4_keeps_frames_size_and_colour(tmp_path: Path, video: np.ndarray) -> None:
    av = pytest.importorskip("av")
    path = write_video(tmp_path / "new" / "clip.mp4", video, fps=8, scale=4)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 8.0
    expected = enlarge(video, 4)
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 4


def test_mp4_pads_odd_sizes_to_even(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = write_video(tmp_path / "odd.mp4", np.zeros((3, 15, 17, 3), np.uint8), fps=23.976, scale=1)
    with av.open(str(path)) as container:
        assert [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)] == [
            (16, 18, 3)
        ] * 3


def test_webp_is_lossless_and_loops(tmp_path: Path, video: np.ndarray) -> None:
    path = write_video(tmp_path / "clip.webp", video, fps=10, scale=3)
    with Image.open(path) as image:
        assert image.n_frames == 8
        assert image.info["loop"] == 0
        for index, expected in enumerate(enlarge(video, 3)):
            image.seek(index)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), expected)
            assert image.info["duration"] == 100


def test_small_clips_are_enlarged_to_be_watchable() -> None:
    assert [watchable_scale(side, side) for side in (8, 16, 64, 256, 1024)] == [24, 12, 3, 1, 1]


def test_an_unknown_suffix_says_which_are_known(tmp_path: Path, video: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"\.avi, expected \.mp4 or \.webp"):
        write_video(tmp_path / "clip.avi", video, fps=8)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (4, 4, 3), (2, 4, 4, 1)])
def test_what_is_not_a_clip_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="uint8 frames"):
        write_video(tmp_path / "clip.webp", np.zeros(shape, np.uint8), fps=8)


def test_a_contact_sheet_shows_every_frame_of_its_rows(video: np.ndarray) -> None:
    sheet = contact_sheet(np.stack([video, video]), ["a red digit", "α"], scale=5)
    pixels = np.asarray(sheet)
    for top in (12, 12 + 80 + 12):
        row = pixels[top : top + 80, 264:]
        for index, frame in enumerate(enlarge(video, 5)):
            np.testing.assert_array_equal(row[:, index * 82 : index * 82 + 80], frame)


def test_a_contact_sheet_limits_rows_and_frames(video: np.ndarray) -> None:
    whole = contact_sheet(np.stack([video] * 4), ["x"] * 4, scale=5)
    part = contact_sheet(np.stack([video] * 4), ["x"] * 4, max_rows=2, max_frames=3, scale=5)
    assert part.height < whole.height
    assert part.width == whole.width - 5 * 82


def test_long_captions_are_wrapped_and_cut(video: np.ndarray) -> None:
    lines = _wrapped("a digit moving " * 30 + "x" * 200)
    assert len(lines) == 6
    assert lines[-1].endswith("…")
    assert max(_font().getlength(line) for line in [*lines, *_wrapped("y" * 90)]) <= _CAPTION_WIDTH + 5
    assert "".join(_wrapped("y" * 90)) == "y" * 90


def test_a_contact_sheet_needs_a_caption_per_clip(video: np.ndarray) -> None:
    with pytest.raises(ValueError, match="as many captions as clips"):
        contact_sheet(video[None], [])
