"""Sampling through the stages of a cascade: what a clip depends on, and what each window is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cascades import CONDITIONS, RATES, SCALE, SHAPES, STRIDE, make_cascade, make_stage, planned, settings
from tiny import ENCODER_SHA256, make_embeddings, make_store, stage_info
from torch import Tensor

from pyoco_pipeline.cascade import sampling
from pyoco_pipeline.cascade.conditions import FramesCondition
from pyoco_pipeline.cascade.plan import PlannedStage, plan_cascade
from pyoco_pipeline.cascade.sampling import continue_clips, taken_fps, taken_shape
from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.data.batches import to_float, to_uint8
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.generation import Material, generate_clips
from pyoco_pipeline.models import load_video_model, low_resolution_channels, save_video_model
from pyoco_pipeline.noise import IIDNoise

Both = pytest.mark.parametrize("name", ["interpolation", "sr256"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_cascade(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClipStore]:
    """Three clips of the stage before, for each stage; and long ones."""
    folder = tmp_path_factory.mktemp("before")
    return {
        "interpolation": make_store(folder / "base", 3, 0, frames=4, size=8),
        "sr256": make_store(folder / "interpolation", 3, 0, frames=10, size=8),
        "interpolation, long": make_store(folder / "long", 3, 0, frames=8, size=8),
        "sr256, long": make_store(folder / "longer", 3, 0, frames=22, size=8),
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, clips: dict[str, ClipStore]) -> TextEmbeddings:
    captions = [item.caption for store in clips.values() for item in store.take()]
    return make_embeddings(tmp_path_factory.mktemp("text"), captions)


def sampled(
    name: str,
    models: dict[str, Path],
    before: ClipStore,
    texts: TextEmbeddings,
    plan: PlannedStage | None = None,
    asked: GenerateSettings | None = None,
) -> list[CaptionedClip]:
    plan = plan or planned(name)
    return list(continue_clips(plan, models[name], before, asked or settings(), texts))


def pixels(items: list[CaptionedClip]) -> np.ndarray:
    return np.stack([item.clip.video for item in items]).astype(int)


class Recorder:
    """A denoiser of black clips that keeps what it is asked."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.cond: list[dict[str, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        self.x.append(x.clone())
        self.cond.append({key: value.clone() for key, value in cond.items()})
        return torch.zeros_like(x)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(sampling, "load_denoiser", lambda *_: made)
    return made


@Both
def test_a_stage_makes_each_clip_of_the_stage_before_in_its_own_shape(name, models, clips, texts) -> None:
    items = sampled(name, models, clips[name], texts)
    before = clips[name].take()
    assert [item.clip.video.shape for item in items] == [(*SHAPES[name], 3)] * 3
    assert [(i.clip.clip_id, i.caption) for i in items] == [(i.clip.clip_id, i.caption) for i in before]
    assert pixels(items).std() > 1
    assert all(item.clip.fps is None and item.clip.phash is None for item in items)


@Both
def test_a_clip_does_not_depend_on_its_batch(name, models, clips, texts) -> None:
    together = pixels(sampled(name, models, clips[name], texts))
    for size in (1, 3):
        asked = settings(**{name: {"batch_size": size}})
        other = pixels(sampled(name, models, clips[name], texts, asked=asked))
        assert abs(other - together).max() <= 1  # of 255: pixels on the border of rounding


