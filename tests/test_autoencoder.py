"""The autoencoder: frame by frame and a few at a time as all at once, scaled as diffusers scales, loaded strictly."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from autoencoders import make_vae
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import (
    StableDiffusion3Img2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from safetensors.torch import load_file, save_file
from tiny import make_unet

from pyoco_pipeline.data.latents import to_latents
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.autoencoder import Autoencoder, LatentScaling, load_autoencoder

CPU = torch.device("cpu")
SCALINGS: dict[str, dict[str, Any]] = {
    "scaling_factor": {},
    "shift_factor": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "latents_mean and latents_std": {
        "scaling_factor": 0.5,
        "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    },
}


def pixels(clips: int = 2, frames: int = 5, height: int = 8, width: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (clips, frames, height, width, 3), dtype=torch.uint8, generator=draw)


def frame(video: torch.Tensor, t: int = 0) -> torch.Tensor:
    """Frame t of the first clip as diffusers takes images: (1, 3, H, W) in [-1, 1]."""
    return video[0, t].permute(2, 0, 1)[None].float() / 127.5 - 1


def test_a_frame_is_encoded_as_the_mean_and_deviation_of_diffusers_posterior() -> None:
    vae, video = make_vae(), pixels()
    moments = Autoencoder(vae).encode(video)

    assert moments.shape == (2, 5, 4, 6, 8)
    for t in range(5):
        with torch.no_grad():
            posterior = vae.encode(frame(video, t)).latent_dist
        mean, std = moments[0, t].permute(2, 0, 1).chunk(2)
        torch.testing.assert_close(mean, posterior.mean[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(std, posterior.std[0], atol=1e-5, rtol=1e-5)


def test_encoding_twice_is_the_same_bit_for_bit() -> None:
    autoencoder = Autoencoder(make_vae())
    assert torch.equal(autoencoder.encode(pixels()), autoencoder.encode(pixels()))


@pytest.mark.parametrize("slice_frames", [1, 3, 7])
def test_slices_of_frames_are_as_all_frames_at_once(slice_frames: int) -> None:
    vae = make_vae()
    whole, sliced = Autoencoder(vae, slice_frames=100), Autoencoder(vae, slice_frames=slice_frames)
    latents = torch.randn(2, 4, 5, 4, 6)

    torch.testing.assert_close(sliced.encode(pixels()), whole.encode(pixels()), atol=1e-5, rtol=0)
    decoded = sliced.decode(latents)
    assert decoded.shape == (2, 3, 5, 8, 12)
    torch.testing.assert_close(decoded, whole.decode(latents), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "at_once"), [(64, 64), (512, 1), (1024, 1)])
def test_a_longer_clip_puts_no_more_frames_into_the_decoder_at_once(
    monkeypatch: pytest.MonkeyPatch, size: int, at_once: int
) -> None:
    vae = make_vae()
    seen: list[int] = []

    def decode(z: torch.Tensor) -> SimpleNamespace:
        seen.append(len(z))
        return SimpleNamespace(sample=torch.zeros(len(z), 3, size, size))

    monkeypatch.setattr(vae, "decode", decode)
    for frames in (3, 90):
        Autoencoder(vae).decode(torch.zeros(1, 4, frames, size // 2, size // 2))
    assert max(seen) == min(at_once, 90)
    assert sum(seen) == 93


def img2img_latents(vae: AutoencoderKL, image: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """What diffusers' own pipelines put into the UNet for an image, before they add noise."""
    pipeline = SimpleNamespace(
        vae=vae, scheduler=SimpleNamespace(scale_noise=lambda latents, *_: latents), _execution_device=CPU
    )
    if vae.config.shift_factor is not None:
        prepare = StableDiffusion3Img2ImgPipeline.prepare_latents
        return prepare(pipeline, image, torch.ones(1), 1, 1, torch.float32, CPU, draw)
    prepare_xl = StableDiffusionXLImg2ImgPipeline.prepare_latents
    return prepare_xl(pipeline, image, None, 1, 1, torch.float32, CPU, draw, add_noise=False)


@pytest.mark.parametrize("config", SCALINGS.values(), ids=SCALINGS)
@torch.no_grad()
def test_latents_are_drawn_and_scaled_as_in_diffusers_pipelines(config: dict[str, Any]) -> None:
    vae, video = make_vae(force_upcast=False, **config), pixels(1, 1)
    autoencoder = Autoencoder(vae)
    theirs = img2img_latents(vae, frame(video), torch.Generator().manual_seed(3))
    ours = to_latents(autoencoder.encode(video), torch.Generator().manual_seed(3), autoencoder.scaling)

    torch.testing.assert_close(ours[:, :, 0], theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", SCALINGS.values(), ids=SCALINGS)
@torch.no_grad()
def test_decoding_takes_the_scaling_back(config: dict[str, Any]) -> None:
    vae = make_vae(**config)
    autoencoder, plain = Autoencoder(vae), torch.randn(1, 4, 1, 4, 6)
    decoded = autoencoder.decode(autoencoder.scaling.apply(plain))

    torch.testing.assert_close(decoded[:, :, 0], vae.decode(plain[:, :, 0]).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"latents_mean": [0.0] * 4}, r"latents_std=None: give both or neither"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1}, "give one of them"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "for 4 latent channels"),
        ({"scaling_factor": 0.0}, "have to be above 0"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, -1.0, 1.0]}, "have to be above 0"),
        ({"in_channels": 4}, r"in_channels=4 and out_channels=3: one of RGB"),
    ],
)
def test_a_configuration_that_does_not_say_how_to_scale_is_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Autoencoder(make_vae(**config))


