"""What does not fit together in a cascade is said in one sentence, before anything is sampled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cascades import CONDITIONS, RATES, SHAPES, change, make_cascade, make_stage, settings
from tiny import ENCODER_SHA256, make_store, make_unet, stage_info

from pyoco_pipeline.cascade.conditions import FramesCondition, LowResolutionCondition
from pyoco_pipeline.cascade.folders import write_none
from pyoco_pipeline.cascade.plan import PlannedStage, as_json, from_json, plan_cascade
from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import inflate, save_video_model
from pyoco_pipeline.noise import CovarianceNoise, IIDNoise, MixedNoise

Change = Callable[[dict[str, Path]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_cascade(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    """The clips that the last stage makes."""
    return make_store(tmp_path_factory.mktemp("clips"), 2, 2, frames=10, size=16)


@pytest.fixture
def models(made: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A cascade that a test may spoil."""
    for name, folder in made.items():
        shutil.copytree(folder, tmp_path / name)
    return {name: tmp_path / name for name in made}


def plan(
    models: dict[str, Path], store: ClipStore, asked: GenerateSettings | None = None
) -> list[PlannedStage]:
    return plan_cascade(models, asked or settings(), ENCODER_SHA256, store)


def test_a_cascade_that_fits_is_planned_in_its_order(made: dict[str, Path], store: ClipStore) -> None:
    stages = plan(made, store)
    assert [stage.name for stage in stages] == list(SHAPES)
    assert {stage.name: (stage.frames, stage.height, stage.width) for stage in stages} == SHAPES
    assert {stage.name: stage.fps for stage in stages} == RATES
    assert from_json(as_json(stages)) == stages


def test_the_last_stage_ends_it_whatever_is_wrong_behind(models: dict[str, Path], store: ClipStore) -> None:
    shutil.rmtree(models["sr256"])
    models["sr256"].mkdir()
    stages = plan(models, store, settings(last_stage="interpolation"))
    assert [stage.name for stage in stages] == ["base", "interpolation"]


def test_clips_of_the_user_begin_it_where_they_go_into(made: dict[str, Path], store: ClipStore) -> None:
    stages = plan(made, store, settings(video={"clips": "mine", "stage": "sr256"}))
    assert [stage.name for stage in stages] == ["sr256"]


def test_windows_of_all_stages_are_of_the_same_moments(made: dict[str, Path], store: ClipStore) -> None:
    base, interpolation, sr256 = plan(made, store, settings(num_frames=8, overlap=2))
    assert (base.frames, base.window, base.overlap) == (8, 4, 2)
    assert (interpolation.frames, interpolation.window, interpolation.overlap) == (22, 10, 4)
    assert (sr256.frames, sr256.window, sr256.overlap) == (22, 10, 4)
    assert (base.frames - base.window) // (base.window - base.overlap) == (22 - 10) // (10 - 4)


def edit(name: str, **values: Any) -> Change:
    return lambda models: change(models[name], **values)


def remove(name: str, file: str) -> Change:
    return lambda models: (models[name] / file).unlink()


def cut_short(models: dict[str, Path]) -> None:
    path = models["sr256"] / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_base(models: dict[str, Path]) -> None:
    shutil.rmtree(models["base"])
    write_none(models["base"], stage="base")


def with_condition(name: str, condition: Any) -> Change:
    return edit(name, condition=condition.config())


def relative(models: dict[str, Path]) -> None:
    shutil.rmtree(models["base"])
    model = inflate(make_unet(), position="relative", max_frames=3)
    save_video_model(model, models["base"], stage_info(fps=4.0))


