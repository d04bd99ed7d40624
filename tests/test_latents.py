"""Latents on disk: the same clips, encoded once; and a model that is trained, sampled and exported in latent space."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import make_latents, make_vae
from diffusers import DiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_embeddings, make_store, make_unet, make_video_unet, stage_info, train_settings

from pyoco_pipeline.config import ExportSettings, GenerateSettings, PretrainImageSettings, StageSettings
from pyoco_pipeline.data.batches import BatchOptions, ClipBatches
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore, write_clips
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import (
    autoencoder_sha256,
    latent_decode,
    open_autoencoder,
    sample_channels,
    to_latents,
    training_store,
    write_latents,
)
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.exporting import Parent, export_stage
from pyoco_pipeline.generation import generate_clips
from pyoco_pipeline.models import inflate, load_image_model, load_stage_info, save_video_model
from pyoco_pipeline.models.autoencoder import Autoencoder, LatentScaling
from pyoco_pipeline.models.shipped import FOLDER as SHIPPED
from pyoco_pipeline.noise import IIDNoise
from pyoco_pipeline.pipelines.samples import SampleSheet
from pyoco_pipeline.training.stages import keep_model, train_image_model, train_video_model

CPU = torch.device("cpu")
EDM = {"kind": "edm"}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory, digits_store: ClipStore) -> ClipStore:
    """The latents of `digits_store`, 4x4x4 positions of 4 channels."""
    return make_latents(tmp_path_factory.mktemp("latents"), digits_store)


def test_the_latents_are_of_the_same_clips_in_the_same_order(
    latents: ClipStore, digits_store: ClipStore
) -> None:
    pixels, encoded = digits_store.take(), latents.take()

    assert len(encoded) == len(pixels) == 16
    for theirs, ours in zip(pixels, encoded, strict=True):
        assert replace(ours, clip=replace(ours.clip, video=theirs.clip.video)) == theirs
    assert latents.shape == (4, 4, 4)
    manifest = latents.manifest
    assert (manifest.fps, manifest.counts, manifest.kind) == (8.0, {"train": 12, "test": 4}, "moving_digits")
    assert manifest.latents_of == digits_store.manifest.sha256
    assert sample_channels(latents) == 4
    assert sample_channels(digits_store) == 3


def test_what_is_stored_is_mean_and_deviation_in_half_precision(
    latents: ClipStore, digits_store: ClipStore
) -> None:
    expected = Autoencoder(make_vae()).encode(torch.from_numpy(digits_store.videos())).numpy()

    assert latents.videos().dtype == np.float16
    np.testing.assert_allclose(latents.videos(), expected, rtol=2**-11 + 1e-5, atol=1e-6)


def test_writing_them_again_gives_the_same_files(
    latents: ClipStore, digits_store: ClipStore, tmp_path: Path
) -> None:
    again = make_latents(tmp_path, digits_store)

    files = sorted(path.relative_to(again.folder) for path in Path(again.folder).rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (again.folder / file).read_bytes() == (latents.folder / file).read_bytes()


def test_images_and_clips_of_other_sizes_are_encoded_too(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)

    def clip(number: int, *shape: int) -> CaptionedClip:
        video = draw.integers(256, size=(*shape, 3), dtype=np.uint8)
        return CaptionedClip(Clip(f"c{number}", video, fps=4.0), f"caption {number}", "train", ("another",))

    shapes = [(4, 8, 8), (1, 8, 8), (4, 6, 12), (1, 6, 12), (4, 8, 8)]
    clips = [clip(number, *shape) for number, shape in enumerate(shapes)]
    write_clips(tmp_path / "clips", clips, kind="x", shape=(4, 8, 8), fps=8.0, sizes=[(6, 12)])
    pixels = ClipStore(tmp_path / "clips")
    encoded = make_latents(tmp_path, pixels)

    for images, number in ((False, 3), (True, 2)):
        ours, theirs = list(encoded.clips(images=images)), list(pixels.clips(images=images))
        assert [item.clip.clip_id for item in ours] == [item.clip.clip_id for item in theirs]
        assert [item.other_captions for item in ours] == [("another",)] * number
        for one, other in zip(ours, theirs, strict=True):
            frames, height, width, _ = other.clip.video.shape
            assert one.clip.video.shape == (frames, height // 2, width // 2, 8)
    assert encoded.manifest.images == 2


def test_clips_that_the_autoencoder_does_not_divide_are_refused_before_anything_is_encoded(
    tmp_path: Path,
) -> None:
    pixels = make_store(tmp_path / "clips", 2, 1, size=7)
    with pytest.raises(UserError, match=r"7x7, .* multiples of 2"):
        make_latents(tmp_path, pixels)
    assert not list((tmp_path / "latents").iterdir())


def test_latents_that_are_no_numbers_are_refused(tmp_path: Path, digits_store: ClipStore) -> None:
    vae = make_vae()
    with torch.no_grad():
        vae.quant_conv.weight.mul_(1e8)
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match=r"clip .* has latents that are not finite in float16"):
        write_latents(tmp_path / "latents", clips=digits_store.folder, autoencoder=str(tmp_path))


def test_without_an_autoencoder_models_are_of_pixels(tmp_path: Path, digits_store: ClipStore) -> None:
    assert write_latents(tmp_path, clips=digits_store.folder, autoencoder=None) is None
    store = training_store(Path(digits_store.folder), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["none.json"]
    assert store.folder == digits_store.folder
    assert (autoencoder_sha256(store), open_autoencoder(store), latent_decode(store)) == (None, None, None)


def test_with_one_they_are_of_its_latents(latents: ClipStore, digits_store: ClipStore) -> None:
    store = training_store(Path(digits_store.folder), Path(latents.folder))
    autoencoder = open_autoencoder(store)

    assert store.folder == latents.folder
    assert autoencoder is not None
    assert autoencoder.sha256 == autoencoder_sha256(store) == Autoencoder(make_vae()).sha256
    assert autoencoder.name == "origin"


def test_latents_of_other_clips_are_refused(latents: ClipStore, tmp_path: Path) -> None:
    other = make_store(tmp_path, seed=1)
    with pytest.raises(
        UserError, match=r"holds the latents of other clips than those in .*run `ingest` anew"
    ):
        training_store(Path(other.folder), Path(latents.folder))


def test_an_autoencoder_that_was_exchanged_is_refused(latents: ClipStore, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(latents.folder, tmp_path / "latents"))
    make_vae(seed=1).save_pretrained(copy / "vae")
    with pytest.raises(UserError, match=r"latents/vae is not the one that encoded the latents"):
        open_autoencoder(ClipStore(copy))


def test_latents_in_a_bucket_bring_their_autoencoder(latents: ClipStore) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(latents.folder), "/bucket/latents", recursive=True)
    store = ClipStore("memory://bucket/latents")
    autoencoder = open_autoencoder(store)

    assert store.is_remote
    assert autoencoder is not None
    assert autoencoder.sha256 == autoencoder_sha256(latents)


def test_clips_and_latents_may_both_be_in_a_bucket(latents: ClipStore, digits_store: ClipStore) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for name, folder in (("clips", digits_store.folder), ("latents", latents.folder)):
        files.put(str(folder), f"/bucket2/{name}", recursive=True)
    files.pipe("/bucket2/none/none.json", b"{}")

    assert training_store("memory://bucket2/clips", "memory://bucket2/latents").manifest == latents.manifest
    assert training_store("memory://bucket2/clips", "memory://bucket2/none").manifest == digits_store.manifest


def test_latents_are_drawn_from_each_positions_own_law() -> None:
    mean, std = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([0.1, 1.0, 2.0])
    count = 20000
    stored = torch.cat((mean, std)).half().expand(count, 1, 1, 1, 6)
    scaling = LatentScaling((0.5, 0.0, -1.0), (2.0, 1.0, 0.25))
    drawn = to_latents(stored, torch.Generator().manual_seed(0), scaling).flatten(1)

    expected_mean = (mean - torch.tensor(scaling.shift)) * torch.tensor(scaling.factor)
    expected_std = std * torch.tensor(scaling.factor)
    # Five standard errors: a right implementation fails for one seed in 300,000.
    assert ((drawn.mean(0) - expected_mean).abs() < 5 * expected_std / count**0.5).all()
    assert ((drawn.std(0) / expected_std - 1).abs() < 5 / (2 * count) ** 0.5 + 1e-3).all()
    correlation = torch.corrcoef(drawn.T) - torch.eye(3)
    assert correlation.abs().max() < 5 / count**0.5


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=5),
    st.floats(0.01, 100),
    st.integers(1, 3),
)
def test_scaling_is_undone(shift: list[float], factor: float, frames: int) -> None:
    scaling = LatentScaling(tuple(shift), (factor,) * len(shift))
    x = torch.randn(2, len(shift), frames, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(scaling.undo(scaling.apply(x)), x)


def test_a_step_has_the_same_latents_each_time_and_other_ones_in_the_next_epoch(
    latents: ClipStore, digits_embeddings: TextEmbeddings
) -> None:
    def draw(step: int) -> torch.Tensor:
        options = BatchOptions(batch_size=12, caption_dropout=0)
        batches = ClipBatches(latents, digits_embeddings, options, decode=latent_decode(latents))
        return batches.batch(step, CPU).x0

    first, second = draw(0), draw(1)
    assert first.shape == (12, 4, 4, 4, 4)
    assert first.dtype == torch.float32
    assert torch.equal(first, draw(0))
    # All twelve clips are in both epochs, and of none is the sample the same.
    assert torch.cdist(first.flatten(1), second.flatten(1)).min() > 0


# --- training, sampling, export ---


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