def test_frames_whose_size_has_no_latents_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"9x12, .* of 2x2 pixels: set ingest's height and width to multiples of 2"
    ):
        Autoencoder(make_vae()).encode(pixels(height=9))


def test_what_is_around_it_does_not_change_its_precision() -> None:
    autoencoder, latents = Autoencoder(make_vae()), torch.randn(1, 4, 3, 4, 4)
    expected = autoencoder.encode(pixels()), autoencoder.decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        inside = autoencoder.encode(pixels()), autoencoder.decode(latents)

    for ours, theirs in zip(inside, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("force_upcast", [True, False])
def test_on_a_gpu_half_precision_is_for_weights_that_are_made_for_it(force_upcast: bool) -> None:
    vae, latents = make_vae(force_upcast=force_upcast), torch.randn(1, 4, 3, 4, 4, device="cuda")
    seen: list[torch.dtype] = []
    vae.decoder.conv_in.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    Autoencoder(vae).to("cuda").decode(latents)
    assert seen == [torch.float32 if force_upcast else torch.float16]


def test_tiles_are_for_frames_larger_than_it_was_trained_on() -> None:
    whole, tiled = Autoencoder(make_vae()), Autoencoder(make_vae(), tiling=True)
    small, large = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 4, 2, 16, 24)

    assert torch.equal(tiled.decode(small), whole.decode(small))
    assert tiled.decode(large).shape == (1, 3, 2, 32, 48)
    assert not torch.equal(tiled.decode(large), whole.decode(large))


def test_its_digest_is_of_weights_and_scaling() -> None:
    digest = Autoencoder(make_vae()).sha256

    assert Autoencoder(make_vae(), slice_frames=1).sha256 == digest
    assert Autoencoder(make_vae(seed=1)).sha256 != digest
    assert Autoencoder(make_vae(scaling_factor=0.2)).sha256 != digest


@pytest.mark.parametrize("half", [False, True])
def test_it_is_saved_and_loaded_without_loss(tmp_path: Path, half: bool) -> None:
    vae = make_vae().half() if half else make_vae()
    vae.save_pretrained(tmp_path / "sd" / "vae")
    first = load_autoencoder(tmp_path / "sd")
    first.save(tmp_path / "again")
    again = load_autoencoder(tmp_path / "again")

    assert first.name == "sd"
    assert load_autoencoder(tmp_path / "sd" / "vae").name == "sd"
    assert again.sha256 == first.sha256
    assert next(again.model.parameters()).dtype == torch.float32
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()


def test_weights_with_the_attention_names_of_older_folders_load(tmp_path: Path) -> None:
    vae = make_vae()
    vae.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    renamed = {}
    for key, value in load_file(path).items():
        for new, old in names.items():
            key = key.replace(new, old)
        renamed[key] = value
    assert any("proj_attn" in key for key in renamed)
    save_file(renamed, path)

    assert load_autoencoder(tmp_path).sha256 == Autoencoder(vae).sha256


def empty(folder: Path) -> str:
    (folder / "config.json").unlink()
    return r"holds no autoencoder: neither vae/config\.json nor config\.json"


def another_class(folder: Path) -> str:
    AutoencoderTiny().save_pretrained(folder)
    return r"is of class AutoencoderTiny; AutoencoderKL is needed"


def a_unet(folder: Path) -> str:
    make_unet().save_pretrained(folder)
    return r"is of class UNet2DConditionModel; AutoencoderKL is needed"


def cut_short(folder: Path) -> str:
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    return "the weights can't be loaded"


def without_a_key(folder: Path) -> str:
    weights = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["decoder.conv_in.weight"]
    save_file(state, weights)
    return r"1 missing keys in the weights, first decoder\.conv_in\.weight"


def unknown_setting(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"patch_size": 2}))
    return "patch_size=2, which is no setting of diffusers' AutoencoderKL"


@pytest.mark.parametrize("damage", [empty, another_class, a_unet, cut_short, without_a_key, unknown_setting])
def test_what_is_no_whole_autoencoder_is_one_sentence(tmp_path: Path, damage: Any) -> None:
    make_vae().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=damage(tmp_path)):
        load_autoencoder(tmp_path)


def test_latents_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(N, 2, T, h, w\)"):
        LatentScaling((0.0, 0.0), (1.0, 1.0)).apply(torch.zeros(1, 3, 2, 4, 4))
