"""Stages in latent space: trained, sampled, exported, and refused where the space is another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import make_latents, make_vae
from diffusers import DiffusionPipeline
from tiny import make_embeddings, make_unet, make_video_unet, stage_info, train_settings

from pyoco_pipeline.config import ExportSettings, GenerateSettings, PretrainImageSettings, StageSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import (
    autoencoder_sha256,
    open_autoencoder,
)
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.exporting import Parent, export_stage
from pyoco_pipeline.generation import generate_clips
from pyoco_pipeline.models import inflate, load_image_model, load_stage_info, save_video_model
from pyoco_pipeline.models.shipped import FOLDER as SHIPPED
from pyoco_pipeline.noise import IIDNoise
from pyoco_pipeline.pipelines.samples import SampleSheet
from pyoco_pipeline.training.stages import keep_model, train_image_model, train_video_model

CPU = torch.device("cpu")
EDM = {"kind": "edm"}


def image_settings(init: Path | str, **changes: Any) -> PretrainImageSettings:
    unet = {
        "block_out_channels": (8, 16),
        "attention_levels": (False, True),
        "norm_groups": 4,
        "attention_heads": 2,
    }
    given: dict[str, Any] = {"init": str(init), "unet": unet, "parametrisation": EDM, "sigma_data": 1.0}
    return PretrainImageSettings(**(given | {"train": train_settings(steps=4)} | changes))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, digits_store: ClipStore) -> TextEmbeddings:
    """Embeddings whose encoder is not needed."""
    folder = tmp_path_factory.mktemp("texts")
    return make_embeddings(folder, [item.caption for item in digits_store.take()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, latents: ClipStore, texts: TextEmbeddings) -> Path:
    """The folders image and base, of stages that were trained for four steps on latents."""
    folder = tmp_path_factory.mktemp("trained")
    make_unet(sample_size=4, in_channels=4, out_channels=4).save_pretrained(folder / "sd" / "unet")
    settings = image_settings(folder / "sd")
    sheet = SampleSheet(folder / "image_samples", latents, texts, IIDNoise(), num_frames=1)
    model, info, history = train_image_model(settings, latents, texts, folder / "a", sheet)
    assert len(history) == 2
    keep_model(folder / "image", model, info, folder / "a")
    save_video_model(inflate(load_image_model(folder / "image")), folder / "inflated")
    stage = StageSettings(
        noise={"kind": "mixed", "alpha": 1.0}, sigma_data=1.0, train=train_settings(steps=4)
    )
    sheet = SampleSheet(folder / "base_samples", latents, texts, stage.noise.prior(), latents.shape[0])
    video, info, _ = train_video_model(
        "base", stage, folder / "inflated", latents, texts, folder / "b", sheet
    )
    keep_model(folder / "base", video, info, folder / "b")
    return folder


def generate_settings(**changes: Any) -> GenerateSettings:
    sampler = {"steps": 3, "guidance_scale": 2.0} | changes.pop("sampler", {})
    return GenerateSettings(**({"num_clips": 3, "batch_size": 2, "sampler": sampler} | changes))


def generated(model: Path, store: ClipStore, texts: TextEmbeddings, **changes: Any) -> torch.Tensor:
    captions = [item.caption for item in store.take("test", 3)]
    settings, autoencoder = generate_settings(**changes), open_autoencoder(store)
    return torch.stack(list(generate_clips(model, settings, captions, texts, store.shape, autoencoder)))


def test_stages_say_that_they_were_trained_on_latents(trained: Path, latents: ClipStore) -> None:
    for stage in ("image", "base"):
        info = load_stage_info(trained / stage)
        assert info.autoencoder_sha256 == autoencoder_sha256(latents)
        assert (info.shape, info.data_sha256) == ((4, 4, 4), latents.manifest.sha256)


def test_pictures_of_a_stage_in_training_are_decoded(trained: Path) -> None:
    from PIL import Image

    for stage in ("image", "base"):
        (path,) = (trained / f"{stage}_samples").glob("*.png")
        assert np.asarray(Image.open(path)).std() > 1


def test_clips_are_sampled_in_latent_space_and_come_out_as_pixels(
    trained: Path, latents: ClipStore, texts: TextEmbeddings
) -> None:
    clips = generated(trained / "base", latents, texts)

    assert clips.shape == (3, 4, 8, 8, 3)
    assert clips.dtype == torch.uint8
    assert clips.float().std() > 1
    alone = generated(trained / "base", latents, texts, batch_size=1)
    assert (alone.int() - clips.int()).abs().max() <= 1


def test_an_exported_latent_model_is_loaded_by_diffusers_and_samples_the_same_bit_for_bit(
    trained: Path,
    latents: ClipStore,
    texts: TextEmbeddings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    captions = [item.caption for item in latents.take("test", 3)]
    folder = tmp_path / "export"
    folder.mkdir()
    export_stage(
        folder,
        model=trained / "base",
        settings=ExportSettings(include_text_encoder=False),
        generate=generate_settings(),
        prompts=captions,
        embeddings=texts,
        fps=8.0,
        parent=Parent("the diffusers model sd", "openrail++"),
        autoencoder=open_autoencoder(latents),
    )
    pipe: Any = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)

    assert torch.equal(
        pipe(captions, output_type="uint8").frames, generated(trained / "base", latents, texts)
    )
    assert type(pipe.vae).__name__ == "AutoencoderKL"
    assert json.loads((folder / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    card = (folder / "README.md").read_text()
    assert "4 frames of 8×8 at 8 per second" in card
    assert f"| autoencoder | origin, sha256 of weights and scaling `{autoencoder_sha256(latents)}` |" in card
    assert "The autoencoder in `vae/` is that of origin, under its own licence" in card
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".ckpt", ".pt", ".pkl")]
    with pytest.raises(UserError, match="vae has the sha256"):
        DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True, vae=make_vae(seed=1))


def test_a_dynamic_threshold_of_latents_is_refused(
    trained: Path, latents: ClipStore, texts: TextEmbeddings, tmp_path: Path
) -> None:
    sampler = {"dynamic_threshold": 0.995}
    message = r"dynamic_threshold=0\.995 is for pixels in \[-1, 1\], and the model samples latents"
    with pytest.raises(UserError, match=message):
        generated(trained / "base", latents, texts, sampler=sampler)
    with pytest.raises(UserError, match=message):
        export_stage(
            tmp_path,
            model=trained / "base",
            settings=ExportSettings(),
            generate=generate_settings(sampler=sampler),
            prompts=["a"],
            embeddings=texts,
            fps=8.0,
            parent=Parent("x", "mit"),
            autoencoder=open_autoencoder(latents),
        )


def test_a_stage_of_another_autoencoder_or_of_pixels_is_refused(
    trained: Path, latents: ClipStore, digits_store: ClipStore, texts: TextEmbeddings, tmp_path: Path
) -> None:
    other = make_latents(tmp_path, digits_store, scaling_factor=0.5)
    with pytest.raises(
        UserError, match=r"trained on latents of .*, and ingest made latents of the autoencoder"
    ):
        generated(trained / "base", other, texts)
    with pytest.raises(UserError, match=r"trained on latents of .*, and ingest made pixels"):
        generated(trained / "base", digits_store, texts)
    save_video_model(make_video_unet(), tmp_path / "pixels", stage_info())
    with pytest.raises(UserError, match=r"trained on pixels, and ingest made latents of"):
        generated(tmp_path / "pixels", latents, texts)


def test_a_run_on_latents_of_another_scaling_does_not_go_on(
    trained: Path, digits_store: ClipStore, texts: TextEmbeddings, tmp_path: Path
) -> None:
    make_unet(sample_size=4, in_channels=4, out_channels=4).save_pretrained(tmp_path / "sd" / "unet")
    unfinished = image_settings(tmp_path / "sd", train=train_settings(steps=4, checkpoint_every=2))
    for number, scaling in enumerate((0.18215, 0.5)):
        store = make_latents(tmp_path / str(number), digits_store, scaling_factor=scaling)
        if number == 0:
            train_image_model(unfinished, store, texts, tmp_path / "checkpoints")
            continue
        with pytest.raises(UserError, match="autoencoder_sha256"):
            train_image_model(unfinished, store, texts, tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("channels", "on_latents", "message"),
    [
        (4, False, r"takes 4 channels, and ingest made pixels of 3: set ingest\.autoencoder to the model's"),
        (3, True, r"takes 3 channels, and ingest made latents of 4: set ingest\.autoencoder to null"),
    ],
)
def test_a_latent_model_on_pixels_and_the_reverse_are_one_sentence(
    latents: ClipStore,
    digits_store: ClipStore,
    texts: TextEmbeddings,
    tmp_path: Path,
    channels: int,
    on_latents: bool,
    message: str,
) -> None:
    store = latents if on_latents else digits_store
    unet = make_unet(in_channels=channels, out_channels=channels)
    unet.save_pretrained(tmp_path / "sd" / "unet")
    with pytest.raises(UserError, match=message):
        train_image_model(image_settings(tmp_path / "sd"), store, texts, tmp_path / "a")
    save_video_model(inflate(unet), tmp_path / "inflated")
    with pytest.raises(UserError, match=message):
        train_video_model(
            "base", StageSettings(train=train_settings()), tmp_path / "inflated", store, texts, tmp_path / "b"
        )


def test_a_stage_does_not_start_from_one_of_another_space(
    trained: Path, latents: ClipStore, digits_store: ClipStore, texts: TextEmbeddings, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"{SHIPPED} was trained on pixels, and ingest made latents"):
        train_image_model(image_settings("shipped", parametrisation=None), latents, texts, tmp_path / "a")
    stage = StageSettings(init=str(trained / "base"), train=train_settings())
    with pytest.raises(UserError, match=r"base was trained on latents of .*, and ingest made pixels"):
        train_video_model("base", stage, trained / "inflated", digits_store, texts, tmp_path / "b")


def test_a_model_from_scratch_is_of_what_is_trained_on(
    latents: ClipStore, digits_store: ClipStore, texts: TextEmbeddings, tmp_path: Path
) -> None:
    for number, (store, channels) in enumerate(((latents, 4), (digits_store, 3))):
        settings = image_settings("scratch", parametrisation=None)
        model, info, _ = train_image_model(settings, store, texts, tmp_path / str(number))
        assert (model.config["in_channels"], model.config["out_channels"]) == (channels, channels)
        assert info.autoencoder_sha256 == autoencoder_sha256(store)
