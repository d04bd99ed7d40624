"""What a model folder says its network predicts, and that training and sampling go by it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from pydantic import ValidationError
from tiny import make_unet, make_video_unet, stage_info, train_settings

from pyoco_pipeline.config import (
    GenerateSettings,
    InflateSettings,
    PretrainImageSettings,
    SamplerSettings,
    StageSettings,
)
from pyoco_pipeline.diffusion import EDM, Discrete, DiscreteDenoiser, EDMDenoiser
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.generation import generate_clips, open_denoiser
from pyoco_pipeline.models import load_stage_info, save_image_model, save_video_model
from pyoco_pipeline.models.parametrisation import check_channels, read_parametrisation, save_scheduler
from pyoco_pipeline.noise import MixedNoise
from pyoco_pipeline.pipelines.inflate.nodes import inflate_image_model
from pyoco_pipeline.training.objective import Objective
from pyoco_pipeline.training.settings import ParametrisationSettings, SigmaSettings
from pyoco_pipeline.training.stages import keep_model, train_image_model, train_video_model

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
UNET = {
    "block_out_channels": (8, 16),
    "attention_levels": (False, True),
    "attention_heads": 2,
    "norm_groups": 4,
}
CPU = torch.device("cpu")


def with_scheduler(folder: Path, scheduler: Any, **unet: Any) -> Path:
    """A folder of an image model as diffusers' pipelines have it."""
    save_image_model(make_unet(**unet), folder)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def edit_scheduler(folder: Path, **changes: Any) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def image_settings(**changes: Any) -> PretrainImageSettings:
    return PretrainImageSettings(
        **({"init": "scratch", "unet": UNET, "train": train_settings(steps=2)} | changes)
    )


# Reading


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        # Stable Diffusion 1.5 and 2.1, DeepFloyd IF, and an SD 2.1 of zero terminal SNR
        (PNDMScheduler(**SD, skip_prk_steps=True), Discrete("epsilon", **SD)),
        (DDIMScheduler(**SD, prediction_type="v_prediction"), Discrete("v_prediction", **SD)),
        (
            DDPMScheduler(
                beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True
            ),
            Discrete("epsilon", beta_schedule="squaredcos_cap_v2", learned_variance=True),
        ),
        (
            EulerDiscreteScheduler(**SD, prediction_type="v_prediction", rescale_betas_zero_snr=True),
            Discrete("v_prediction", rescale_betas_zero_snr=True, **SD),
        ),
        (
            DDPMScheduler(3, trained_betas=[0.1, 0.2, 0.3], prediction_type="sample"),
            Discrete("sample", 3, trained_betas=(0.1, 0.2, 0.3)),
        ),
    ],
    ids=["sd15", "sd21", "deepfloyd", "zero_snr", "given_betas"],
)
def test_a_pipelines_scheduler_says_it(tmp_path: Path, scheduler: Any, expected: Discrete) -> None:
    folder = with_scheduler(tmp_path, scheduler)
    assert read_parametrisation(folder) == expected
    assert read_parametrisation(folder / "unet") == expected


def test_keys_that_are_left_out_have_the_defaults_of_their_scheduler(tmp_path: Path) -> None:
    folder = with_scheduler(tmp_path, DDIMScheduler())
    path = folder / "scheduler" / "scheduler_config.json"
    for name, start, end in (
        ("DDIMScheduler", 1e-4, 0.02),
        ("HeunDiscreteScheduler", 0.00085, 0.012),
    ):
        path.write_text(json.dumps({"_class_name": name}))
        assert read_parametrisation(folder) == Discrete("epsilon", beta_start=start, beta_end=end)


def test_a_stage_says_it_before_its_scheduler_does(tmp_path: Path) -> None:
    folder = with_scheduler(tmp_path, DDIMScheduler(**SD))
    save_image_model(make_unet(), folder, stage_info())
    assert read_parametrisation(folder) == EDM()
    trained = Discrete("v_prediction", **SD)
    save_image_model(make_unet(), folder, stage_info(parametrisation=trained.config()))
    assert read_parametrisation(folder) == trained