PREDICTS = FramesCondition(3, {"prediction": 1.0}, 0.3, IIDNoise())
LATENTS = "a" * 64
MISFITS: list[tuple[Change, dict[str, Any], str]] = [
    # The stages
    (without_base, {}, r"the cascade has no stage base, with which it begins: set finetune_video\.base"),
    (edit("sr256"), {"last_stage": "sr1024"}, r"last_stage=sr1024 is no stage of this cascade, which has base, inter"),
    (edit("sr256"), {"video": {"clips": "x", "stage": "sr1024"}}, r"video\.stage=sr1024 is not among the stages"),
    (edit("sr256"), {"video": {"clips": "x", "stage": "sr256"}, "last_stage": "base"}, r"stage=sr256 is not among"),
    # Their weights
    (remove("interpolation", "stage.json"), {}, r"interpolation does not say what it was trained for: stage\.json"),
    (remove("base", "unet/diffusion_pytorch_model.safetensors"), {}, r"model\.safetensors is missing: train the st"),
    (remove("sr256", "temporal.safetensors"), {}, r"sr256/temporal\.safetensors is missing"),
    (remove("sr256", "temporal.json"), {}, r"sr256 holds no video model: temporal\.json is missing"),
    (remove("sr256", "conditioning.safetensors"), {}, r"sr256/conditioning\.safetensors is missing"),
    (cut_short, {}, r"sr256/unet/.*safetensors can't be read .*: put the file back"),
    # What they make of each other
    (edit("sr256", condition=None), {}, r"stage sr256 takes nothing of the stage before it, interpolation"),
    (edit("sr256", shape=(10, 24, 24)), {}, r"sr256 was trained on .* \(10, 24, 24\), but clips 2 times larger .* 16"),
    (edit("sr256", shape=(8, 16, 16)), {}, r"2 times larger than those of interpolation, \(10, 8, 8\), are \(10, 16"),
    (edit("interpolation", shape=(9, 8, 8)), {}, r"with 2 new frames in each gap of those of base, \(4, 8, 8\), are"),
    (edit("interpolation", fps=8.0), {}, r"interpolation was trained at 8 frames per second, but 3 times .* are 12"),
    (with_condition("interpolation", PREDICTS), {}, r"interpolation was trained without masks of interpolation"),
    (edit("sr256", sigma_range=(0.0, 1.0)), {}, r"sr256 is an expert for a part of the noise levels"),
    (edit("sr256"), {"sr256": {"noise_level": 0.6}}, r"generate\.sr256\.noise_level=0\.6 is above the 0\.5"),
    # Their spaces
    (edit("sr256", text_encoder_sha256="0" * 64), {}, r"stage sr256 was trained with another text encoder"),
    (edit("sr256", autoencoder_sha256=LATENTS), {}, r"sr256 samples latents of .* and stage base pixels: the stages"),
    (lambda models: [change(models[n], autoencoder_sha256=LATENTS) for n in SHAPES] and None, {},
     r"stage base samples latents of the autoencoder aaaaaaaaaaaa… and ingest made pixels"),
    (edit("base", shape=(4, 6, 6)), {"last_stage": "base"}, r"base was trained on clips .* \(4, 6, 6\), the ingested"),
    # How they are to sample
    (edit("sr256"), {"sr256": {"noise": {"kind": "iid"}}}, r"generate\.sr256\.noise is .* trained with MixedNoise"),
    (edit("base"), {"noise": {"kind": "iid"}}, r"^generate\.noise is .* trained with MixedNoise"),
    (edit("sr256"), {"sr256": {"sampler": {"sigma_max": 0.001}}}, r"generate\.sr256\.sampler does not fit the model"),
    (edit("sr256"), {"sr256": {"tile": {"height": 4}, "overlap": {"height": 4}}}, r"generate\.sr256\.tile and overlap"),
    (relative, {"last_stage": "base"}, r"stage base makes clips of 4 frames, and its relative positions go up to 3"),
    # The user's clips
    (edit("base"), {"video": {"clips": "x", "keep_frames": [0, 4]}}, r"keep_frames has 4, .* makes frames 0 to 3"),
    (edit("base"), {"video": {"clips": "x", "sigma": 0.001}}, r"video\.sigma=0\.001 does not fit the model"),
    (edit("base"), {"video": {"clips": "x", "stage": "sr256", "sigma": 0.001}}, r"video\.sigma=0\.001 does not fit"),
    (with_condition("base", LowResolutionCondition(2, 0.1, IIDNoise())), {"last_stage": "base"},
     r"stage base was trained to enlarge clips and has none to begin with"),
    (with_condition("base", PREDICTS), {"last_stage": "base"}, r"base was never given nothing .*\.nothing a share"),
    (with_condition("base", PREDICTS), {"last_stage": "base", "video": {"clips": "x", "keep_frames": [2]}},
     r"base was never given just frames 2 in training: .*masks\.inpainting or \.prediction a share"),
    # Longer videos
    (edit("base"), {"num_frames": 7, "overlap": 2}, r"num_frames is 7, out of reach for windows of 4 .* 6 or 8"),
    (edit("base"), {"num_frames": 3}, r"num_frames is 3, out of reach .* nearest is 4"),
    (edit("base"), {"num_frames": 8, "overlap": 4}, r"overlap is 4: expected 0 <= overlap < 4"),
    (edit("base"), {"num_frames": 8, "overlap": 0}, r"overlap=0 leaves stage interpolation nothing .* 1 or more"),
    (edit("sr256", noise=CovarianceNoise([1.0, 0.5] + [0.0] * 8).config()), {"num_frames": 8},
     r"stage sr256 has noise of CovarianceNoise\(.*\), which ends .* needs iid, mixed or progressive"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "asked", "message"), MISFITS, ids=[message[:50] for *_, message in MISFITS]
)
def test_what_does_not_fit_is_said_in_one_sentence(
    spoil: Change, asked: dict[str, Any], message: str, models: dict[str, Path], store: ClipStore
) -> None:
    spoil(models)
    with pytest.raises(UserError, match=message) as raised:
        plan(models, store, settings(**asked))
    assert "\n" not in str(raised.value)


