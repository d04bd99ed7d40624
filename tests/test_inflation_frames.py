"""Conditions of clips become conditions of frames by their first axis and their layout, never by accident."""

import copy

import pytest
import torch
import torch.nn.functional as F
from architectures import clips, conditions, image_by_image, make
from tiny import TEXT_DIM, make_unet, perturb, text_condition
from torch import nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import FrameByFrame, inflate
from pyoco_pipeline.models.frame_by_frame import per_frame

TIMESTEP = torch.tensor([3.0, 700.0])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 2)])
def test_a_first_axis_of_clips_of_frames_or_of_one_is_told_apart(batch, frames):
    of_clips, of_frames, of_all = normal(batch, 5), normal(batch * frames, 5), normal(1, 5)

    for clip in range(batch):
        for frame in range(frames):
            image = clip * frames + frame
            assert torch.equal(per_frame("a", of_clips, batch, frames)[image], of_clips[clip])
            assert torch.equal(per_frame("a", of_frames, batch, frames)[image], of_frames[image])
            assert torch.equal(per_frame("a", of_all, batch, frames)[image], of_all[0])


@pytest.mark.parametrize(("batch", "frames"), [(1, 3), (2, 2), (3, 2)])
def test_a_tensor_laid_out_as_a_clip_gives_each_frame_its_own(batch, frames):
    # As many channels as clips or frames, so that a look at another axis would be seen.
    for channels in {batch, frames, batch * frames}:
        features = normal(batch, channels, frames, 4, 4)
        images = per_frame("a", features, batch, frames)

        assert images.shape == (batch * frames, channels, 4, 4)
        assert torch.equal(images[frames - 1], features[0, :, frames - 1])


def test_lists_tuples_and_dicts_keep_their_kind_and_order():
    a, b = normal(2, 4), normal(2, 3)

    given = {"list": [a, b], "tuple": (a,), "dict": {"inner": b}, "number": 2.0, "none": None, "name": "x"}
    out = {key: per_frame(key, value, 2, 3) for key, value in given.items()}

    assert [item.shape for item in out["list"]] == [(6, 4), (6, 3)]
    assert isinstance(out["tuple"], tuple)
    assert out["dict"]["inner"].shape == (6, 3)
    assert (out["number"], out["none"], out["name"]) == (2.0, None, "x")
    assert given["list"][0] is a  # diffusers empties lists that it is given; it gets another


def test_a_scalar_timestep_is_for_all_frames():
    model = FrameByFrame(make_unet())
    x, text = clips(model.image_model, 3), text_condition(2)

    expected = model(x, torch.tensor([7.0, 7.0]), **text).sample
    for timestep in (torch.tensor(7.0), torch.tensor([7.0]), 7.0):
        torch.testing.assert_close(model(x, timestep, **text).sample, expected)


def test_of_cross_attention_kwargs_only_boxes_are_per_clip():
    mask = normal(1, 1, 8, 8)
    boxes = {"boxes": normal(2, 4, 4), "masks": normal(2, 4)}
    out = per_frame(
        "cross_attention_kwargs", {"scale": 0.5, "ip_adapter_masks": [mask], "gligen": boxes}, 2, 3
    )

    assert out["scale"] == 0.5
    assert out["ip_adapter_masks"][0] is mask
    assert {key: value.shape[0] for key, value in out["gligen"].items()} == {"boxes": 6, "masks": 6}


@pytest.mark.parametrize("shape", [(5, 4), (3, 4), (2, 4, 2, 8, 8), (6, 4, 3, 8, 8)])
def test_a_first_axis_that_is_neither_is_refused_by_its_name(shape):
    with pytest.raises(
        UserError, match=r"added\.x has shape .*2 clips of 3 frames.*2 \(per clip\), 6 \(per frame\)"
    ):
        per_frame("added", {"x": normal(*shape)}, 2, 3)


def residuals(model, batch, *frames):
    """ControlNet's: one for each skip connection and one for the middle."""
    shapes = []
    hooks = [model.conv_in.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape))]
    for block in model.down_blocks:
        hooks.append(block.register_forward_hook(lambda _m, _i, out: shapes.extend(r.shape for r in out[1])))
    x = clips(model, 1, batch)[:, :, 0]
    model(x, TIMESTEP[:batch], **conditions(model, batch))
    for hook in hooks:
        hook.remove()
    made = [normal(batch, shape[1], *frames, *shape[2:], seed=i) for i, shape in enumerate(shapes)]
    return tuple(made), normal(*made[-1].shape, seed=99)


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_controlnets_residuals_reach_their_own_frame(batch):
    model, frames = make("stable_diffusion_1_5"), 3
    x, cond, timestep = clips(model, frames, batch), conditions(model, batch), TIMESTEP[:batch]
    down, middle = residuals(model, batch, frames)
    expected = torch.stack(
        [
            model(
                x[:, :, t],
                timestep,
                down_block_additional_residuals=tuple(r[:, :, t] for r in down),
                mid_block_additional_residual=middle[:, :, t],
                **cond,
            ).sample
            for t in range(frames)
        ],
        dim=2,
    )

    given = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    out = inflate(model)(x, timestep, **given, **cond).sample

    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(out, image_by_image(model, x, timestep, **cond), atol=1e-2)