@Both
def test_noise_is_drawn_anew_for_each_clip_seed_and_stage(name, clips, texts, models, recorder) -> None:
    def starts(seed: int) -> list[Tensor]:
        recorder.x.clear()
        asked = settings(seed=seed, **{name: {"batch_size": 1}})
        sampled(name, models, clips[name], texts, asked=asked)
        return recorder.x[::3]  # of three steps

    first, again, other = starts(0), starts(0), starts(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = [x.sum().item() for x in (*first, *other)]
    assert len(set(drawn)) == 6


def test_the_sample_and_the_augmentation_have_noise_of_their_own(clips, texts, models, recorder) -> None:
    sampled(
        "sr256", models, clips["sr256"], texts, asked=settings(sr256={"noise_level": 0.5, "batch_size": 1})
    )
    small = to_float(torch.from_numpy(clips["sr256"].videos(limit=1).copy()))
    noise = recorder.x[0] / 80
    inserted = (recorder.cond[0]["concat"] - 0.75**0.5 * low_resolution_channels(small, (16, 16))) / 0.5
    assert abs(inserted.std() - 1) < 0.05
    assert abs((noise * inserted).mean()) < 6 / noise.numel() ** 0.5


@pytest.mark.parametrize(
    "tile", [{"height": 8, "width": 8}, {"frames": 4}, {"frames": 5, "height": 10, "width": 12}]
)
def test_tiles_see_their_parts_of_one_field_of_noise_and_of_what_is_given(
    tile, clips, texts, models, recorder, monkeypatch
) -> None:
    whole = Recorder()
    monkeypatch.setattr(sampling, "load_denoiser", lambda *_: whole)
    sampled("sr256", models, clips["sr256"], texts, asked=settings(sr256={"batch_size": 3}))
    monkeypatch.setattr(sampling, "load_denoiser", lambda *_: recorder)
    overlap = dict.fromkeys(tile, 2)
    sampled(
        "sr256",
        models,
        clips["sr256"],
        texts,
        asked=settings(sr256={"batch_size": 3, "tile": tile, "overlap": overlap}),
    )
    seen = 0
    for x, cond in zip(recorder.x, recorder.cond, strict=True):
        frames, height, width = x.shape[2:]
        for t in range(0, 11 - frames):
            for h in range(0, 17 - height):
                for w in range(0, 17 - width):
                    place = (..., slice(t, t + frames), slice(h, h + height), slice(w, w + width))
                    if torch.equal(x, whole.x[0][place]):
                        assert torch.equal(cond["concat"], whole.cond[0]["concat"][place])
                        seen += 1
    tiles = len(recorder.x) // 3
    assert tiles > 1
    assert seen == tiles  # each tile of the first step is a part of the same noise
    assert {tuple(x.shape[2:]) for x in recorder.x} == {
        tuple(
            tile.get(axis) or size
            for axis, size in zip(("frames", "height", "width"), SHAPES["sr256"], strict=True)
        )
    }


def test_several_tiles_in_one_call_are_fewer_calls_for_the_same_clips(
    clips, texts, models, monkeypatch
) -> None:
    def made(at_once: int) -> np.ndarray:
        later = {"batch_size": 3, "tile": {"height": 8, "width": 8}, "tiles_at_once": at_once}
        return pixels(sampled("sr256", models, clips["sr256"], texts, asked=settings(sr256=later)))

    one, three = made(1), made(3)
    assert one.std() > 1
    assert abs(one - three).max() <= 1  # of 255: pixels on the border of rounding
    batches = []
    for at_once in (1, 3):
        recorder = Recorder()
        monkeypatch.setattr(sampling, "load_denoiser", lambda *_, recorder=recorder: recorder)
        made(at_once)
        batches.append([len(x) for x in recorder.x[:4]])
    assert batches == [[3, 3, 3, 3], [9, 3, 9, 3]]  # three clips, four tiles a step


def test_a_tile_as_large_as_the_clip_changes_nothing(clips, texts, models) -> None:
    whole = pixels(sampled("sr256", models, clips["sr256"], texts))
    same = settings(sr256={"tile": {"frames": 10, "height": 16, "width": None}})
    assert (pixels(sampled("sr256", models, clips["sr256"], texts, asked=same)) == whole).all()


def test_a_stage_of_images_alone_sees_every_frame_as_an_image(clips, texts, tmp_path) -> None:
    """So what its temporal modules hold is of no effect, however it is tiled."""

    def made(alone: bool, seed: int, **later: Any) -> np.ndarray:
        folder = tmp_path / f"{alone}{seed}"
        if not folder.exists():
            make_stage(folder, "sr256", CONDITIONS["sr256"], frame_by_frame=alone)
            model = load_video_model(folder)
            torch.manual_seed(seed)
            for parameter in model.temporal.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
            info = stage_info(
                stage="sr256", shape=SHAPES["sr256"], fps=12.0, condition=CONDITIONS["sr256"].config(),
                frame_by_frame=alone,
            )  # fmt: skip
            save_video_model(model, folder, info)
        asked = settings(sr256=later)
        return pixels(sampled("sr256", {"sr256": folder}, clips["sr256"], texts, asked=asked))

    assert (made(True, 1) == made(True, 2)).all()
    assert (made(True, 1, tile={"frames": 4}, overlap={"frames": 1}) == made(True, 1)).all()
    assert (made(False, 1) != made(False, 2)).any()


def test_a_stage_that_knows_rates_is_told_that_of_its_own_clips(clips, texts, tmp_path, monkeypatch) -> None:
    folder = make_stage(tmp_path / "sr256", "sr256", CONDITIONS["sr256"], fps=True)
    recorder = Recorder()
    monkeypatch.setattr(sampling, "load_denoiser", lambda *_: recorder)
    sampled("sr256", {"sr256": folder}, clips["sr256"], texts)
    assert recorder.cond[0]["fps"].tolist() == [RATES["sr256"]] * 2


def test_a_caller_is_not_left_in_inference_mode(clips, texts, models) -> None:
    later = continue_clips(planned("sr256"), models["sr256"], clips["sr256"], settings(), texts)
    next(later)
    assert not torch.is_inference_mode_enabled()
    base = generate_clips(models["base"], settings(), [""], texts, SHAPES["base"])
    next(base)
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


# --- Longer videos: windows of 10 frames that share 4 ---

LONG = {"frames": 22, "window": 10, "overlap": 4}
FIRSTS = (0, 6, 12)  # frames with which the windows begin


def windows(recorder: Recorder, steps: int = 3) -> list[dict[str, Tensor]]:
    return recorder.cond[::steps]


def test_each_window_is_given_its_own_key_frames_at_their_places(clips, texts, models, recorder) -> None:
    before = clips["interpolation, long"]
    asked = settings(interpolation={"noise_level": 0.0, "batch_size": 3})
    items = sampled("interpolation", models, before, texts, planned("interpolation", **LONG), asked)
    keys = to_float(torch.from_numpy(before.videos().copy()))
    assert len(windows(recorder)) == len(FIRSTS)
    for first, cond in zip(FIRSTS, windows(recorder), strict=True):
        concat = cond["concat"]
        assert torch.equal(concat[:, :3, ::STRIDE], keys[:, :, first // STRIDE :][:, :, :4])
        assert concat[0, 3, :, 0, 0].tolist() == [1, 0, 0] * 3 + [1]
        assert (concat[:, :, [1, 2, 4, 5, 7, 8]] == 0).all()
    assert {item.clip.video.shape for item in items} == {(22, 8, 8, 3)}


def test_each_window_is_given_the_same_moments_in_small(clips, texts, models, recorder) -> None:
    before = clips["sr256, long"]
    asked = settings(sr256={"noise_level": 0.0, "batch_size": 3})
    items = sampled("sr256", models, before, texts, planned("sr256", **LONG), asked)
    small = to_float(torch.from_numpy(before.videos().copy()))
    for first, cond in zip(FIRSTS, windows(recorder), strict=True):
        expected = low_resolution_channels(small[:, :, first : first + 10], (16, 16))
        assert torch.equal(cond["concat"], expected)
    assert {item.clip.video.shape for item in items} == {(22, 16, 16, 3)}


def test_windows_of_all_stages_make_a_video_of_the_planned_length(clips, texts, models, tmp_path) -> None:
    store = make_store(tmp_path / "ingested", 2, 2, frames=10, size=16)
    asked = settings(num_frames=8, overlap=2)
    base, interpolation, sr256 = plan_cascade(models, asked, ENCODER_SHA256, store)
    captions = [item.caption for item in clips["interpolation"].take(limit=2)]
    made = torch.stack(list(generate_clips(models["base"], asked, captions, texts, SHAPES["base"])))
    assert made.shape == (2, base.frames, 8, 8, 3)
    for plan, shape in ((interpolation, (22, 8, 8)), (sr256, (22, 16, 16))):
        before = Streamed(made, captions)
        items = list(continue_clips(plan, models[plan.name], before, asked, texts))
        made = torch.from_numpy(np.stack([item.clip.video for item in items]))
        assert made.shape == (2, *shape, 3)


class Streamed:
    """Clips in memory."""

    def __init__(self, videos: Tensor, captions: list[str]) -> None:
        self.videos, self.captions = videos, captions

    def clips(self) -> Iterator[CaptionedClip]:
        from pyoco_pipeline.data.clips import Clip

        for i, (video, caption) in enumerate(zip(self.videos, self.captions, strict=True)):
            yield CaptionedClip(Clip(f"{i}", video.numpy()), caption, "generated")


# --- Clips of the user ---


def own_clips(count: int = 2) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (*SHAPES["base"], 3), dtype=np.uint8) for _ in range(count)]


def edited(
    model: Path, texts: TextEmbeddings, material: Material, captions: list[str], **changes: Any
) -> np.ndarray:
    asked = settings(num_clips=len(captions), **changes)
    made = generate_clips(model, asked, captions, texts, SHAPES["base"], material=material)
    return torch.stack(list(made)).numpy().astype(int)


def test_a_clip_under_little_noise_comes_back_nearly_as_it_was(models, texts) -> None:
    own = own_clips()
    distance = [
        abs(edited(models["base"], texts, Material(own, sigma=sigma), ["", ""]) - np.stack(own)).mean()
        for sigma in (0.01, 1.0, 40.0)
    ]
    assert distance[0] < 2  # of 255
    assert distance[0] < distance[1] < distance[2]


def test_clips_of_the_user_are_taken_in_turn(models, texts) -> None:
    own = own_clips()
    made = edited(models["base"], texts, Material(own, sigma=0.01), [""] * 5)
    expected = np.stack([own[i % 2] for i in range(5)])
    assert abs(made - expected).mean() < 2


@pytest.mark.parametrize("kept", [(0,), (0, 1), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("is_given", [False, True], ids=["put in place", "given"])
def test_kept_frames_come_back_as_they_were_and_the_others_are_new(
    kept: tuple[int, ...], is_given: bool, models, texts, tmp_path
) -> None:
    model = models["base"]
    if is_given:
        masks = {"inpainting": 1.0, "nothing": 1.0}
        model = make_stage(tmp_path / "base", "base", FramesCondition(STRIDE, masks, 0.3, IIDNoise()))
    own = own_clips()
    made = edited(model, texts, Material(own, keep_frames=kept), ["", ""])
    rest = [i for i in range(4) if i not in kept]
    assert abs(made[:, list(kept)] - np.stack(own)[:, list(kept)]).max() <= 1
    assert all(abs(made[:, i] - np.stack(own)[:, i]).mean() > 5 for i in rest)


def test_a_base_stage_that_was_given_frames_is_given_those_that_are_kept(
    texts, tmp_path, monkeypatch
) -> None:
    from pyoco_pipeline import generation

    masks = {"prediction": 1.0, "nothing": 1.0}
    model = make_stage(tmp_path / "base", "base", FramesCondition(STRIDE, masks, 0.3, IIDNoise()))
    recorder, own = Recorder(), own_clips()
    monkeypatch.setattr(generation, "load_denoiser", lambda *_: recorder)
    edited(model, texts, Material(own, keep_frames=(0, 1)), ["", ""])
    concat = recorder.cond[0]["concat"]
    assert concat[:, 3, :, 0, 0].tolist() == [[1, 1, 0, 0]] * 2
    assert torch.equal(to_uint8(concat[:, :3, :2]), torch.from_numpy(np.stack(own))[:, :2])
    recorder.cond.clear()
    list(generate_clips(model, settings(), [""], texts, SHAPES["base"]))
    assert (recorder.cond[0]["concat"] == 0).all()


@Both
def test_a_later_stage_begins_with_the_users_clip_made_larger(name, models, clips, texts) -> None:
    asked = settings(video={"clips": "mine", "stage": name, "sigma": 0.01})
    made = pixels(sampled(name, models, clips[name], texts, asked=asked))
    own = to_float(torch.from_numpy(clips[name].videos().copy()))
    larger = (
        low_resolution_channels(own, (16, 16))
        if name == "sr256"
        else own.repeat_interleave(STRIDE, 2)[:, :, :10]
    )
    assert abs(made - to_uint8(larger).numpy().astype(int)).mean() < 2


def test_a_stage_says_what_it_takes(models) -> None:
    assert taken_shape(models["interpolation"]) == SHAPES["base"]
    assert taken_shape(models["sr256"]) == (10, 16 // SCALE, 16 // SCALE)
    assert taken_fps(models["interpolation"]) == RATES["base"]
    assert taken_fps(models["sr256"]) == RATES["sr256"]
