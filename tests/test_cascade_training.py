"""Training a stage that is given frames, or the clip in small: what it starts from, sees, and keeps."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import (
    make_batches,
    make_embeddings,
    make_store,
    make_unet,
    make_video_unet,
    perturb,
    stage_info,
    text_condition,
    train_settings,
)
from torch import Tensor, nn

from pyoco_pipeline.cascade.conditions import FramesCondition, LowResolutionCondition
from pyoco_pipeline.cascade.sampling import given
from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.data.batches import to_float
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.diffusion import sample
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import (
    InflationOptions,
    VideoUNet,
    inflate,
    load_stage_info,
    load_video_model,
    save_image_model,
    save_video_model,
)
from pyoco_pipeline.models.trainable import LoraOptions, choose_trainable, lora_options
from pyoco_pipeline.noise import IIDNoise, MixedNoise
from pyoco_pipeline.pipelines.samples import SampleSheet
from pyoco_pipeline.training import stages
from pyoco_pipeline.training.initial_model import initial_video_model
from pyoco_pipeline.training.objective import Objective
from pyoco_pipeline.training.settings import SigmaSettings
from pyoco_pipeline.training.trainer import train

CPU = torch.device("cpu")
FRAMES = {"kind": "frames", "key_stride": 3, "masks": {"interpolation": 1, "prediction": 1, "nothing": 1}}
SMALLER = {"kind": "low_resolution", "scale": 2}
CONDITIONS = pytest.mark.parametrize("condition", [FRAMES, SMALLER], ids=["frames", "low_resolution"])
SMALL_UNET = {
    "block_out_channels": (8, 16),
    "attention_levels": (False, True),
    "attention_heads": 2,
    "norm_groups": 4,
}


@pytest.fixture(scope="module")
def inflated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inflated image model whose temporal modules do something."""
    folder = tmp_path_factory.mktemp("inflated")
    save_video_model(make_video_unet(), folder)
    return folder


def stage(
    condition: dict[str, Any] | None, train: dict[str, Any] | None = None, **changes: Any
) -> StageSettings:
    settings = train_settings(**({"steps": 4, "log_every": 1} | (train or {})))
    mixed = {"kind": "mixed", "alpha": 1.0}
    return StageSettings(**({"condition": condition, "noise": mixed, "train": settings} | changes))


def weights(model: VideoUNet) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(
    settings: StageSettings, init: Path, store: ClipStore, texts: TextEmbeddings, folder: Path, **more: Any
):
    return stages.train_video_model("sr256", settings, init, store, texts, folder, **more)


@CONDITIONS
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_stage_trains_on_clips_and_images_and_says_what_it_is_given(
    condition, precision: str, inflated, digits_store, digits_embeddings, tmp_path
) -> None:
    settings = stage(condition, {"image_share": 0.5, "precision": precision})
    model, info, history = run(settings, inflated, digits_store, digits_embeddings, tmp_path)
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    assert info.condition == stages.stage_condition(settings).config()
    assert (info.shape, info.fps, info.frame_by_frame) == ((4, 8, 8), 8.0, False)
    new = model.image_model.conv_in.weight[:, 3:]
    assert new.shape[1] == model.options.concat_channels == (4 if condition is FRAMES else 3)
    assert new.abs().max() > 0  # zeros before


@CONDITIONS
@torch.no_grad()
def test_a_stages_first_model_is_the_inflated_one_whatever_it_is_given(
    condition, inflated, digits_store, digits_embeddings
) -> None:
    settings = stage(condition)
    model, _ = initial_video_model(
        settings, inflated, digits_store, digits_embeddings, (8, 8), stages.stage_condition(settings), None
    )
    before = load_video_model(inflated).eval()
    x, t, text = torch.randn(2, 3, 4, 8, 8), torch.tensor([10.0, -50.0]), text_condition(2)
    concat = 100 * torch.randn(2, model.options.concat_channels, 4, 8, 8)
    out = model.eval()(x, t, concat=concat, noise_level=torch.tensor([0.1, 0.9]), **text).sample
    torch.testing.assert_close(out, before(x, t, **text).sample, atol=1e-5, rtol=1e-5)


