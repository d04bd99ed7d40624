# ruff: noqa: F811 (fixtures)
"""The exported folder of a stage below which an image model denoises."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from test_export import (  # noqa: F401
    KNOWN,
    embeddings,
    encoder,
    export,
    generate_settings,
    generated,
    load,
    model,
    modules_cache,
)
from tiny import make_unet, stage_info

from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import save_image_model
from pyoco_pipeline.models.text import TextEncoder


@pytest.fixture
def with_image(tmp_path: Path, model: Path, encoder: TextEncoder) -> dict[str, Any]:
    """Experts of `generate`: an image model of its own weights below sigma 1, and the stage."""
    info = stage_info(stage="image", text_encoder_sha256=encoder.sha256, noise={"name": "iid", "alpha": None})
    save_image_model(make_unet(seed=5), tmp_path / "image", info)
    return {"experts": [{"model": str(tmp_path / "image"), "sigma_max": 1.0}, {"sigma_min": 1.0}]}


def test_an_image_model_that_denoises_below_the_stage_is_exported_with_it(
    with_image: dict[str, Any], model: Path, embeddings: TextEmbeddings, tmp_path: Path
) -> None:
    folder = export(tmp_path / "whole", model, embeddings, generate=generate_settings(**with_image))
    shutil.rmtree(tmp_path / "image")  # the folder has its own
    pipe = load(folder)
    clips = pipe(KNOWN, output_type="uint8").frames
    pipe.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", custom_pipeline=str(folder))

    info = stage_info(stage="image", text_encoder_sha256=embeddings.encoder_sha256)
    save_image_model(make_unet(seed=5), tmp_path / "image", info)
    assert torch.equal(clips, generated(model, embeddings, **with_image))
    assert not torch.equal(clips, generated(model, embeddings))
    assert torch.equal(clips, again(KNOWN, output_type="uint8").frames)
    assert "frame by frame, below sigma 1" in (folder / "README.md").read_text()
    loaded = UNet2DConditionModel.from_pretrained(folder / "image_model", subfolder="unet")
    torch.testing.assert_close(loaded.state_dict(), make_unet(seed=5).state_dict())


def test_the_ends_of_the_experts_ranges_are_those_of_the_exported_sampling(
    with_image: dict[str, Any], model: Path, embeddings: TextEmbeddings, tmp_path: Path
) -> None:
    below, above = with_image["experts"]
    experts = [below | {"sigma_min": 0.02}, above | {"sigma_max": 40.0, "model": os.path.relpath(model)}]
    still = {"churn": {"s_churn": 0.0}}  # churn would go above the upper end
    settings = {"experts": experts, "sampler": still}
    folder = export(tmp_path / "whole", model, embeddings, generate=generate_settings(**settings))

    clips = load(folder)(KNOWN, output_type="uint8").frames

    assert torch.equal(clips, generated(model, embeddings, **settings))
    assert not torch.equal(clips, generated(model, embeddings, **with_image, sampler=still))


def test_an_image_model_that_is_cut_short_is_not_exported(
    with_image: dict[str, Any], model: Path, embeddings: TextEmbeddings, tmp_path: Path
) -> None:
    (weights,) = (tmp_path / "image/unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])

    with pytest.raises(UserError, match=weights.parent.as_posix()):
        export(tmp_path / "whole", model, embeddings, generate=generate_settings(**with_image))
    assert not (tmp_path / "whole" / "model_index.json").exists()


def test_without_its_image_model_the_pipeline_does_not_sample_something_else(
    with_image: dict[str, Any], model: Path, embeddings: TextEmbeddings, tmp_path: Path
) -> None:
    folder = export(tmp_path / "whole", model, embeddings, generate=generate_settings(**with_image))

    with pytest.raises(UserError, match=r"image_model is not given, and sampling.image_below is 1\.0"):
        load(folder, image_model=None)