def test_a_stage_from_before_parametrisations_is_edm(tmp_path: Path) -> None:
    save_image_model(make_unet(), tmp_path, stage_info())
    content = json.loads((tmp_path / "stage.json").read_text())
    del content["parametrisation"], content["sigma_range"]
    (tmp_path / "stage.json").write_text(json.dumps(content))
    assert load_stage_info(tmp_path) == stage_info()
    assert read_parametrisation(tmp_path) == EDM()


def test_a_video_model_that_says_nothing_was_inflated_from_edm(tmp_path: Path) -> None:
    save_video_model(make_video_unet(), tmp_path)
    assert read_parametrisation(tmp_path) == EDM()


@pytest.mark.parametrize(
    "parametrisation",
    [
        Discrete("v_prediction", rescale_betas_zero_snr=True, **SD),
        Discrete("epsilon", beta_schedule="squaredcos_cap_v2", learned_variance=True),
    ],
)
def test_a_kept_scheduler_is_read_back_and_loads_in_diffusers(
    tmp_path: Path, parametrisation: Discrete
) -> None:
    save_image_model(make_unet(), tmp_path)
    save_scheduler(tmp_path, parametrisation)
    assert read_parametrisation(tmp_path) == parametrisation
    theirs = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    bars = theirs.alphas_cumprod[:-1].double()
    torch.testing.assert_close(parametrisation.sigmas[:-1], ((1 - bars) / bars).sqrt(), rtol=1e-6, atol=0)


def test_the_user_says_it_where_the_folder_does_not(tmp_path: Path) -> None:
    save_image_model(make_unet(), tmp_path)
    with pytest.raises(
        UserError, match=r"does not say what its network predicts: .* set pretrain_image\.param"
    ):
        read_parametrisation(tmp_path)
    asked = ParametrisationSettings(kind="epsilon", **SD).parametrisation()
    assert read_parametrisation(tmp_path, asked) == Discrete("epsilon", **SD)
    assert read_parametrisation(tmp_path, ParametrisationSettings(kind="edm").parametrisation()) == EDM()


def test_the_user_may_correct_a_scheduler_but_not_a_stage(tmp_path: Path) -> None:
    folder = with_scheduler(tmp_path, DDIMScheduler(**SD))
    asked = Discrete("v_prediction", **SD)
    assert read_parametrisation(folder, asked) == asked
    save_image_model(make_unet(), folder, stage_info())
    with pytest.raises(UserError, match=r"was trained as EDM\(\), and Discrete\(kind='v_prediction'"):
        read_parametrisation(folder, asked)


# What does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "is of class EDMEulerScheduler, which is of no DDPM schedule: one of"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction': expected one of epsilon"),
        ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace': expected one of linear, scaled_linear"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0: expected a whole number of at least 2"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps is 'many'"),
        ({"beta_start": "low"}, "does not describe a schedule"),
        ({"beta_end": 3.0}, "beta_end 3.0: expected 0 < start <= end < 1"),
        ({"rescale_betas_zero_snr": True}, "epsilon says nothing about the clip"),
        ({"timestep_type": "continuous"}, "has timestep_type='continuous'"),
    ],
)  # fmt: skip
def test_a_scheduler_of_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = with_scheduler(tmp_path, DDIMScheduler(**SD))
    edit_scheduler(folder, **changes)
    with pytest.raises(UserError, match=message) as error:
        read_parametrisation(folder)
    assert "scheduler_config.json" in str(error.value)


def test_a_flow_matching_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler, which is of no DDPM schedule"):
        read_parametrisation(with_scheduler(tmp_path, FlowMatchEulerDiscreteScheduler()))