@CONDITIONS
def test_a_stopped_run_goes_on_to_the_same_weights_bit_for_bit(
    condition, inflated, digits_store, digits_embeddings, tmp_path
) -> None:
    crop = {"frames": 4, "height": 6, "width": 4}
    settings = stage(condition, {"steps": 6, "image_share": 0.34, "sample_every": 3}, crop=crop)
    whole, _, _ = run(settings, inflated, digits_store, digits_embeddings, tmp_path / "whole")

    def stop(step: int, _denoise: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, inflated, digits_store, digits_embeddings, tmp_path / "stopped", validate=stop)
    went_on, _, history = run(settings, inflated, digits_store, digits_embeddings, tmp_path / "stopped")
    assert history[2]["step"] == 3  # kept from before the stop
    assert same(weights(went_on), weights(whole))


@CONDITIONS
def test_the_loss_of_a_batch_is_that_of_its_parts(
    condition, inflated, digits_store, digits_embeddings, tmp_path
) -> None:
    def first_loss(accumulation: int) -> float:
        settings = stage(condition, {"steps": 1, "warmup_steps": 0, "accumulation": accumulation})
        folder = tmp_path / str(accumulation)
        _, _, history = run(settings, inflated, digits_store, digits_embeddings, folder)
        return history[0]["loss"]

    assert first_loss(1) == pytest.approx(first_loss(4), rel=1e-5)


