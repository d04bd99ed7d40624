"""Crossing digits: every clip is a function of its row, the two do meet, and the caption says which is in front."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyoco_pipeline.data.crossing_digits import ATTRIBUTES, MEETING, plan_crossing, render_crossing
from pyoco_pipeline.data.digits import COLOURS, MovingDigitsSource, caption, glyph_split, plan_clips
from pyoco_pipeline.models.text import TextEncoder, text_encoder_folder

HORIZONTAL = ("left", "right")


def nearest(video: np.ndarray, colour: str, tolerance: float = 40.0) -> np.ndarray:
    """Where pixels (…, 3) are of a digit's colour."""
    return np.abs(video.astype(float) - np.array(COLOURS[colour])).max(axis=-1) < tolerance


@given(short=st.integers(1, 5), more=st.integers(1, 5), split=st.sampled_from(["train", "test"]))
@settings(max_examples=15, deadline=None)
def test_a_row_does_not_depend_on_how_many_rows_there_are(short: int, more: int, split: str) -> None:
    few, many = plan_crossing(short, split, 4), plan_crossing(short + more, split, 4)
    assert few.equals(many.head(short))


def test_the_digits_differ_in_colour_and_axis_and_their_glyphs_are_of_the_split() -> None:
    for split in ("train", "test"):
        plan = plan_crossing(200, split)
        assert (plan["colour"] != plan["colour2"]).all()
        assert (plan["direction"].isin(HORIZONTAL) != plan["direction2"].isin(HORIZONTAL)).all()
        assert {*plan["glyph"], *plan["glyph2"]} <= set(glyph_split(split))
        assert set(plan["direction"]) == {"left", "right", "up", "down"}  # either axis may be in front


def test_the_caption_names_both_digits_the_one_in_front_first() -> None:
    for row in plan_crossing(30, "train").to_dict("records"):
        said = [
            caption(int(row[f"digit{n}"]), row[f"colour{n}"], row[f"direction{n}"], row[f"speed{n}"])
            for n in ("", "2")
        ]
        assert row["caption"] == f"{said[0]}, in front of {said[1]}"


def test_the_text_encoder_sees_whole_captions_at_the_tokens_of_conf_crossing() -> None:
    encoder = TextEncoder(text_encoder_folder("embedded-minilm"), 32, "cpu")
    captions = plan_crossing(200, "train")["caption"].unique()
    assert max(len(row) for row in encoder.tokenizer(list(captions)).input_ids) <= 32
    assert (
        max(len(row) for row in encoder.tokenizer(list(captions)).input_ids) > 16
    )  # conf/base would cut them


def seen(plan: pd.DataFrame, which: str) -> np.ndarray:
    """(N, T) how much of a digit's ink is seen: what another colour of it changes. Eight frames a step."""
    videos = [
        render_crossing(plan.assign(**{f"colour{which}": colour}), 64, 32, fps=64.0).float()
        for colour in ("red", "blue")
    ]
    return (videos[0] - videos[1]).abs().sum(dim=(2, 3, 4)).numpy()


def test_at_the_meeting_the_digit_in_front_hides_the_other_and_is_whole() -> None:
    plan = plan_crossing(40, "train", seed=1)
    front, behind = seen(plan, ""), seen(plan, "2")
    np.testing.assert_allclose(front / front[:, :1], 1.0, atol=0.05)
    share = behind / behind.max(axis=1, keepdims=True)
    at = (plan["meeting"] * 8).round().astype(int)
    hidden = [row[max(t - 4, 0) : t + 5].min() for row, t in zip(share, at, strict=True)]
    assert max(hidden) < 0.85
    assert np.median(hidden) < 0.6


def test_they_meet_within_the_eight_frames_of_a_clip() -> None:
    plan = plan_crossing(300, "test")
    assert plan["meeting"].between(*MEETING).all()
    assert 0 < MEETING[0] < MEETING[1] < 7


def test_a_clip_rendered_alone_is_the_clip_rendered_among_others_at_any_rate() -> None:
    plan = plan_crossing(40, "train")
    together = render_crossing(plan, 8, 24)
    for i in (0, 7, 39):
        assert torch.equal(render_crossing(plan.iloc[[i]], 8, 24)[0], together[i])
    torch.testing.assert_close(render_crossing(plan, 15, 24, fps=16.0)[:, ::2], together, atol=1, rtol=0)


def test_the_background_has_a_texture_that_moves() -> None:
    plan = plan_crossing(30, "train")
    videos = render_crossing(plan, 8, 24).numpy().astype(float)
    for row, video in zip(plan.to_dict("records"), videos, strict=True):
        ink = nearest(video, row["colour"], 90) | nearest(video, row["colour2"], 90)
        background = np.where(ink[..., None], np.nan, video)
        assert np.nanstd(background[0].mean(axis=-1)) > 2
        assert np.nanmean(np.abs(background[-1] - background[0])) > 0.2


def source(scene: str, **sides: int) -> MovingDigitsSource:
    options = {
        "num_train": 3,
        "num_test": 2,
        "num_frames": 4,
        "height": 24,
        "width": 24,
        "fps": 8.0,
        "seed": 0,
    }
    return MovingDigitsSource(**options, scene=scene)  # type: ignore[arg-type]


def test_the_source_of_a_scene_says_its_kind_and_gives_its_attributes() -> None:
    digits = source("crossing")
    rows = digits.captions().to_dict("records")
    clips = [clip for made in digits.read(rows) for clip in made]
    assert digits.kind == "crossing_digits"
    assert [clip.attributes for clip in clips] == [{name: row[name] for name in ATTRIBUTES} for row in rows]
    assert set(ATTRIBUTES) == {a + n for a in ("digit", "colour", "direction", "speed") for n in ("", "2")}
    plain = source("plain")
    assert plain.kind == "moving_digits"
    assert plain.captions().head(3).equals(plan_clips(3, "train", 0))


@pytest.mark.parametrize("frames", [4, 8])
def test_clips_are_uint8_of_the_size_asked_for(frames: int) -> None:
    videos = render_crossing(plan_crossing(3, "train"), frames, 24)
    assert (videos.shape, videos.dtype) == ((3, frames, 24, 24, 3), torch.uint8)