def test_a_scheduler_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    folder = with_scheduler(tmp_path, DDIMScheduler(**SD))
    path = folder / "scheduler" / "scheduler_config.json"
    for content, message in ((path.read_text()[:40], "is not JSON"), ("[]", "holds a list")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_parametrisation(folder)


LEARNED, FIXED = Discrete("epsilon", learned_variance=True), Discrete("epsilon")


@pytest.mark.parametrize(
    ("parametrisation", "inputs", "outputs", "channels"),
    [
        (FIXED, 3, 3, 3), (EDM(), 4, 4, 4), (LEARNED, 3, 6, 3),
        (FIXED, 9, 4, None), (LEARNED, 6, 6, None), (LEARNED, 3, 6, None),  # inputs concatenated, and none
    ],
)  # fmt: skip
def test_a_schedule_that_matches_its_weights_passes(
    parametrisation: Any, inputs: int, outputs: int, channels: int | None
) -> None:
    check_channels(parametrisation, make_unet(in_channels=inputs, out_channels=outputs), "model", channels)


@pytest.mark.parametrize(
    ("parametrisation", "inputs", "outputs", "channels", "message"),
    [
        (FIXED, 3, 6, 3, "6 channels out for clips of 3, without a learned variance.*variance_type learned"),
        (FIXED, 3, 6, None, "6 channels out for 3 channels in, without a learned variance"),
        (EDM(), 3, 6, 3, "6 channels out for clips of 3"),
        (LEARNED, 3, 3, 3, "3 channels out for clips of 3, with a learned variance"),
        (LEARNED, 3, 3, None, "3 channels out for 3 channels in, with a learned variance"),
        (FIXED, 3, 5, None, "5 channels out for 3 channels in"),
    ],
)
def test_a_schedule_that_does_not_match_its_weights_is_refused(
    parametrisation: Any, inputs: int, outputs: int, channels: int | None, message: str
) -> None:
    unet = make_unet(in_channels=inputs, out_channels=outputs)
    with pytest.raises(UserError, match=f"the schedule of model does not match its weights: {message}"):
        check_channels(parametrisation, unet, "model", channels)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "epsilon"}, "kind=epsilon needs a beta_schedule"),
        (
            {"kind": "epsilon", "beta_schedule": "linear"},
            "beta_schedule=linear needs beta_start and beta_end",
        ),
        ({"kind": "epsilon", **SD, "beta_end": 0.0001}, r"are not 0 < start <= end < 1"),
        ({"kind": "epsilon", **SD, "rescale_betas_zero_snr": True}, "needs kind=v_prediction or sample"),
        ({"kind": "edm", **SD}, "kind=edm takes no schedule, found beta_end, beta_schedule, beta_start"),
        ({"kind": "flow"}, "kind"),
    ],
)
def test_settings_of_no_parametrisation_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ParametrisationSettings(**settings)


def test_a_cosine_schedule_needs_no_ends() -> None:
    asked = ParametrisationSettings(kind="epsilon", beta_schedule="squaredcos_cap_v2")
    assert asked.parametrisation() == Discrete("epsilon", beta_schedule="squaredcos_cap_v2")


# Training and sampling go by it


def test_training_draws_only_noise_levels_that_the_network_knows() -> None:
    known = Discrete("epsilon", **SD)
    objective = Objective(MixedNoise(1.0), SigmaSettings(mean=0.0, std=5.0), parametrisation=known)
    shape, draw = torch.Size((4000, 1, 1, 1, 1)), torch.Generator().manual_seed(0)
    sigma = objective.draw(shape, torch.device("cpu"), draw).sigma
    low, high = known.sigma_limits
    assert low <= sigma.min() < 0.04
    assert 13 < sigma.max() <= high
    with pytest.raises(
        UserError, match=r"sigma has no noise level from 0\.029\d* to 14\.6\d*, which the network"
    ):
        Objective(MixedNoise(1.0), SigmaSettings(min=20.0), parametrisation=known)