def test_another_prior_may_be_asked_for_and_is_planned_with(made: dict[str, Path], store: ClipStore) -> None:
    """Also one that goes on, for a stage whose own does not."""
    other = {"noise": {"kind": "mixed", "alpha": 2.0}, "allow_other_prior": True}
    stages = plan(made, store, settings(sr256=other, num_frames=8))
    assert stages[2].prior == str(MixedNoise(2.0))


def test_blocks_of_pixels_are_not_cut_by_tiles(models: dict[str, Path], store: ClipStore) -> None:
    shutil.rmtree(models["sr256"])
    unet = make_unet(in_channels=12, out_channels=12)
    model = inflate(unet, concat_channels=12, noise_level=True)
    info = stage_info(stage="sr256", shape=SHAPES["sr256"], fps=12.0, condition=CONDITIONS["sr256"].config())
    save_video_model(model, models["sr256"], info)
    assert plan(models, store, settings(sr256={"tile": {"height": 6, "width": 8}}))
    with pytest.raises(
        UserError, match=r"generate\.sr256\.tile\.width=7 is no multiple of 2, the side of the bl"
    ):
        plan(models, store, settings(sr256={"tile": {"height": 6, "width": 7}}))


def test_a_base_stage_on_clips_of_its_own_need_not_be_made_of_the_ingested_ones(
    models: dict[str, Path], store: ClipStore, tmp_path: Path
) -> None:
    small = make_store(tmp_path / "small", 2, 2)
    change(models["base"], shape=(4, 6, 6), clips="elsewhere")
    base = plan(models, small, settings(last_stage="base"))[0]
    assert (base.frames, base.height, base.width) == (4, 6, 6)


def test_a_stage_that_is_given_frames_or_nothing_may_be_the_base(tmp_path: Path, store: ClipStore) -> None:
    both = FramesCondition(3, {"prediction": 1.0, "nothing": 1.0}, 0.3, IIDNoise())
    models = {"base": make_stage(tmp_path / "base", "base", both)}
    for asked in (
        settings(),
        settings(video={"clips": "x", "keep_frames": [0, 1]}),
        settings(video={"clips": "x", "sigma": 2.0}),
    ):
        assert [stage.name for stage in plan(models, store, asked)] == ["base"]


def test_nothing_is_read_of_the_weights(made: dict[str, Path], store: ClipStore, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_: pytest.fail("weights were read"))
    assert plan(made, store)
