"""Moving digits: every clip is a function of its row, and its pixels do what its caption says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyoco_pipeline.data.digits import (
    ATTRIBUTES,
    COLOURS,
    DIRECTIONS,
    SPEEDS,
    MovingDigitsSource,
    caption,
    glyph_split,
    glyphs,
    plan_clips,
    render_clips,
)
from pyoco_pipeline.errors import UserError

SPLITS = st.sampled_from(["train", "test"])


def source(num_train=3, num_test=2, *, frames=4, height=16, width=16) -> MovingDigitsSource:
    return MovingDigitsSource(
        num_train=num_train, num_test=num_test, num_frames=frames, height=height, width=width, fps=8.0, seed=0
    )


def centroids(video: np.ndarray) -> np.ndarray:
    """(T, 2) centre (x, y) of what stands out from the background, in pixels."""
    ink = np.abs(video.astype(float) - video[:, :1, :1].astype(float)).sum(-1)
    ink = ink - np.median(ink, axis=(1, 2), keepdims=True)
    ink = np.where(ink > 0.3 * ink.max(axis=(1, 2), keepdims=True), ink, 0.0)
    y, x = np.mgrid[: video.shape[1], : video.shape[2]]
    return np.stack([(ink * axis).sum((1, 2)) / ink.sum((1, 2)) for axis in (x, y)], axis=1)


@given(short=st.integers(1, 6), more=st.integers(1, 6), split=SPLITS, seed=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_a_row_does_not_depend_on_how_many_rows_there_are(short, more, split, seed):
    few, many = plan_clips(short, split, seed), plan_clips(short + more, split, seed)

    assert len(few) == short
    assert few.equals(many.head(short))


def test_other_seeds_and_splits_give_other_clips():
    plans = [plan_clips(20, split, seed) for split in ("train", "test") for seed in (0, 1)]
    rows = [tuple(plan["glyph"]) for plan in plans]

    assert len(set(rows)) == len(rows)


def test_no_glyph_is_in_both_splits():
    train, test = (set(glyph_split(split)) for split in ("train", "test"))

    assert not train & test
    assert len(train | test) == len(glyphs()[1]) == 1797
    assert set(glyphs()[1][sorted(test)]) == set(range(10))
    for split, allowed in (("train", train), ("test", test)):
        assert set(plan_clips(200, split)["glyph"]) <= allowed


@given(
    digit=st.integers(0, 9),
    colour=st.sampled_from(list(COLOURS)),
    direction=st.sampled_from(DIRECTIONS),
    speed=st.sampled_from(list(SPEEDS)),
)
def test_a_caption_has_the_right_article_and_says_every_attribute(digit, colour, direction, speed):
    words = caption(digit, colour, direction, speed).split()

    assert words[0] == ("an" if colour == "orange" else "a")
    assert words[1:6] == [colour, "digit", str(digit), "moving", speed]
    assert words[-1] == direction
    assert set(words[6:-1]) == {"left", "and", "right,", "first"} or set(words[6:-1]) == {
        "up",
        "and",
        "down,",
        "first",
    }


def test_captions_are_of_the_attributes_of_their_rows():
    for row in plan_clips(50, "train").to_dict("records"):
        assert row["caption"] == caption(int(row["digit"]), row["colour"], row["direction"], row["speed"])
        assert row["digit"] == str(glyphs()[1][row["glyph"]])


@given(num=st.integers(1, 5), frames=st.integers(1, 9), size=st.integers(4, 40), split=SPLITS)
@settings(max_examples=25, deadline=None)
def test_clips_are_uint8_of_the_size_asked_for_and_show_something(num, frames, size, split):
    videos = render_clips(plan_clips(num, split), frames, size)

    assert videos.shape == (num, frames, size, size, 3)
    assert videos.dtype == torch.uint8
    assert (videos.flatten(2).float().std(dim=2) > 1).all()


def test_a_clip_rendered_alone_is_the_clip_rendered_among_others():
    plan = plan_clips(40, "train")
    together = render_clips(plan, 6, 16)

    for i in (0, 7, 39):
        assert torch.equal(render_clips(plan.iloc[[i]], 6, 16)[0], together[i])


def test_a_longer_clip_begins_as_the_shorter_one():
    plan = plan_clips(5, "test")

    assert torch.equal(render_clips(plan, 9, 16)[:, :4], render_clips(plan, 4, 16))


def test_the_digit_first_moves_where_its_caption_says():
    plan = plan_clips(120, "train", seed=3)
    axis_and_sign = {"right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1)}
    for row, video in zip(plan.to_dict("records"), render_clips(plan, 4, 32).numpy(), strict=True):
        axis, sign = axis_and_sign[row["direction"]]
        steps = np.diff(centroids(video), axis=0)
        expected = SPEEDS[row["speed"]] * (1 - 0.62) * 32

        np.testing.assert_allclose(steps[:, axis], sign * expected, atol=0.3, err_msg=row["caption"])
        np.testing.assert_allclose(steps[:, 1 - axis], 0, atol=0.2, err_msg=row["caption"])


def test_the_digit_never_leaves_the_frame():
    """Its ink at every time is its ink at the start, however often it bounced."""
    plan = plan_clips(40, "train", seed=1)
    plan["background"], plan["colour"] = 0.0, "white"
    ink = render_clips(plan, 60, 32).float().sum(dim=(2, 3, 4))

    torch.testing.assert_close(ink, ink[:, :1].expand_as(ink), rtol=0.03, atol=0)


def test_quick_digits_are_faster_than_slow_ones():
    assert SPEEDS["quickly"] > 2 * SPEEDS["slowly"]


def test_the_source_gives_one_clip_per_row_with_its_attributes():
    digits = source()
    rows = digits.captions().to_dict("records")
    clips = [clip for made in digits.read(rows) for clip in made]

    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"] * 2
    assert [clip.clip_id for clip in clips] == [row["row_id"] for row in rows]
    assert [clip.attributes for clip in clips] == [{name: row[name] for name in ATTRIBUTES} for row in rows]
    assert {clip.video.shape for clip in clips} == {(4, 16, 16, 3)}


def test_the_source_reads_any_rows_in_any_order():
    digits = source(40, 10)
    rows = digits.captions().to_dict("records")
    [last], [first] = digits.read([rows[-1], rows[0]])
    every = [clip for made in digits.read(rows) for clip in made]

    np.testing.assert_array_equal(last.video, every[-1].video)
    np.testing.assert_array_equal(first.video, every[0].video)


def test_a_frame_that_is_not_square_is_refused():
    with pytest.raises(UserError, match="height=16 and width=8 differ"):
        source(height=16, width=8)
