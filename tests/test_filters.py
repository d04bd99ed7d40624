"""Scores say what a clip is like, hashes find clips that repeat others, and bounds say why a clip is left out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import video_files as vf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pyoco_pipeline.data.filters import (
    ClipScorer,
    FilterOptions,
    perceptual_hash,
    rejection,
    score,
)
from pyoco_pipeline.data.video import decode_frames, probe
from pyoco_pipeline.errors import UserError

clips = hnp.arrays(
    np.uint8, st.tuples(*[st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.just(3)])
)


def blank(level: int, frames: int = 4, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((frames, height, width, 3), level, np.uint8)


@given(clips)
def test_scores_lie_in_their_ranges(video):
    scores = score(video)
    assert set(scores) == {"motion", "brightness", "letterbox"} - ({"motion"} if len(video) == 1 else set())
    assert all(0 <= value <= 1 for value in scores.values())
    assert 0 <= perceptual_hash(video) < 2**64


@pytest.mark.parametrize("level", [0, 51, 255])
def test_a_blank_clip_is_as_bright_as_its_level_and_does_not_move(level):
    scores = score(blank(level))
    assert scores["brightness"] == pytest.approx(level / 255)
    assert scores["motion"] == 0


def test_motion_is_the_mean_change_of_luma():
    video = blank(0)
    video[1::2] = 255
    assert score(video)["motion"] == 1
    video = blank(100)
    video[2:, :, :15] = 151  # half of the picture, one change out of three, by a fifth of the range
    assert score(video)["motion"] == pytest.approx(0.5 / 3 * 0.2)


def test_green_is_brighter_than_red_and_red_than_blue():
    levels = []
    for channel in (1, 0, 2):
        video = blank(0)
        video[..., channel] = 255
        levels.append(score(video)["brightness"])
    assert levels == pytest.approx([0.587, 0.299, 0.114], abs=0.003)


def test_letterbox_is_the_share_that_bars_cover_in_all_frames():
    video = blank(100)
    assert score(video)["letterbox"] == 0
    video[:, :3] = 16
    video[:, -2:] = 24
    assert score(video)["letterbox"] == pytest.approx(5 / 20)
    video[:, :, :15] = 0
    assert score(video)["letterbox"] == pytest.approx(1 - 15 / 20 * 15 / 30)
    video[0, 0, 0] = 60  # in one frame, so there is a picture up to the corner
    assert score(video)["letterbox"] == pytest.approx(2 / 20)
    assert score(blank(10))["letterbox"] == 1


BOUNDS = {
    "motion": ({"motion": 0.01}, {"min_motion": 0.02}, "motion: 0.0100 is below 0.02"),
    "dark": ({"brightness": 0.1}, {"min_brightness": 0.2}, "brightness: 0.1000 is below 0.2"),
    "bright": ({"brightness": 0.9}, {"max_brightness": 0.8}, "brightness: 0.9000 is above 0.8"),
    "letterbox": ({"letterbox": 0.3}, {"max_letterbox": 0.25}, "letterbox: 0.3000 is above 0.25"),
    "caption": ({"clip_score": 0.1}, {"min_clip_score": 0.2}, "clip_score: 0.1000 is below 0.2"),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_a_clip_outside_a_bound_is_left_out_with_the_score_and_the_bound(case):
    scores, bounds, reason = BOUNDS[case]
    usual = {"motion": 0.5, "brightness": 0.5, "letterbox": 0.0, "clip_score": 0.3}
    options = FilterOptions(**bounds)
    assert rejection(usual, options) is None
    assert rejection(usual | scores, options) == reason
    (name, value), (bound, _) = next(iter(scores.items())), next(iter(bounds.items()))
    assert (
        rejection(usual | {name: value}, FilterOptions(**{bound: value})) is None
    )  # a bound itself is inside


@given(clips)
def test_the_defaults_keep_every_clip(video):
    assert rejection(score(video), FilterOptions()) is None


def test_an_image_is_not_judged_by_motion():
    assert rejection(score(blank(100, frames=1)), FilterOptions(min_motion=0.5)) is None


def test_a_bound_on_scores_that_are_not_made_is_a_user_error():
    with pytest.raises(UserError, match=r"set filters\.clip_model"):
        rejection(score(blank(100)), FilterOptions(min_clip_score=0.2))


@pytest.mark.parametrize("bounds", [{"min_motion": -0.1}, {"max_letterbox": 1.5}, {"max_brightness": float("nan")},
                                    {"max_duplicate_distance": 17}, {"min_clip_score": 2}])  # fmt: skip
def test_bounds_that_no_score_can_have_are_refused(bounds):
    with pytest.raises(UserError, match="filters"):
        FilterOptions(**bounds)


@pytest.fixture(scope="module")
def real_clips() -> list[np.ndarray]:
    """16 frames at 64 × 64 of each second of the different real videos."""
    paths = [path for path in vf.real_videos() if "distorted" not in path.name]
    return [
        decode_frames(path, (start + np.arange(16) / 16).tolist(), 64, 64)
        for path in paths
        for start in range(int(probe(path).duration_s - 1))
    ]


def distance(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def test_a_hash_changes_little_when_a_clip_is_encoded_scaled_or_dimmed(real_clips, tmp_path):
    for video in real_clips[::3]:
        before = perceptual_hash(video)
        path = vf.write_video(
            tmp_path / "v.avi", 16, height=64, width=64, codec="mjpeg", pix_fmt="yuvj420p",
            picture=lambda k, h, w, video=video: video[k],
        )  # fmt: skip
        encoded = decode_frames(path, [k / vf.FPS for k in range(16)], 64, 64)
        scaled = np.stack([np.asarray(Image.fromarray(frame).resize((48, 40))) for frame in video])
        dimmed = (video * 0.8).astype(np.uint8)
        for changed in (encoded, scaled, dimmed):
            assert (changed.shape != video.shape) or (changed != video).any()
            assert distance(perceptual_hash(changed), before) <= 6


def test_hashes_of_different_videos_are_far_apart():
    firsts = [
        perceptual_hash(decode_frames(path, (np.arange(16) / 8).tolist(), 64, 64))
        for path in vf.real_videos()
    ]
    bunny, bikes, distorted, pristine = firsts
    assert min(distance(*pair) for pair in itertools.combinations((bunny, bikes, pristine), 2)) > 16
    assert distance(distorted, pristine) <= 8


def test_a_static_clip_keeps_its_hash_under_noise(real_clips):
    rng = np.random.default_rng(0)
    for video in real_clips[::4]:
        still = np.repeat(video[:1], 16, axis=0)
        noisy = np.clip(still + rng.normal(0, 2, still.shape), 0, 255).astype(np.uint8)
        assert distance(perceptual_hash(still), perceptual_hash(noisy)) <= 4


def test_hashes_tell_a_clip_from_its_reverse(real_clips):
    moving = [video for video in real_clips if score(video)["motion"] > 0.02]
    assert moving
    for video in moving:
        assert distance(perceptual_hash(video), perceptual_hash(video[::-1])) > 6


def test_images_have_hashes_too(real_clips):
    hashes = [perceptual_hash(video[:1]) for video in real_clips[::4]]
    assert min(distance(*pair) for pair in itertools.combinations(hashes, 2)) > 6
    assert all(4 < value.bit_count() < 60 for value in hashes)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP with random weights, saved as published ones are."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    words = {token: k for k, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=words, merges=[])
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**size, **tokens, "vocab_size": len(words), "max_position_embeddings": 12},
            vision_config={**size, "image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
    )
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


def test_the_clip_score_is_the_mean_cosine_of_caption_and_frames(clip_folder):
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (frames, 40, 56, 3), dtype=np.uint8) for frames in (3, 1, 5)]
    captions = ["a cat", "a dog that is much too long for it", "a cat"]
    found = ClipScorer(clip_folder, batch_size=4).score(videos, captions)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer, processor = (
        AutoTokenizer.from_pretrained(clip_folder),
        CLIPImageProcessorPil.from_pretrained(clip_folder),
    )
    for video, caption, value in zip(videos, captions, found, strict=True):
        tokens = tokenizer([caption], truncation=True, max_length=12, return_tensors="pt")
        pixels = processor(images=[Image.fromarray(frame) for frame in video], return_tensors="pt")[
            "pixel_values"
        ]
        with torch.inference_mode():
            output = model(input_ids=tokens["input_ids"], pixel_values=pixels)
            expected = output.logits_per_image.mean() / model.logit_scale.exp()
        assert value == pytest.approx(float(expected), abs=1e-5)


def test_a_folder_that_is_not_clip_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        ClipScorer(tmp_path)
