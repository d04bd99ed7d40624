"""What a stage sees of the stored clips: fewer frames, smaller ones, and parts of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_embeddings

from pyoco_pipeline.data.batches import BatchOptions, ClipBatches, to_float
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.data.views import ClipView, shrink, view_of
from pyoco_pipeline.errors import UserError

CPU = torch.device("cpu")
FRAMES, HEIGHT, WIDTH = 9, 8, 12


def numbered(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH, clip: int = 0) -> np.ndarray:
    """A clip (T, H, W, 3) whose pixels say where they are: the channels are frame, row and column."""
    place = np.stack(np.meshgrid(range(frames), range(height), range(width), indexing="ij"), axis=-1)
    return (place + np.array([0, 10 * clip, 0])).astype(np.uint8)


def write(folder: Path, *videos: np.ndarray, shape: tuple[int, int, int] | None = None) -> ClipStore:
    clips = [CaptionedClip(Clip(f"{i}", video), "a clip", "train") for i, video in enumerate(videos)]
    shape = shape or videos[0].shape[:3]
    write_clips(
        folder, clips, kind="test", shape=shape, fps=24.0, sizes=[video.shape[1:3] for video in videos]
    )
    return ClipStore(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return write(tmp_path_factory.mktemp("numbered"), *(numbered(clip=i) for i in range(6)))


def batches(store: ClipStore, folder: Path, view: ClipView | None, **options: object) -> ClipBatches:
    texts = make_embeddings(folder / "text", ["a clip"])
    return ClipBatches(store, texts, BatchOptions(batch_size=6, **options), view=view)


def pixels(x0: torch.Tensor) -> torch.Tensor:
    """(B, C, T, H, W) in [-1, 1] as levels from 0 to 255."""
    return (x0 + 1) * 127.5


def test_a_view_of_fewer_frames_has_every_stride_th_from_the_first_to_the_last(store: ClipStore) -> None:
    view = view_of(store, (3, None, None))
    seen = view.cut(torch.from_numpy(numbered())[None])
    assert view == ClipView(stride=4)
    assert view.num_frames(FRAMES) == 3
    assert seen[0, :, 0, 0, 0].tolist() == [0, 4, 8]


def test_a_smaller_pixel_is_the_mean_of_those_it_covers() -> None:
    x = torch.randn(2, 3, 4, 6, 8)
    small = shrink(x, 2)
    assert small.shape == (2, 3, 4, 3, 4)
    torch.testing.assert_close(small[1, 2, 3, 1, 2], x[1, 2, 3, 2:4, 4:6].mean())
    assert shrink(x, 1) is x


def test_a_view_of_all_there_is_changes_nothing(store: ClipStore) -> None:
    assert view_of(store, None) == view_of(store, (FRAMES, HEIGHT, WIDTH)) == ClipView()


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(0, 1, exclude_max=True, width=32)] * 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, FRAMES),
    st.integers(1, 2),
    st.integers(1, 3),
)
def test_a_part_lies_in_the_clip_on_the_grid_of_its_smaller_pixels(where, scale, frames, height, width):
    """So that a part of the small clip is what is left when the part is made smaller."""
    clip = torch.from_numpy(numbered())[None]
    view = ClipView(scale=scale, crop=(frames, height, width))
    part = view.cut(clip, torch.tensor([where]))
    assert part.shape[1:4] == (frames, scale * height, scale * width)
    t, row, column = part[0, 0, 0, 0].tolist()
    assert row % scale == column % scale == 0
    whole = shrink(to_float(clip), scale)
    expected = whole[:, :, t : t + frames, row // scale :, column // scale :][..., :height, :width]
    torch.testing.assert_close(view.shrink(to_float(part)), expected)


def test_every_part_is_seen_and_none_more_often(store: ClipStore) -> None:
    view, clip = ClipView(crop=(8, 7, 10)), torch.from_numpy(numbered())[None]
    steps = torch.arange(12) / 12
    corners = [
        tuple(view.cut(clip, torch.tensor([[a, b, c]]))[0, 0, 0, 0].tolist())
        for a in steps for b in steps for c in steps
    ]  # fmt: skip
    counts = {corner: corners.count(corner) for corner in set(corners)}
    assert set(counts) == {(t, h, w) for t in (0, 1) for h in (0, 1) for w in (0, 1, 2)}
    assert set(counts.values()) == {12**3 // 12}


def test_batches_are_of_the_seen_part_and_images_of_one_frame_of_it(store: ClipStore, tmp_path: Path) -> None:
    view = view_of(store, (3, 4, 6), (2, 2, 3))
    made = batches(store, tmp_path, view, image_share=0.5)
    video, images = made.batch(0, CPU).x0, made.batch(1, CPU).x0
    assert video.shape == (6, 3, 2, 2, 3)
    assert images.shape == (12, 3, 1, 2, 3)  # as many frames as a step of videos has
    frames = pixels(video)[:, 0, :, 0, 0]
    assert torch.equal((frames[:, 1] - frames[:, 0]).round(), torch.full((6,), 4.0))
    assert (pixels(images)[:, 0].round() <= FRAMES - 1).all()


def test_a_clips_part_is_drawn_for_itself_and_the_same_however_a_batch_is_split(
    store: ClipStore, tmp_path: Path
) -> None:
    made = batches(store, tmp_path, ClipView(scale=2, crop=(4, 2, 2)))
    whole = made.batch(3, CPU).x0
    parts = torch.cat([made.batch(3, CPU, (i, 3)).x0 for i in range(3)])
    assert torch.equal(parts, whole)
    assert len({tuple(clip[:, 0, 0, 0].tolist()) for clip in whole}) > 3


def test_batches_without_a_view_are_those_from_before_there_were_views(
    store: ClipStore, tmp_path: Path
) -> None:
    """A view of everything, and a part that is everything, draw the same clips in the same order."""
    plain, whole = batches(store, tmp_path, None), batches(store, tmp_path, ClipView())
    part = batches(store, tmp_path, ClipView(crop=(FRAMES, HEIGHT, WIDTH)))
    for step in range(4):
        expected = plain.batch(step, CPU)
        assert torch.equal(whole.batch(step, CPU).x0, expected.x0)
        assert torch.equal(part.batch(step, CPU).x0, expected.x0)


def test_the_frame_rate_is_that_of_the_seen_frames(store: ClipStore, tmp_path: Path) -> None:
    made = batches(store, tmp_path, ClipView(stride=4), with_fps=True)
    assert made.batch(0, CPU).cond["fps"].tolist() == [6.0] * 6


@pytest.mark.parametrize(
    ("shape", "crop", "message"),
    [
        ((4, None, None), None, r"clip\.frames=4 can't be spaced evenly over the 9 frames .* one of 2, 3, 5, 9"),
        ((1, None, None), None, r"clip\.frames=1 can't be spaced evenly"),
        ((10, None, None), None, r"clip\.frames=10 can't be spaced evenly"),
        ((None, 3, None), None, r"clip\.height=3 and clip\.width=12 are not a whole number of times smaller"),
        ((None, 4, 12), None, r"clip\.height=4 and clip\.width=12 are not a whole"),
        ((None, 16, 24), None, r"clip\.height=16 and clip\.width=24 are not a whole"),
        ((3, None, None), (4, None, None), r"crop\.frames=4 is more than the clip's 3"),
        ((None, 4, 6), (None, 5, None), r"crop\.height=5 is more than the clip's 4"),
    ],
)  # fmt: skip
def test_a_view_that_the_clips_do_not_have_is_refused(store: ClipStore, shape, crop, message: str) -> None:
    with pytest.raises(UserError, match=message):
        view_of(store, shape, crop)


def test_every_size_of_clips_has_to_fit(tmp_path: Path) -> None:
    store = write(tmp_path, numbered(), numbered(height=12, width=9))
    with pytest.raises(UserError, match=r"2 times smaller, which those of 12x9 .* don't divide into"):
        view_of(store, (None, 4, 6))
    with pytest.raises(UserError, match=r"crop\.height=8 and crop\.width=10 don't fit into all sizes"):
        view_of(store, None, (None, 8, 10))
    assert view_of(store, None, (None, 8, 8)).crop == (FRAMES, 8, 8)


def test_latents_are_cut_but_not_made_smaller(store: ClipStore, tmp_path: Path) -> None:
    latents = ClipStore(store.folder)
    latents.manifest = replace(latents.manifest, autoencoder={"sha256": "a"})
    assert view_of(latents, (3, None, None), (2, 4, 4)) == ClipView(4, 1, (2, 4, 4))
    with pytest.raises(UserError, match="latents can't be made smaller"):
        view_of(latents, (None, 4, 6))
