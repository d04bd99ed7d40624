"""Latents on disk: the same clips, encoded once; and a model that is trained, sampled and exported in latent space."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from autoencoders import make_latents, make_vae
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_store

from pyoco_pipeline.data.batches import BatchOptions, ClipBatches
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
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
from pyoco_pipeline.models.autoencoder import Autoencoder, LatentScaling

CPU = torch.device("cpu")
EDM = {"kind": "edm"}


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
