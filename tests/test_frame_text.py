"""What a caption says of each frame: nothing when new, then another thing of each frame, for its own clip alone."""

import pytest
import torch
from architectures import CROSS_ATTENTION, clips, conditions, make
from safetensors.torch import load_file, save_file
from tiny import TEXT_DIM, TOKENS, make_unet, perturb, text_condition

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import inflate, load_video_model, save_video_model
from pyoco_pipeline.models.conditioning import FrameText
from pyoco_pipeline.models.io import check_video_model
from pyoco_pipeline.models.trainable import choose_trainable

TIMESTEP = torch.tensor([3.0, 700.0])
OF_TEXT = [name for name in CROSS_ATTENTION if make(name).config.encoder_hid_dim_type != "image_proj"]


@pytest.fixture
def trained():
    """A model that heeds what captions say of frames and has no other temporal module, a clip, and its text."""
    torch.manual_seed(0)
    model = inflate(make_unet(), frame_text=True, attention=False, convolution=False)
    perturb(model.conditioning)
    return model, clips(make_unet(), 3), text_condition(2)


@pytest.mark.parametrize("name", OF_TEXT)
@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_a_new_model_says_nothing_of_frames(name, frames):
    before, after = inflate(make(name)), inflate(make(name), frame_text=True)
    x, cond = clips(before.image_model, frames), conditions(before.image_model, 2)

    out = after(x, TIMESTEP, **cond).sample

    torch.testing.assert_close(out, before(x, TIMESTEP, **cond).sample, atol=1e-5, rtol=0)


def test_it_learns_from_the_first_step():
    model = inflate(make_unet(), frame_text=True)
    model(clips(make_unet(), 3), TIMESTEP, **text_condition(2)).sample.square().mean().backward()

    assert model.conditioning["frame_text"].out.weight.grad.abs().max() > 0


@torch.no_grad()
def test_an_image_has_no_number_to_speak_of(trained):
    model, x, text = trained
    expected = inflate(make_unet())(x[:, :, :1], TIMESTEP, **text).sample

    assert torch.equal(model(x[:, :, :1], TIMESTEP, **text).sample, expected)


@torch.no_grad()
def test_equal_frames_differ_by_their_number(trained):
    model, x, text = trained
    said = model(x[:, :, :1].expand(-1, -1, 3, -1, -1), TIMESTEP, **text).sample

    assert said.diff(dim=2).abs().amax(dim=(1, 3, 4)).min() > 1e-3


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = FrameText(TEXT_DIM, 16)
    with torch.no_grad():
        perturb(module)
    return module


@torch.no_grad()
def test_another_caption_says_something_else_of_every_frame(module):
    first, second = (module(torch.randn(3, TOKENS, TEXT_DIM), None, 5) for _ in range(2))

    assert (first - second).abs().amax(dim=2).min() > 1e-3


@torch.no_grad()
def test_every_frame_asks_for_other_tokens_of_a_caption(module):
    heard = []
    module.said.register_forward_hook(lambda _module, inputs, _output: heard.append(inputs[0]))
    module(torch.randn(3, TOKENS, TEXT_DIM), None, 5)

    assert heard[0].diff(dim=1).abs().amax(dim=2).min() > 1e-4


