"""`kedro check-config`: what would end a run is found before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from autoencoders import make_vae
from click.testing import CliRunner, Result
from projects import inside, make_project, tree
from tiny import make_unet, train_settings

from pyoco_pipeline.config import (
    FramesConditionSettings,
    InflateSettings,
    PretrainImageSettings,
    StageSettings,
    TrainSettings,
    UNetSettings,
)
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.latents import sample_channels
from pyoco_pipeline.models import VideoUNet, inflate, save_image_model, save_video_model
from pyoco_pipeline.preflight.memory import COPIES, activation_numbers, planned_network, step_bytes
from pyoco_pipeline.preflight.plan import PlannedClips


def check(project: Path, env: str = "base", params: Mapping[str, object] | None = None) -> Result:
    from pyoco_pipeline.cli import cli

    given = ",".join(f"{key}={value}" for key, value in (params or {}).items())
    with inside(project):
        return CliRunner().invoke(cli, ["check-config", "--env", env, "--params", given])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.mark.parametrize("env", ["base", "cascade", "ci"])
def test_environments_of_moving_digits_are_fine_and_nothing_is_written(project: Path, env: str) -> None:
    before = tree(project)
    found = check(project, env)
    assert found.exit_code == 0, found.output
    assert "stage base makes clips of" in found.output
    assert "has room" in found.output
    assert ("base -> interpolation -> sr256" in found.output) == (env == "cascade")
    assert tree(project) == before


@pytest.mark.parametrize(
    ("env", "params", "sentence"),
    [
        ("base", {"finetune_video.base.noise.alpha": -1}, "alpha"),
        ("base", {"ingest.text_encoder": "weights/t5"}, "ingest.text_encoder: "),
        ("base", {"pretrain_image.init": "weights/sd15"}, "pretrain_image.init: "),
        ("base", {"finetune_video.base.clip": "{frames: 3}"}, "clip.frames=3 can't be spaced evenly"),
        (
            "base",
            {"evaluate.extractors": "{c3d_ucf101: {path: weights/c3d.pt}}"},
            "evaluate.extractors.c3d_ucf101.path: ",
        ),
        ("base", {"evaluate.digits3d": "{path: weights/digits}"}, "evaluate.digits3d.path: "),
        ("videos", {}, "ingest.video_folder.root: "),
        ("cascade", {"finetune_video.sr256.condition.scale": 4}, "stage sr256"),
        (
            "cascade",
            {
                "finetune_video.interpolation.condition.key_stride": 7,
                "finetune_video.interpolation.crop": "null",
            },
            "with 6 new frames in each gap",
        ),
        (
            "cascade",
            {"finetune_video.interpolation.crop.frames": 12},
            "crop.frames=12 does not end on a key frame",
        ),
        ("cascade", {"generate.sr256.noise_level": 0.9}, "generate.sr256.noise_level=0.9 is above"),
        ("base", {"finetune_video.base.train.batch_size": 2_000_000}, "lower train.batch_size"),
        ("base", {"ingest.moving_digits.num_train": 10**12}, "no room"),
    ],
)
def test_what_would_end_a_run_is_said_in_a_sentence_with_exit_status_one(
    project: Path, env: str, params: dict[str, object], sentence: str
) -> None:
    found = check(project, env, params)
    assert found.exit_code == 1
    assert sentence in found.output
    assert "Traceback" not in found.output


def planned(stage: StageSettings, clips: ClipStore, project: Path, **pretrain: Any) -> VideoUNet:
    """The network of a stage on the meta device, from the folder of an image model."""
    unet = UNetSettings(
        block_out_channels=(8, 16), attention_levels=(False, True), norm_groups=4, attention_heads=2
    )
    image = PretrainImageSettings(init=pretrain.get("init", "image"), unet=unet, train=stage.train)
    return planned_network(stage, image, InflateSettings(), clips, project)


def test_the_planned_network_is_the_one_that_is_trained(tmp_path: Path, digits_store: ClipStore) -> None:
    image = make_unet()
    save_image_model(image, tmp_path / "image")
    condition = FramesConditionSettings(kind="frames", key_stride=3)
    stage = StageSettings(train=train_settings(), condition=condition)
    trained = inflate(make_unet(), concat_channels=4, noise_level=True)
    shapes = {name: p.shape for name, p in planned(stage, digits_store, tmp_path).named_parameters()}
    assert shapes == {name: p.shape for name, p in trained.named_parameters()}

    save_video_model(trained, tmp_path / "stage")  # and once more from the stage itself
    again = planned(stage.model_copy(update={"init": "stage"}), digits_store, tmp_path)
    assert {name: p.shape for name, p in again.named_parameters()} == shapes
    assert activation_numbers(again, 3, (4, 8, 8)) == activation_numbers(trained.to("meta"), 3, (4, 8, 8))


def test_latents_are_planned_in_their_own_size_and_channels(tmp_path: Path) -> None:
    make_vae().save_pretrained(tmp_path / "vae")
    ingest = SimpleNamespace(
        source="moving_digits", num_frames=4, height=16, width=16, buckets=(), fps=8.0, autoencoder="vae"
    )
    clips = PlannedClips(ingest, tmp_path)
    assert (clips.shape, sample_channels(clips)) == ((4, 8, 8), 4)
    save_image_model(make_unet(in_channels=4, out_channels=4), tmp_path / "image")
    network = planned(StageSettings(train=train_settings()), clips, tmp_path)
    assert activation_numbers(network, 4, clips.shape) > 0


def test_the_memory_of_a_step_grows_with_weights_and_clips() -> None:
    with torch.device("meta"):
        network = inflate(make_unet())
    weights = sum(p.numel() for p in network.parameters())
    one = activation_numbers(network, 3, (4, 8, 8))
    train = TrainSettings(steps=1, batch_size=6, learning_rate=1e-3, ema_half_life=1, accumulation=2)
    assert step_bytes(network, 3, (4, 8, 8), train) == 4 * (COPIES * weights + 3 * one)
    assert step_bytes(network, 3, (4, 8, 8), train, processes=3) == 4 * (COPIES * weights + one)
    sharded = train.model_copy(update={"parallel": "fsdp"})
    assert step_bytes(network, 3, (4, 8, 8), sharded) == step_bytes(network, 3, (4, 8, 8), train)
    parts = step_bytes(network, 3, (4, 8, 8), sharded, processes=3) - 4 * one
    assert 4 * COPIES * weights / 3 < parts < 4 * COPIES * weights
    assert activation_numbers(network, 3, (8, 8, 8)) > 1.9 * one
    assert activation_numbers(network, 3, (4, 8, 8), recomputed=True) < one


def test_the_activations_are_those_that_autograd_keeps_to_within_a_factor_of_two() -> None:
    network = inflate(make_unet())
    x, cond = torch.randn(2, 3, 4, 8, 8), {"encoder_hidden_states": torch.randn(2, 4, 8)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(x, torch.ones(2), **cond).sample.sum()
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    measured = sum(size for pointer, size in kept.items() if pointer not in parameters)
    with torch.device("meta"):
        estimate = 2 * 4 * activation_numbers(inflate(make_unet()), 3, (4, 8, 8))
    assert loss.isfinite()
    assert 0.5 < estimate / measured < 2