def identity_of(settings: StageSettings, monkeypatch, *args: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def catch(*_: Any, identity: dict[str, Any], **__: Any) -> list[dict[str, Any]]:
        seen.update(identity)
        return [{"step": 1}]

    monkeypatch.setattr(stages, "train", catch)
    stages.train_video_model("base", settings, *args)
    return seen


def test_a_run_without_view_and_condition_is_the_run_that_it_was_before_there_were_any(
    monkeypatch, inflated, digits_store, digits_embeddings, tmp_path
) -> None:
    """So that checkpoints of earlier versions go on: nothing new in what names the run, nor in what it draws."""
    place = inflated, digits_store, digits_embeddings, tmp_path
    plain = identity_of(stage(None, clip={"frames": 4}), monkeypatch, *place)
    assert set(plain) == {
        "noise", "sigma", "sigma_data", "data_sha256", "text_encoder_sha256", "max_tokens", "initial_weights_sha256",
    }  # fmt: skip
    seen = identity_of(stage(FRAMES, crop={"height": 4}), monkeypatch, *place)
    assert seen["view"] == {"stride": 1, "scale": 1, "crop": [4, 4, 8]}
    assert seen["condition"]["key_stride"] == 3

    objective, shape = Objective(MixedNoise(1.0), SigmaSettings()), torch.Size((4, 3, 4, 8, 8))
    drawn = objective.draw(shape, CPU, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(drawn.sigma, objective.law().sample(4, generator=generator))
    assert torch.equal(drawn.noise, MixedNoise(1.0).sample(shape, generator=generator))
    beside = Objective(MixedNoise(1.0), SigmaSettings(), condition=stages.stage_condition(stage(FRAMES)))
    assert torch.equal(beside.draw(shape, CPU, torch.Generator().manual_seed(1)).noise, drawn.noise)


@CONDITIONS
@pytest.mark.parametrize("patch", [1, 2])
def test_a_stage_starts_from_nothing(
    condition, patch: int, inflated, digits_store, digits_embeddings, tmp_path
):
    """Also one of blocks of pixels, which takes blocks of what it is given."""
    settings = stage(condition, init="scratch", unet=SMALL_UNET | {"patch": patch}, clip={"height": 8})
    model, _, _ = run(settings, Path("nowhere"), digits_store, digits_embeddings, tmp_path)
    beside = 4 if condition is FRAMES else 3
    assert model.image_model.config.in_channels == patch**2 * (3 + beside)
    assert model.image_model.config.sample_size == 8 // patch


def test_a_stage_that_starts_from_nothing_is_as_large_as_its_own_clips(digits_embeddings, tmp_path) -> None:
    store = make_store(tmp_path / "clips", size=16)
    texts = make_embeddings(tmp_path / "text", [item.caption for item in store.take()])
    settings = stage(
        None, {"steps": 1, "warmup_steps": 0}, init="scratch", unet=SMALL_UNET, clip={"height": 8, "width": 8}
    )
    model, info, _ = run(settings, Path("nowhere"), store, texts, tmp_path / "checkpoints")
    assert model.image_model.config.sample_size == 8
    assert info.shape == (4, 8, 8)


def test_a_stage_starts_from_a_folder_of_an_image_model(digits_store, digits_embeddings, tmp_path) -> None:
    save_image_model(make_unet(), tmp_path / "image", stage_info(stage="image"))
    settings = stage(SMALLER, init=str(tmp_path / "image"))
    options = InflationOptions(attention=False, fps=True)
    model, _, _ = run(
        settings, Path("nowhere"), digits_store, digits_embeddings, tmp_path / "a", inflation=options
    )
    assert (model.options.attention, model.options.fps, model.options.concat_channels) == (False, True, 3)


def test_low_rank_additions_stay_when_a_stage_gets_inputs(
    inflated, digits_store, digits_embeddings, tmp_path
) -> None:
    model = load_video_model(inflated)
    choose_trainable(model, "lora", LoraOptions(2, 4.0))
    perturb(model.image_model.mid_block)
    save_video_model(model, tmp_path / "base", stage_info())
    settings = stage(SMALLER, init=str(tmp_path / "base"), trainable="lora", lora={"rank": 2, "alpha": 4.0})
    trained, info, _ = run(
        settings, Path("nowhere"), digits_store, digits_embeddings, tmp_path / "checkpoints"
    )
    stages.keep_model(tmp_path / "sr256", trained, info, tmp_path / "checkpoints")
    loaded = load_video_model(tmp_path / "sr256")
    assert lora_options(loaded) == LoraOptions(2, 4.0)
    assert same(weights(loaded), weights(trained))
    assert loaded.image_model.conv_in.weight[:, 3:].abs().max() > 0
    assert load_stage_info(tmp_path / "sr256") == info


def test_a_stage_of_its_own_kind_is_trained_further(
    inflated, digits_store, digits_embeddings, tmp_path
) -> None:
    first, info, _ = run(stage(FRAMES), inflated, digits_store, digits_embeddings, tmp_path / "a")
    stages.keep_model(tmp_path / "first", first, info, tmp_path / "a")
    again = stage(FRAMES | {"key_stride": 3}, init=str(tmp_path / "first"))
    start, _ = initial_video_model(
        again, inflated, digits_store, digits_embeddings, (8, 8), stages.stage_condition(again), None
    )
    assert same(weights(start), weights(first))
    with pytest.raises(UserError, match="takes 4 concatenated channels, and this stage gives 3"):
        run(
            stage(SMALLER, init=str(tmp_path / "first")),
            inflated,
            digits_store,
            digits_embeddings,
            tmp_path / "b",
        )
    with pytest.raises(
        UserError, match=r"first is a model that is given another clip .* set the stage's condition"
    ):
        run(
            stage(None, init=str(tmp_path / "first")),
            inflated,
            digits_store,
            digits_embeddings,
            tmp_path / "c",
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": FRAMES | {"key_stride": 2}}, r"clip\.frames=4 does not end on a key frame: .* such as 3"),
        ({"condition": FRAMES | {"key_stride": 7}}, r"clip\.frames=4 does not end on a key frame: .* such as 8"),
        ({"condition": FRAMES, "crop": {"frames": 3}}, r"crop\.frames=3 does not end on a key frame"),
        ({"condition": FRAMES, "crop": {"frames": 1}}, r"clips of one frame with condition\.kind=frames"),
        ({"condition": SMALLER | {"scale": 3}}, r"clips of 8x8 can't be made condition\.scale=3 times smaller"),
        ({"condition": SMALLER, "crop": {"width": 5}}, r"clips of 8x5 can't be made condition\.scale=2"),
        ({"condition": SMALLER | {"noise": {"kind": "empirical", "correlation": (1, 0.5)}}},
         r"condition\.noise does not fit clips of 4 frames"),
        ({"condition": None, "noise": {"kind": "empirical", "correlation": (1, 0.5)}},
         r"^noise does not fit clips of 4 frames: .* at most 2"),
    ],
)  # fmt: skip
def test_what_a_stage_can_not_be_given_is_said_before_it_trains(
    settings, message: str, inflated, digits_store, digits_embeddings, tmp_path
) -> None:
    with pytest.raises(UserError, match=message):
        run(stage(**settings), inflated, digits_store, digits_embeddings, tmp_path)


def test_images_alone_are_not_given_frames(inflated, digits_store, digits_embeddings, tmp_path) -> None:
    with pytest.raises(UserError, match=r"train\.image_share=1 with condition\.kind=frames"):
        run(stage(FRAMES, {"image_share": 1}), inflated, digits_store, digits_embeddings, tmp_path)


def test_relative_positions_reach_over_the_whole_clip_that_is_sampled(
    digits_store, digits_embeddings, tmp_path
) -> None:
    save_video_model(inflate(make_unet(), position="relative", max_frames=2), tmp_path / "inflated")
    settings = stage(None, crop={"frames": 2})
    with pytest.raises(UserError, match=r"clips of 4 frames, .* up to inflate\.max_frames=2"):
        run(settings, tmp_path / "inflated", digits_store, digits_embeddings, tmp_path / "a")


def test_frames_that_are_known_by_their_number_are_not_cropped(
    digits_store, digits_embeddings, tmp_path
) -> None:
    save_video_model(inflate(make_unet(), position="sinusoidal"), tmp_path / "inflated")
    arguments = (tmp_path / "inflated", digits_store, digits_embeddings)
    with pytest.raises(
        UserError, match=r"crop\.frames=2 of the stage's 4 frames with inflate\.position=sinusoidal"
    ):
        run(stage(None, crop={"frames": 2}), *arguments, tmp_path / "a")
    run(stage(None, crop={"frames": 4, "height": 4, "width": 4}), *arguments, tmp_path / "b")


@CONDITIONS
@pytest.mark.parametrize("image_share", [0.0, 1.0])
def test_validation_shows_whole_clips_given_what_the_stage_is_given(
    condition, image_share: float, inflated, digits_store, digits_embeddings, tmp_path
) -> None:
    if condition is FRAMES and image_share:
        pytest.skip("an image is given no frames")
    crop = {"height": 4, "width": 4}
    settings = stage(condition, {"image_share": image_share, "sample_every": 2}, crop=crop)
    sheet = SampleSheet.of_stage(tmp_path / "samples", digits_store, digits_embeddings, settings)
    run(settings, inflated, digits_store, digits_embeddings, tmp_path / "a", validate=sheet)
    assert sheet.shape == (4, 8, 8)
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2


def test_a_stage_trained_on_images_alone_leaves_its_temporal_modules(
    inflated, digits_store, digits_embeddings, tmp_path
) -> None:
    model, info, _ = run(
        stage(SMALLER, {"image_share": 1}), inflated, digits_store, digits_embeddings, tmp_path
    )
    assert info.frame_by_frame
    before = load_video_model(inflated).temporal.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.temporal.state_dict().items())


