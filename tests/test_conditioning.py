"""What a stage is conditioned on starts at zero, is kept with the model, and is neither forgotten nor given unasked."""

import pytest
import torch
from architectures import NAMES, clips, conditions, make
from safetensors.torch import load_file, save_file
from tiny import make_unet, perturb, text_condition

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import (
    inflate,
    key_frame_channels,
    load_video_model,
    low_resolution_channels,
    save_video_model,
)
from pyoco_pipeline.models.conditioning import ScalarEmbedding

TIMESTEP = torch.tensor([3.0, 700.0])
ALL = {"concat_channels": 4, "noise_level": True, "fps": True}
WIDENS = [name for name in NAMES if name != "score_sde_ve"]


def given(x, seed=5):
    """Conditions of the network that `ALL` makes."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "concat": torch.randn(2, 4, *x.shape[2:], generator=draw),
        "noise_level": torch.tensor([0.1, 0.7]),
        "fps": torch.tensor([8.0, 30.0]),
    }


@pytest.fixture
def trained():
    """A conditioned model whose new weights are no longer zero, a clip, and its text."""
    torch.manual_seed(0)
    model = inflate(make_unet(), **ALL)
    perturb(model)
    return model, clips(make_unet(), 3), text_condition(2)


@pytest.mark.parametrize("name", WIDENS)
@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_a_widened_model_equals_the_one_before_whatever_it_is_given(name, frames):
    before = inflate(make(name))
    x, cond = clips(before.image_model, frames), conditions(before.image_model, 2)
    after = inflate(make(name), **ALL)

    out = after(x, TIMESTEP, **cond, **given(x)).sample

    torch.testing.assert_close(out, before(x, TIMESTEP, **cond).sample, atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_frame_is_the_image_model_with_what_an_image_is_conditioned_on(trained):
    model, x, text = trained
    x = x[:, :, :1]
    extra = {**given(x), "noise_level": torch.tensor([0.3, 0.3])}
    first = model(x, TIMESTEP, **text, **extra).sample
    perturb(model.temporal)
    perturb(model.conditioning["fps"])  # an image has no frame rate

    assert torch.equal(model(x, TIMESTEP, **text, **extra).sample, first)
    assert torch.equal(model(x, TIMESTEP, **text, **{**extra, "fps": None}).sample, first)


@pytest.mark.parametrize("name", ["concat", "noise_level", "fps"])
@torch.no_grad()
def test_every_condition_changes_a_trained_models_answer_for_its_own_clip(trained, name):
    model, x, text = trained
    extra = given(x)
    before = model(x, TIMESTEP, **text, **extra).sample
    changed = extra[name].clone()
    changed[0] = changed[0] * 0.5
    after = model(x, TIMESTEP, **text, **{**extra, name: changed}).sample

    assert (after[0] - before[0]).abs().max() > 1e-3
    torch.testing.assert_close(after[1], before[1], atol=1e-5, rtol=0)


def test_new_conditions_learn_from_the_first_step():
    model = inflate(make_unet(), **ALL)
    x = clips(make_unet(), 3)
    model(x, TIMESTEP, **text_condition(2), **given(x)).sample.square().mean().backward()

    assert model.image_model.conv_in.weight.grad[:, 3:].abs().amax(dim=(1, 2, 3)).min() > 0
    for embedding in model.conditioning.values():
        assert embedding.out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["noise_level", "fps"])
def test_a_missing_condition_and_one_that_was_not_asked_for_are_refused(trained, name):
    model, x, text = trained
    extra = {key: value for key, value in given(x).items() if key != name}

    with pytest.raises(UserError, match=f"{name} is missing: .*inflate.{name}=true"):
        model(x, TIMESTEP, **text, **extra)
    with pytest.raises(UserError, match=f"{name} is given to a network inflated with inflate.{name}=false"):
        inflate(make_unet())(x, TIMESTEP, **text, **{name: given(x)[name]})


def test_channels_that_do_not_add_up_are_refused(trained):
    model, x, text = trained
    extra = given(x)

    for concat in (None, extra["concat"][:, :3]):
        with pytest.raises(UserError, match=r"takes 7 channels, x has 3 and concat [03]"):
            model(x, TIMESTEP, **text, **{**extra, "concat": concat})
    with pytest.raises(UserError, match="takes 3 channels, x has 3 and concat 4"):
        inflate(make_unet())(x, TIMESTEP, **text, concat=extra["concat"])
    with pytest.raises(UserError, match="does not fit clips"):
        model(x, TIMESTEP, **text, **{**extra, "concat": extra["concat"][:, :, :2]})


@torch.no_grad()
def test_an_image_model_that_was_an_upscaler_takes_its_channels_as_concat():
    model = inflate(make("deepfloyd_if_2"))
    x, cond = clips(model.image_model, 2), conditions(model.image_model, 2)

    whole = model(x, TIMESTEP, **cond).sample
    assert torch.equal(model(x[:, :3], TIMESTEP, concat=x[:, 3:], **cond).sample, whole)


@pytest.mark.parametrize("options", [ALL, {"fps": True}, {"concat_channels": 1}])
@torch.no_grad()
def test_a_conditioned_model_comes_back_bit_for_bit(tmp_path, options):
    model = inflate(make_unet(), **options)
    perturb(model)
    save_video_model(model, tmp_path)
    loaded = load_video_model(tmp_path)

    assert loaded.options == model.options
    assert loaded.image_model.config.in_channels == 3 + options.get("concat_channels", 0)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("change", ["missing", "extra", "cut", "gone"])
def test_conditioning_weights_that_do_not_fit_are_refused(tmp_path, change):
    save_video_model(inflate(make_unet(), **ALL), tmp_path)
    path = tmp_path / "conditioning.safetensors"
    tensors = load_file(path)
    if change == "missing":
        save_file({key: value for key, value in tensors.items() if key != "fps.out.bias"}, path)
    elif change == "extra":
        save_file(tensors | {"height.out.bias": torch.zeros(2)}, path)
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()

    with pytest.raises(UserError, match="conditioning weights can't be loaded") as error:
        load_video_model(tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_conditioning_weights_of_a_model_without_conditions_are_refused(tmp_path):
    save_video_model(inflate(make_unet()), tmp_path)
    save_file({"fps.out.bias": torch.zeros(2)}, tmp_path / "conditioning.safetensors")

    with pytest.raises(UserError, match="conditioning weights can't be loaded"):
        load_video_model(tmp_path)


def test_models_whose_input_has_another_use_are_not_widened():
    with pytest.raises(
        UserError, match=r"inflate\.concat_channels does not go with down_block_types=SkipDown"
    ):
        inflate(make("score_sde_ve"), concat_channels=3)


@torch.no_grad()
def test_a_new_embedding_is_zero_and_a_trained_one_tells_near_values_apart():
    embedding = ScalarEmbedding(16)
    values = torch.tensor([100.0, 110.0, 900.0])

    assert torch.equal(embedding(values), torch.zeros(3, 16))
    perturb(embedding)
    apart = torch.cdist(embedding(values), embedding(values))
    assert apart[0, 1] > 0.05
    assert apart[0, 2] > apart[0, 1]


def test_key_frames_come_with_the_mask_that_says_which_they_are():
    clip = torch.randn(2, 3, 4, 2, 2)
    is_key = torch.tensor([[True, False, False, True], [False, True, False, False]])
    channels = key_frame_channels(clip, is_key)

    assert channels.shape == (2, 4, 4, 2, 2)
    for b in range(2):
        for t in range(4):
            assert torch.equal(channels[b, :3, t], clip[b, :, t] * is_key[b, t])
            assert (channels[b, 3, t] == is_key[b, t]).all()


def test_low_resolution_clips_are_scaled_up_frame_by_frame():
    clip = torch.randn(2, 3, 4, 2, 2)
    large = low_resolution_channels(clip, (6, 4))

    assert large.shape == (2, 3, 4, 6, 4)
    alone = low_resolution_channels(clip[1:, :, 2:3], (6, 4))
    assert torch.equal(large[1:, :, 2:3], alone)
    constant = low_resolution_channels(torch.full((1, 1, 2, 2, 2), 0.3), (4, 4))
    torch.testing.assert_close(constant, torch.full((1, 1, 2, 4, 4), 0.3))
