"""Experts as trained stages: trained on a range of sigma from a shared model, and sampled as one ensemble."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import TEXT_DIM, make_unet, make_video_unet, stage_info, train_settings

from pyoco_pipeline import generation
from pyoco_pipeline.config import GenerateSettings, StageSettings
from pyoco_pipeline.diffusion import Discrete, EDMDenoiser, ExpertDenoiser
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.generation import generate_clips, load_denoiser, open_denoiser
from pyoco_pipeline.models import (
    FrameByFrame,
    load_image_model,
    load_stage_info,
    save_image_model,
    save_video_model,
)
from pyoco_pipeline.noise import IIDNoise
from pyoco_pipeline.training.settings import SigmaSettings
from pyoco_pipeline.training.stages import keep_model, train_video_model

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def experts(tmp_path_factory, digits_store, digits_embeddings) -> Path:
    """The folders shared, low and high: a stage, and two experts that started from it."""
    folder = tmp_path_factory.mktemp("experts")
    save_video_model(make_video_unet(trained=False), folder / "inflated")
    for name, init, sigma in (
        ("shared", None, {}),
        ("low", folder / "shared", {"max": 1.0}),
        ("high", folder / "shared", {"min": 1.0}),
    ):
        stage = StageSettings(
            init=str(init) if init else None,
            noise={"kind": "mixed", "alpha": 1.0},
            sigma=sigma,
            train=train_settings(steps=2),
        )
        checkpoints = folder / f"{name}_checkpoints"
        model, info, _ = train_video_model(
            "base", stage, folder / "inflated", digits_store, digits_embeddings, checkpoints
        )
        keep_model(folder / name, model, info, checkpoints)
    return folder


def ask(experts: Path, *ranges: tuple[str, float, float], **changes: Any) -> GenerateSettings:
    asked = [
        {"model": str(experts / name) if name else None, "sigma_min": low, "sigma_max": high}
        for name, low, high in ranges
    ]
    sampler = {"solver": "heun", "steps": 5, "guidance_scale": 2.0}
    return GenerateSettings(**({"num_clips": 2, "sampler": sampler, "experts": asked} | changes))


def test_an_expert_starts_from_the_shared_model_and_says_its_range(experts: Path) -> None:
    ranges = {name: load_stage_info(experts / name).sigma_range for name in ("shared", "low", "high")}
    assert ranges == {"shared": (0.0, None), "low": (0.0, 1.0), "high": (1.0, None)}


def test_an_ensemble_of_stages_generates_clips(
    experts: Path, digits_store, digits_embeddings, monkeypatch
) -> None:
    loaded: list[str] = []
    load = generation.load_video_model
    monkeypatch.setattr(
        generation, "load_video_model", lambda folder: loaded.append(folder.name) or load(folder)
    )
    captions = [item.caption for item in digits_store.take("test", 2)]

    def clips(settings: GenerateSettings) -> torch.Tensor:
        return torch.stack(
            list(
                generate_clips(experts / "shared", settings, captions, digits_embeddings, digits_store.shape)
            )
        )

    both = ask(experts, ("low", 0.0, 1.0), ("high", 1.0, math.inf))
    clips(both)
    assert loaded == ["high", "low"]
    alone = ask(experts)
    cut = ask(experts, ("", 0.0, 0.3), ("shared", 0.3, 4.0), ("", 4.0, math.inf))
    assert torch.equal(clips(cut), clips(alone))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([("low", 0, 1), ("high", 2, 80)], r"generate\.experts: .*leave a gap between 1\.0 and 2\.0"),
        ([("shared", 0, 3), ("high", 2, 80)], r"generate\.experts: .*overlap between 2\.0 and 3\.0"),
        ([("low", 0, 2), ("high", 2, 80)], r"experts\[0\] asks .*low for sigma 0 to 2, it was trained on sigma 0 to 1"),
        ([("low", 0, 0.5), ("high", 0.5, 80)], r"experts\[1\] asks .*high for sigma 0\.5 to 80, it was trained on"),
    ],
)  # fmt: skip
def test_experts_that_do_not_fit_together_are_refused(experts: Path, ranges: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_denoiser(experts / "shared", ask(experts, *ranges), CPU)


def test_noise_levels_outside_of_the_experts_are_refused(
    experts: Path, digits_store, digits_embeddings
) -> None:
    settings = ask(experts, ("high", 1, 80), sampler={"sigma_min": 0.002})
    with pytest.raises(UserError, match=r"sigma_min is 0\.002: the model knows noise levels from 1 to 80"):
        list(generate_clips(experts / "shared", settings, [""], digits_embeddings, digits_store.shape))


def test_an_ensemble_knows_the_noise_levels_that_its_networks_know(tmp_path: Path) -> None:
    known = Discrete("epsilon", **SD)
    save_video_model(make_video_unet(), tmp_path, stage_info(parametrisation=known.config()))
    denoise = open_denoiser(tmp_path, ask(tmp_path, ("", 0.0, 1.0), ("", 1.0, math.inf)), CPU)
    assert isinstance(denoise, ExpertDenoiser)
    assert denoise.sigma_limits == known.sigma_limits
    with pytest.raises(UserError, match=r"generate\.experts: an expert has low 20\.0 and high 14\.6"):
        open_denoiser(tmp_path, ask(tmp_path, ("", 0.0, 20.0), ("", 20.0, math.inf)), CPU)


def test_an_expert_alone_is_refused(experts: Path) -> None:
    with pytest.raises(
        UserError, match=r"high is an expert, trained on sigma 1 to inf: name it in generate\.exp"
    ):
        open_denoiser(experts / "high", ask(experts), CPU)


def test_experts_of_another_prior_are_refused(experts: Path, tmp_path: Path) -> None:
    save_video_model(make_video_unet(), tmp_path, stage_info(noise=IIDNoise().config()))
    settings = ask(experts, (str(tmp_path), 0, 1), ("high", 1, 80))
    with pytest.raises(UserError, match=r"generate\.experts\[0\] is .* with noise=\{'name': 'iid'"):
        open_denoiser(experts / "shared", settings, CPU)
    info = replace(load_stage_info(experts / "shared"), shape=(9, 8, 8))
    save_video_model(make_video_unet(), tmp_path, info)
    with pytest.raises(UserError, match=r"with shape=\(9, 8, 8\)"):
        open_denoiser(experts / "shared", settings, CPU)


@pytest.mark.parametrize("settings", [{"min": 1.0, "max": 1.0}, {"min": -1.0}, {"max": 0.0}])
def test_a_range_of_sigma_is_not_empty(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SigmaSettings(**settings)


def test_a_range_of_sigma_is_in_a_runs_identity_only_where_there_is_one() -> None:
    assert SigmaSettings().identity() == {"mean": -1.2, "std": 1.2}
    assert SigmaSettings(min=0.5).identity() == {"mean": -1.2, "std": 1.2, "min": 0.5}


@pytest.fixture
def with_image(experts: Path, tmp_path: Path) -> Path:
    """The stage `shared`, and an image model `image` of other weights, trained on i.i.d. noise."""
    shared = load_stage_info(experts / "shared")
    info = replace(shared, stage="image", noise={"name": "iid", "alpha": None})
    save_image_model(make_unet(seed=7), tmp_path / "image", info)
    (tmp_path / "shared").symlink_to(experts / "shared")
    return tmp_path


def test_below_its_sigma_an_image_model_denoises_every_frame_by_itself(with_image: Path) -> None:
    asked = ask(with_image, ("image", 0, 0.4), ("", 0.4, math.inf))
    denoise = open_denoiser(with_image / "shared", asked, CPU)
    stage = load_denoiser(with_image / "shared", CPU)
    image = EDMDenoiser(FrameByFrame(load_image_model(with_image / "image")).eval())
    draw = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 3, 4, 8, 8, generator=draw), torch.randn(2, 5, TEXT_DIM, generator=draw)
    high, low = torch.tensor([0.4, 2.0]), torch.tensor([0.1, 0.3])

    with torch.inference_mode():
        expected = stage(x, high, encoder_hidden_states=text)
        frames = [image(x[:, :, t : t + 1], low, encoder_hidden_states=text) for t in range(4)]

        torch.testing.assert_close(denoise(x, high, encoder_hidden_states=text), expected)
        torch.testing.assert_close(
            denoise(x, low, encoder_hidden_states=text), torch.cat(frames, dim=2), atol=1e-5, rtol=1e-5
        )


def test_an_image_model_takes_no_heed_of_a_clips_frame_rate(with_image: Path) -> None:
    image = load_denoiser(with_image / "image", CPU)
    x, sigma, text = torch.randn(1, 3, 2, 8, 8), torch.ones(1), torch.randn(1, 5, TEXT_DIM)

    with torch.inference_mode():
        known = image(x, sigma, encoder_hidden_states=text, fps=torch.full((1,), 8.0))

        assert torch.equal(known, image(x, sigma, encoder_hidden_states=text))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (1, 16, 16)}, r"experts\[0\] is .*image with shape=\(16, 16\), the stage .* has \(8, 8\)"),
        ({"text_encoder_sha256": "0" * 64}, r"experts\[0\] is .*image with text_encoder_sha256=0000"),
        ({"sigma_range": (0.0, 0.2)}, r"experts\[0\] asks .*image for sigma 0 to 0\.4, .* on sigma 0 to 0\.2"),
    ],
)  # fmt: skip
def test_an_image_model_that_does_not_fit_the_stage_is_refused(
    with_image: Path, changes: dict[str, Any], message: str
) -> None:
    info = replace(load_stage_info(with_image / "image"), **changes)
    save_image_model(make_unet(seed=7), with_image / "image", info)
    asked = ask(with_image, ("image", 0, 0.4), ("", 0.4, math.inf))

    with pytest.raises(UserError, match=message):
        open_denoiser(with_image / "shared", asked, CPU)


def test_an_image_model_is_refused_below_a_stage_that_takes_more_than_text(with_image: Path) -> None:
    shared = load_stage_info(with_image / "shared")
    (with_image / "shared").unlink()
    save_video_model(make_video_unet(), with_image / "shared", replace(shared, condition={"kind": "frames"}))

    with pytest.raises(
        UserError, match=r"which can't be given what the stage .* takes \(condition\.kind=frames\)"
    ):
        open_denoiser(with_image / "shared", ask(with_image, ("image", 0, 0.4), ("", 0.4, math.inf)), CPU)