@torch.no_grad()
def test_an_adapters_residuals_are_repeated_and_the_callers_list_stays():
    model = make("stable_diffusion_1_5")
    x, cond = clips(model, 3), conditions(model, 2)
    adapter = [normal(2, width, 8 // 2**i, 8 // 2**i) for i, width in enumerate((8, 16, 16, 16))]
    # Diffusers adds to the last down block in place, so every frame is given copies.
    expected = torch.stack(
        [
            model(
                frame, TIMESTEP, down_intrablock_additional_residuals=[r.clone() for r in adapter], **cond
            ).sample
            for frame in x.unbind(2)
        ],
        dim=2,
    )
    out = FrameByFrame(model)(x, TIMESTEP, down_intrablock_additional_residuals=adapter, **cond).sample

    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert len(adapter) == 4


@torch.no_grad()
def test_text_masks_and_added_conditions_may_differ_from_frame_to_frame():
    model = make("stable_diffusion_xl")
    x, cond = clips(model, 3), conditions(model, 6)
    images = x.transpose(1, 2).flatten(0, 1)
    timestep = torch.linspace(1.0, 900.0, 6)
    expected = model(images, timestep, **cond).sample

    out = FrameByFrame(model)(x, timestep, **cond).sample

    torch.testing.assert_close(out.transpose(1, 2).flatten(0, 1), expected)


@torch.no_grad()
def test_attention_masks_of_text_and_image_are_per_clip():
    model = make("deepfloyd_if_1")
    x, cond = clips(model, 2), conditions(model, 2)
    cond["attention_mask"] = cond.pop("encoder_attention_mask")  # what UnCLIP names the text's mask

    out = inflate(model)(x, TIMESTEP, **cond).sample

    torch.testing.assert_close(out, image_by_image(model, x, TIMESTEP, **cond), atol=1e-5, rtol=0)
    unmasked = {key: value for key, value in cond.items() if key != "attention_mask"}
    assert not torch.allclose(out[1], image_by_image(model, x, TIMESTEP, **unmasked)[1], atol=1e-4)


@torch.no_grad()
def test_a_tuple_comes_back_where_diffusers_gives_one():
    model = FrameByFrame(make_unet())
    x, text = clips(model.image_model, 3), text_condition(2)

    (out,) = model(x, TIMESTEP, return_dict=False, **text)

    assert torch.equal(out, model(x, TIMESTEP, **text).sample)


def test_the_image_stage_recomputes_too():
    plain, recomputing = FrameByFrame(make_unet()), FrameByFrame(make_unet())
    recomputing.checkpoint_gradients()
    for model in (plain, recomputing):
        assert isinstance(model, nn.Module)
        model(clips(model.image_model, 1), TIMESTEP, **text_condition(2)).sample.square().mean().backward()

    for ours, theirs in zip(recomputing.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_image_model_of_a_trained_video_model_stays_one():
    image_model = make_unet()
    x, text = clips(image_model, 3), text_condition(2)
    expected = image_by_image(image_model, x, TIMESTEP, **text)
    model = inflate(image_model, fps=True)
    perturb(model.temporal)
    perturb(model.conditioning)
    model(x, TIMESTEP, fps=torch.tensor([8.0, 24.0]), **text)

    assert torch.equal(image_by_image(image_model, x, TIMESTEP, **text), expected)


def test_blocks_of_pixels_are_positions_of_a_network_with_as_many_times_the_channels():
    image_model = make_unet(in_channels=12, out_channels=12)
    network, x = FrameByFrame(copy.deepcopy(image_model)).eval(), torch.randn(2, 3, 4, 16, 16)
    text = torch.randn(2, 5, image_model.config.cross_attention_dim)

    with torch.no_grad():
        found = network(x, torch.ones(2), encoder_hidden_states=text).sample
        frame = F.pixel_unshuffle(x[:, :, 1], 2)
        expected = F.pixel_shuffle(image_model(frame, torch.ones(2), text).sample, 2)

    assert found.shape == x.shape
    torch.testing.assert_close(found[:, :, 1], expected, atol=1e-5, rtol=1e-5)


def test_channels_that_are_no_square_multiple_are_refused():
    network, text = FrameByFrame(make_unet(in_channels=12, out_channels=12)), torch.randn(1, 5, TEXT_DIM)

    with pytest.raises(UserError, match="takes 12 channels, the clips have 4"):
        network(torch.randn(1, 4, 2, 16, 16), torch.ones(1), encoder_hidden_states=text)


def test_a_missing_concatenated_clip_is_not_taken_for_blocks_of_pixels():
    network, text = inflate(make_unet(), concat_channels=9), torch.randn(1, 5, TEXT_DIM)

    with pytest.raises(UserError, match="takes 12 channels, x has 3 and concat 0"):
        network(torch.randn(1, 3, 2, 16, 16), torch.ones(1), encoder_hidden_states=text)