class TwoGains(nn.Module):
    """The smallest network that can do it: a sum of the noisy clip and what is given, each times a learnt gain."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor, timestep: Tensor, *, concat: Tensor, noise_level: Tensor, **_: Any) -> Any:
        told = torch.stack([timestep / 250, noise_level], dim=1)
        of_x, of_given = self.gains(told).view(-1, 2, 1, 1, 1, 1).unbind(1)
        return SimpleNamespace(sample=of_x * x + of_given * concat[:, :3])


@pytest.mark.parametrize("level", [0.2, 0.4])
def test_frames_given_at_all_places_are_returned_to_within_their_noise(
    level: float, digits_store, digits_embeddings, tmp_path
) -> None:
    """After a short training, on clips that it has not seen.

    A draw given noisy frames is as far from their expectation as the true frames are, which is no farther than the
    noise: √2 level from each other with an exact denoiser, and here a little more.
    """
    condition = FramesCondition(1, {"interpolation": 1.0}, 0.5, IIDNoise())
    settings = train_settings(
        steps=500, batch_size=8, learning_rate=2e-2, log_every=100, checkpoint_every=1000
    )
    network, prior = TwoGains(), MixedNoise(1.0)
    objective = Objective(prior, SigmaSettings(mean=0.0, std=2.0), 0.5, condition=condition)
    batches = make_batches(digits_store, digits_embeddings, settings)
    train(network, batches, objective, settings, stage="test", checkpoints=tmp_path, identity={})

    clips = to_float(torch.from_numpy(digits_store.videos("test", 4).copy()))
    inputs = given(condition, clips, (4, 8, 8), level, [mix_seed(i) for i in range(4)])
    draw = torch.Generator().manual_seed(0)
    made = sample(objective.denoiser(network.eval()), prior, clips.shape, steps=12, generator=draw, **inputs)
    errors = [(made - clips.roll(k, 0)).square().mean().sqrt() for k in range(4)]
    assert errors[0] < 1.2 * math.sqrt(2) * level
    assert min(range(4), key=errors.__getitem__) == 0  # and not another clip


def test_a_low_resolution_condition_of_a_stage_is_what_its_settings_say() -> None:
    made = stages.stage_condition(
        stage(SMALLER | {"max_noise_level": 0.4, "noise": {"kind": "mixed", "alpha": 2}})
    )
    assert made == LowResolutionCondition(2, 0.4, MixedNoise(2.0))