def test_a_new_network_may_be_trained_to_predict_v(digits_store, digits_embeddings, tmp_path: Path) -> None:
    settings = image_settings(parametrisation={"kind": "v_prediction", **SD})
    model, info, history = train_image_model(
        settings, digits_store, digits_embeddings, tmp_path / "checkpoints"
    )
    assert info.parametrisation == Discrete("v_prediction", **SD).config()
    assert math.isfinite(history[-1]["loss"])
    keep_model(tmp_path / "image", model, info, tmp_path / "checkpoints")
    assert load_stage_info(tmp_path / "image") == info
    assert DDPMScheduler.from_pretrained(tmp_path / "image", subfolder="scheduler").config.beta_end == 0.012


def test_a_deepfloyd_like_model_goes_through_all_stages(
    digits_store, digits_embeddings, tmp_path: Path
) -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    pretrained = with_scheduler(tmp_path / "pretrained", scheduler, out_channels=6)
    expected = Discrete("epsilon", beta_schedule="squaredcos_cap_v2", learned_variance=True)

    settings = image_settings(init=str(pretrained))
    model, info, _ = train_image_model(
        settings, digits_store, digits_embeddings, tmp_path / "image_checkpoints"
    )
    keep_model(tmp_path / "image", model, info, tmp_path / "image_checkpoints")
    assert read_parametrisation(tmp_path / "image") == expected

    inflated = tmp_path / "inflated"
    inflated.mkdir()
    inflate_image_model(InflateSettings(), tmp_path / "image")(inflated)
    assert read_parametrisation(inflated) == expected

    stage = StageSettings(noise={"kind": "mixed", "alpha": 1.0}, train=train_settings(steps=2))
    video, info, _ = train_video_model(
        "base", stage, inflated, digits_store, digits_embeddings, tmp_path / "checkpoints"
    )
    keep_model(tmp_path / "base", video, info, tmp_path / "checkpoints")

    generate = GenerateSettings(num_clips=1, sampler=SamplerSettings(solver="euler", steps=4))
    denoise = open_denoiser(tmp_path / "base", generate, CPU)
    assert isinstance(denoise, DiscreteDenoiser)
    assert denoise.sigma_limits == expected.sigma_limits
    caption = next(iter(digits_store.take("test"))).caption
    clips = list(
        generate_clips(tmp_path / "base", generate, [caption], digits_embeddings, digits_store.shape)
    )
    assert clips[0].shape == (4, 8, 8, 3)

    below = GenerateSettings(num_clips=1, sampler=SamplerSettings(sigma_min=0.002))
    with pytest.raises(
        UserError, match=r"generate\.sampler does not fit the model: sigma_min is 0\.002: the model"
    ):
        list(generate_clips(tmp_path / "base", below, [caption], digits_embeddings, digits_store.shape))


def test_an_edm_stage_is_sampled_as_ever(tmp_path: Path) -> None:
    save_video_model(make_video_unet(), tmp_path, stage_info(sigma_data=0.3))
    denoise = open_denoiser(tmp_path, GenerateSettings(num_clips=1), CPU)
    assert isinstance(denoise, EDMDenoiser)
    assert (denoise.sigma_data, denoise.sigma_min, denoise.sigma_max) == (0.3, 0.002, 80.0)


def test_a_run_is_another_run_with_another_parametrisation(
    digits_store, digits_embeddings, tmp_path: Path
) -> None:
    def train(**changes: Any) -> None:
        settings = image_settings(train=train_settings(steps=4, checkpoint_every=2), **changes)
        train_image_model(settings, digits_store, digits_embeddings, tmp_path)

    train()
    with pytest.raises(UserError, match=r"holds an unfinished run .* with parametrisation"):
        train(parametrisation={"kind": "epsilon", **SD})


def test_inflating_a_model_that_says_nothing_is_refused(tmp_path: Path) -> None:
    save_image_model(make_unet(), tmp_path)
    with pytest.raises(UserError, match="does not say what its network predicts"):
        inflate_image_model(InflateSettings(), tmp_path)