@pytest.mark.parametrize("masked", [0, 1])
@torch.no_grad()
def test_the_network_does_not_hear_masked_tokens_of_either_clip(trained, masked):
    model, x, text = trained
    text["encoder_attention_mask"][masked, -1] = False
    before = model(x, TIMESTEP, **text).sample
    text["encoder_hidden_states"][masked, -1] *= -1

    torch.testing.assert_close(model(x, TIMESTEP, **text).sample, before, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_mask_may_be_for_all_clips_and_a_caption_for_all_masks(trained):
    model, _, text = trained
    tokens, mask = text.values()
    mask[:, -1] = False
    one, both = mask[:1], mask[:1].expand(2, -1)
    for first, second in (
        ((tokens, one), (tokens, both)),
        ((tokens[:1], both), (tokens[:1].expand(2, -1, -1), both)),
    ):
        results = [
            model._say(dict(zip(text, given, strict=True)), 2, 3)  # diffusers itself takes one mask per image
            for given in (first, second)
        ]
        torch.testing.assert_close(*results)
    assert results[0].shape[0] == 6


@torch.no_grad()
def test_the_frame_rate_is_heard_beside_it():
    torch.manual_seed(0)
    model = inflate(make_unet(), frame_text=True, fps=True)
    perturb(model.conditioning)
    x, text = clips(make_unet(), 3), text_condition(2)
    slow, fast = (model(x, TIMESTEP, fps=torch.full((2,), rate), **text).sample for rate in (8.0, 24.0))

    assert (slow - fast).abs().max() > 1e-3


@torch.no_grad()
def test_a_caption_is_heard_by_its_own_clip_alone(trained):
    model, x, text = trained
    changed = {name: value.clone() for name, value in text.items()}
    changed["encoder_hidden_states"][0] *= -1
    before, after = model(x, TIMESTEP, **text).sample, model(x, TIMESTEP, **changed).sample

    assert (after[0] - before[0]).abs().max() > 1e-3
    torch.testing.assert_close(after[1], before[1], atol=1e-5, rtol=0)
    for b in range(2):
        alone = {name: value[b : b + 1] for name, value in text.items()}
        torch.testing.assert_close(
            model(x[b : b + 1], TIMESTEP[b : b + 1], **alone).sample[0], before[b], atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_one_caption_may_be_for_all_clips(trained):
    model, x, text = trained
    one = {name: value[:1] for name, value in text.items()}
    both = {name: value.expand(2, *value.shape[1:]) for name, value in one.items()}

    torch.testing.assert_close(model(x, TIMESTEP, **one).sample, model(x, TIMESTEP, **both).sample)


@torch.no_grad()
def test_tokens_that_are_masked_count_for_nothing_and_all_may_be(module):
    tokens, mask = torch.randn(3, TOKENS, TEXT_DIM), torch.ones(3, TOKENS, dtype=torch.bool)
    mask[1, 2:] = False
    mask[2] = False
    said = module(tokens, mask, 5)
    assert said.shape == (3, 5, 16)
    assert said.isfinite().all()

    torch.testing.assert_close(said[1], module(tokens[1:2, :2], None, 5)[0])
    torch.testing.assert_close(said[0], module(tokens, None, 5)[0])
    assert torch.equal(said, module(tokens, mask.float(), 5))


@torch.no_grad()
def test_a_frame_hears_the_same_in_a_longer_clip(module):
    tokens = torch.randn(2, TOKENS, TEXT_DIM)

    torch.testing.assert_close(module(tokens, None, 9)[:, :4], module(tokens, None, 4))


@torch.no_grad()
def test_it_comes_back_with_the_model_bit_for_bit(tmp_path, trained):
    model, x, text = trained
    save_video_model(model, tmp_path)
    loaded = load_video_model(tmp_path)

    assert loaded.options == model.options
    assert torch.equal(loaded(x, TIMESTEP, **text).sample, model(x, TIMESTEP, **text).sample)


def test_weights_that_lack_it_are_refused(tmp_path, trained):
    save_video_model(trained[0], tmp_path)
    path = tmp_path / "conditioning.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key != "frame_text.out.bias"}, path)

    with pytest.raises(UserError, match=r"conditioning weights can't be loaded: .*frame_text\.out\.bias"):
        load_video_model(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"conditioning\.safetensors is missing: train the stage anew"):
        check_video_model(tmp_path)


@pytest.mark.parametrize("name", ["ddpm_cifar10", "kandinsky_2_2"])
def test_a_model_that_reads_no_captions_is_refused(name):
    with pytest.raises(UserError, match=r"inflate\.frame_text=true needs an image model that reads tokens"):
        inflate(make(name), frame_text=True)


def test_clips_without_a_caption_each_are_refused(trained):
    model, x, text = trained
    per_frame = {name: value.repeat_interleave(3, dim=0) for name, value in text.items()}

    with pytest.raises(
        UserError, match=r"has shape None, .*frame_text=true: .* one caption per clip, \(2, …\)"
    ):
        model(x, TIMESTEP)
    with pytest.raises(UserError, match=r"has shape \(6, 4, 8\), .* one caption per clip"):
        model(x, TIMESTEP, **per_frame)
    with pytest.raises(
        UserError, match=r"encoder_attention_mask has shape \(6, 4\), .* one caption per clip"
    ):
        model(x, TIMESTEP, **{**per_frame, "encoder_hidden_states": text["encoder_hidden_states"]})


def test_it_is_trained_beside_the_temporal_modules(trained):
    choose_trainable(trained[0], "temporal")

    assert all(p.requires_grad for p in trained[0].conditioning.parameters())
