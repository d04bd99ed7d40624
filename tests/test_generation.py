"""Sampling from a trained stage: what a clip depends on, and what is refused."""

import pytest
import torch
from tiny import (
    ENCODER_SHA256,
    make_embeddings,
    make_store,
    make_unet,
    make_video_unet,
    stage_info,
    train_settings,
)
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import T5Config, T5EncoderModel

from pyoco_pipeline import generation
from pyoco_pipeline.config import GenerateSettings, PretrainImageSettings, StageSettings
from pyoco_pipeline.data.batches import mix_seed
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.generation import generate_clips, load_denoiser, sampling_prior
from pyoco_pipeline.models import frame_by_frame, inflate, save_video_model
from pyoco_pipeline.models.text import EMBEDDED, TextEncoder, text_encoder_folder
from pyoco_pipeline.noise import IIDNoise, MixedNoise, ProgressiveNoise
from pyoco_pipeline.pipelines.samples import SampleSheet
from pyoco_pipeline.sampling import sample_batch
from pyoco_pipeline.training.stages import train_image_model, train_video_model

CAPTIONS = ["a red digit 1", "a blue digit 2", "an orange digit 3", "a white digit 4", "a green digit 5"]
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a video model that says it was trained with MixedNoise(1)."""
    folder = tmp_path_factory.mktemp("model")
    save_video_model(make_video_unet(), folder, stage_info())
    return folder


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    return make_embeddings(tmp_path_factory.mktemp("text"), CAPTIONS)


def generate_settings(**changes) -> GenerateSettings:
    sampler = {"steps": 3, "guidance_scale": 2.0, "churn": {"s_churn": 2.0}} | changes.pop("sampler", {})
    return GenerateSettings(**({"num_clips": 5, "batch_size": 2, "sampler": sampler} | changes))


def generate(model, embeddings, captions=CAPTIONS, shape=SHAPE, **changes) -> torch.Tensor:
    return torch.stack(list(generate_clips(model, generate_settings(**changes), captions, embeddings, shape)))


def test_clips_of_another_shape_than_trained_on_are_refused(model, embeddings):
    with pytest.raises(
        UserError, match=r"trained on clips of .* \(4, 8, 8\), the ingested ones are \(8, 8, 8\)"
    ):
        generate(model, embeddings, shape=(8, 8, 8))


class Recorder:
    """A denoiser of black clips that keeps the noise it is first asked about."""

    def __init__(self) -> None:
        self.start = None

    def __call__(self, x, sigma, **cond):
        self.start = x if self.start is None else self.start
        return torch.zeros_like(x)


def start_noise(seeds: list[int], embeddings, prior=MixedNoise(1.0)) -> torch.Tensor:  # noqa: B008
    denoise, cond = Recorder(), embeddings.conditioning(torch.zeros(len(seeds), dtype=torch.int64))
    sampler = generate_settings(sampler={"guidance_scale": 1.0, "churn": {}}).sampler
    sample_batch(denoise, prior, sampler, cond, embeddings.null(), SHAPE, seeds)
    return denoise.start


def test_a_clip_per_caption_comes_out_as_pixels(model, embeddings):
    clips = generate(model, embeddings)

    assert clips.shape == (5, *SHAPE, 3)
    assert clips.dtype == torch.uint8
    assert clips.float().std() > 1


def test_a_clips_noise_is_exactly_the_same_in_every_batch(embeddings):
    seeds = [mix_seed(0, i) for i in range(5)]
    together = start_noise(seeds, embeddings)

    for i, seed in enumerate(seeds):
        assert torch.equal(start_noise([seed], embeddings)[0], together[i])
    assert len({noise.sum().item() for noise in together}) == 5


@pytest.mark.parametrize("batch_size", [1, 3, 5, 8])
def test_a_clip_does_not_depend_on_its_batch(model, embeddings, batch_size):
    ours, theirs = generate(model, embeddings), generate(model, embeddings, batch_size=batch_size)

    # Pixels are rounded: one that lies on the border may fall either way.
    assert (ours.int() - theirs.int()).abs().max() <= 1


@torch.no_grad()
def test_a_denoised_clip_does_not_depend_on_its_batch(embeddings):
    model, cond = make_video_unet(), embeddings.conditioning(embeddings.rows(CAPTIONS))
    x, t = torch.randn(5, 3, *SHAPE), torch.linspace(-100, 100, 5)
    together = model(x, t, **cond).sample
    for i in range(5):
        alone = model(
            x[i : i + 1], t[i : i + 1], **{key: value[i : i + 1] for key, value in cond.items()}
        ).sample
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)


def test_a_clip_does_not_depend_on_how_many_follow_it(model, embeddings):
    few, many = generate(model, embeddings, CAPTIONS[:3]), generate(model, embeddings)

    assert (few.int() - many[:3].int()).abs().max() <= 1


def test_the_seed_and_the_caption_decide_the_clip(model, embeddings):
    clips = generate(model, embeddings)

    assert torch.equal(generate(model, embeddings), clips)
    assert not torch.equal(generate(model, embeddings, seed=1), clips)
    assert not torch.equal(generate(model, embeddings, CAPTIONS[::-1])[0], clips[0])


def test_the_start_noise_is_of_the_prior(embeddings):
    frozen = start_noise([1, 2], embeddings, MixedNoise(float("inf")))

    torch.testing.assert_close(frozen, frozen[:, :, :1].expand_as(frozen))
    assert not torch.allclose(frozen[0], frozen[1])


def test_a_model_is_sampled_with_the_prior_it_was_trained_with():
    trained = ProgressiveNoise(2.0)

    assert sampling_prior(trained, generate_settings()) == trained
    assert sampling_prior(trained, generate_settings(noise={"kind": "progressive", "alpha": 2.0})) == trained


@pytest.mark.parametrize("noise", [{"kind": "iid"}, {"kind": "mixed", "alpha": 2.0}, {"kind": "progressive"}])
def test_another_prior_is_refused_unless_it_is_asked_for(model, embeddings, noise):
    with pytest.raises(
        UserError, match=r"generate\.noise is .*trained with MixedNoise.*allow_other_prior=true"
    ):
        generate(model, embeddings, noise=noise)

    asked = sampling_prior(MixedNoise(1.0), generate_settings(noise=noise, allow_other_prior=True))
    assert asked in (IIDNoise(), MixedNoise(2.0), ProgressiveNoise(2.0))
    assert generate(model, embeddings, noise=noise, allow_other_prior=True).shape == (5, *SHAPE, 3)


def test_embeddings_of_another_text_encoder_are_refused(model, tmp_path):
    other = make_embeddings(tmp_path, CAPTIONS, sha="0" * 64)

    with pytest.raises(UserError, match="trained with another text encoder than"):
        generate(model, other)


def test_a_stage_that_does_not_say_how_it_was_trained_is_refused(embeddings, tmp_path):
    save_video_model(make_video_unet(), tmp_path)

    with pytest.raises(UserError, match=r"stage\.json is missing"):
        generate(tmp_path, embeddings)


def test_new_captions_are_embedded_by_the_encoder_that_embedded_the_others(tmp_path):
    encoder = TextEncoder(text_encoder_folder(EMBEDDED), max_tokens=4)
    known = make_embeddings(tmp_path / "text", CAPTIONS, dim=384, encoder=EMBEDDED, sha=encoder.sha256)
    info = stage_info(text_encoder_sha256=encoder.sha256)
    save_video_model(make_video_unet(cross_attention_dim=384), tmp_path / "model", info)

    assert generate(tmp_path / "model", known, ["a caption that ingest has not seen"]).shape == (1, *SHAPE, 3)


def test_an_encoder_whose_weights_have_changed_since_ingest_is_refused(model, tmp_path):
    sizes = {"vocab_size": 3, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(**sizes)).save_pretrained(tmp_path / "encoder")
    known = make_embeddings(
        tmp_path / "text", CAPTIONS, encoder=str(tmp_path / "encoder"), sha=ENCODER_SHA256
    )

    with pytest.raises(UserError, match=r"has changed since .* Run `ingest` anew"):
        generate(model, known, ["a caption that ingest has not seen"])


def test_bfloat16_changes_clips_by_its_rounding_only(model, embeddings):
    exact, rounded = (generate(model, embeddings, precision=p).float() for p in ("float32", "bf16"))

    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 4  # of 255


def test_bfloat16_holds_its_weights_rounded_and_gives_the_clips_of_those_that_are_not(
    model, embeddings, monkeypatch
):
    held = load_denoiser(model, torch.device("cpu"), generate_settings(precision="bf16"))
    exact = load_denoiser(model, torch.device("cpu"), generate_settings())
    assert held.network.image_model.mid_block.resnets[0].conv1.weight.dtype == torch.bfloat16
    assert {p.dtype for p in exact.network.parameters()} == {torch.float32}

    clips = generate(model, embeddings, precision="bf16")
    monkeypatch.setattr(generation, "lower_weights", lambda *_: None)
    assert torch.equal(generate(model, embeddings, precision="bf16"), clips)


@pytest.mark.parametrize("tune", [False, True])
def test_convolutions_are_tuned_while_clips_are_sampled_that_ask_for_it(model, embeddings, monkeypatch, tune):
    seen = []

    def sample(*arguments, **keywords):
        seen.append(torch.backends.cudnn.benchmark)
        return sample_batch(*arguments, **keywords)

    monkeypatch.setattr(generation, "sample_batch", sample)
    generate(model, embeddings, tune_convolutions=tune)

    assert set(seen) == {tune}
    assert not torch.backends.cudnn.benchmark


def test_compiled_sampling_gives_the_same_clips(model, embeddings, monkeypatch):
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled_forward = torch.compile(frame_by_frame._forward, dynamic=False, backend=graphs)
    monkeypatch.setattr(frame_by_frame, "_compiled", lambda: compiled_forward)
    expected = generate(model, embeddings)

    assert graphs.frame_count == 0
    assert (generate(model, embeddings, compile=True).int() - expected.int()).abs().max() <= 1
    assert graphs.frame_count > 0


def test_a_model_of_blocks_of_pixels_is_trained_inflated_and_sampled(tmp_path):
    store = make_store(tmp_path / "clips")
    texts = make_embeddings(tmp_path / "text", [item.caption for item in store.take()])
    unet = {
        "block_out_channels": (8, 16),
        "attention_levels": (False, True),
        "attention_heads": 2,
        "norm_groups": 4,
    }
    image = PretrainImageSettings(init="scratch", unet={**unet, "patch": 2}, train=train_settings(steps=2))
    image_model, info, _ = train_image_model(image, store, texts, tmp_path / "a")
    save_video_model(inflate(image_model), tmp_path / "inflated", info)
    stage = StageSettings(noise={"kind": "mixed", "alpha": 1.0}, train=train_settings(steps=2))
    trained, info, _ = train_video_model("base", stage, tmp_path / "inflated", store, texts, tmp_path / "b")
    save_video_model(trained, tmp_path / "base", info)

    clips = generate(tmp_path / "base", texts, [item.caption for item in store.take("test")])

    assert image_model.config.in_channels == 12
    assert clips.shape == (4, 4, 8, 8, 3)


def test_a_model_that_embeds_frame_rates_is_told_those_of_its_clips(tmp_path):
    store = make_store(tmp_path / "clips")
    captions = [item.caption for item in store.take()]
    texts = make_embeddings(tmp_path / "text", captions)
    save_video_model(inflate(make_unet(), fps=True), tmp_path / "inflated")
    stage = StageSettings(noise={"kind": "mixed", "alpha": 1.0}, train=train_settings(steps=4))
    sheet = SampleSheet(tmp_path / "samples", store, texts, MixedNoise(1.0), store.shape[0])
    trained, info, _ = train_video_model(
        "base", stage, tmp_path / "inflated", store, texts, tmp_path / "a", sheet
    )
    save_video_model(trained, tmp_path / "base", info)

    def at(fps: float | None) -> torch.Tensor:
        settings = generate_settings(
            precision="float32"
        )  # so little trained, it makes a difference below bf16's rounding
        clips = generate_clips(tmp_path / "base", settings, captions[:2], texts, SHAPE, fps=fps)
        return torch.stack(list(clips))

    assert len(list((tmp_path / "samples").iterdir())) == 1
    assert torch.equal(at(8.0), at(8.0))
    assert not torch.equal(at(8.0), at(1.0))
    with pytest.raises(UserError, match=r"fps is missing: the network was inflated with inflate\.fps=true"):
        at(None)
