"""Inflation of every published kind of image UNet: nothing of it is skipped, and it is itself frame by frame."""

import copy
import re
from dataclasses import fields

import architectures
import pytest
import torch
from architectures import NAMES, clips, conditions, image_by_image
from tiny import make_unet, perturb
from torch import nn

from pyoco_pipeline.config import InflateSettings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import InflationOptions, inflate
from pyoco_pipeline.models.fast import lower_weights
from pyoco_pipeline.models.relative_attention import RelativeTemporalAttention
from pyoco_pipeline.models.temporal import TemporalAttention, TemporalConv

TIMESTEP = torch.tensor([3.0, 700.0])


def paths(model: nn.Module, pattern: str) -> set[str]:
    return {path for path, _ in model.named_modules() if re.fullmatch(pattern, path)}


def temporal_paths(model: nn.Module, kind: type) -> set[str]:
    return {key.replace("/", ".") for key, module in model.temporal.items() if isinstance(module, kind)}


def loss(model: nn.Module, frames: int = 3) -> torch.Tensor:
    cond = conditions(model.image_model, 2)
    return model(clips(model.image_model, frames), TIMESTEP, **cond).sample.square().mean()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_an_inflated_model_equals_the_image_model_at_any_number_of_frames(name):
    image_model = architectures.make(name)
    cond, x = conditions(image_model, 2), clips(image_model, 16)
    expected = image_by_image(image_model, x, TIMESTEP, **cond)
    model = inflate(image_model)

    for frames in (1, 2, 5, 16):
        out = model(x[:, :, :frames], TIMESTEP, **cond).sample
        torch.testing.assert_close(out, expected[:, :, :frames], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_frame_is_bitwise_the_image_models_with_any_temporal_weights(name):
    image_model = architectures.make(name)
    cond, x = conditions(image_model, 2), clips(image_model, 3)
    expected = image_model(x[:, :, 0], TIMESTEP, **cond).sample
    model = inflate(image_model)
    perturb(model.temporal)

    assert torch.equal(model(x[:, :, :1], TIMESTEP, **cond).sample[:, :, 0], expected)
    assert not torch.allclose(model(x, TIMESTEP, **cond).sample[:, :, 0], expected, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_residual_block_has_a_convolution_and_every_attention_block_an_attention(name):
    image_model = architectures.make(name)
    # Named by diffusers' blocks, not by class: lists of resnets and attentions, and resnets that change the resolution.
    residual = paths(image_model, r".*\.resnets\.\d+|.*\.resnet_(down|up)")
    residual |= {
        p for p in paths(image_model, r".*\.(down|up)samplers\.0") if "norm1" in dict(_child(image_model, p))
    }
    attention = paths(image_model, r".*\.attentions\.\d+")
    model = inflate(image_model)

    assert temporal_paths(model, TemporalConv) == residual
    assert temporal_paths(model, TemporalAttention) == attention
    assert len(residual) >= 5
    assert attention


def _child(model, path):
    return model.get_submodule(path).named_children()


@pytest.mark.parametrize("name", NAMES)
def test_last_projections_learn_at_once_and_everything_temporal_after_one_step(name):
    model = inflate(architectures.make(name))
    loss(model).backward()
    for key, module in model.temporal.items():
        last = module.conv if isinstance(module, TemporalConv) else module.to_out
        assert last.weight.grad.abs().max() > 0, key

    torch.optim.Adam(model.temporal.parameters(), lr=1e-2).step()
    model.zero_grad()
    loss(model).backward()
    for path, parameter in model.temporal.named_parameters():
        assert parameter.grad.abs().max() > 0, path


@pytest.mark.parametrize("name", NAMES)
def test_recomputing_activations_gives_the_same_gradients(name):
    plain = inflate(architectures.make(name))
    perturb(plain.temporal)
    recomputing = copy.deepcopy(plain)
    recomputing.checkpoint_gradients()
    kept = {}
    for model in (plain, recomputing):
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = loss(model)
        kept[model] = saved
        # Another clip length before the backward pass must not change what is recomputed.
        with torch.no_grad():
            loss(model, frames=1)
        value.backward()

    for (path, ours), theirs in zip(recomputing.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, path
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5, msg=path)
    assert kept[recomputing] < 0.6 * kept[plain]


def test_recomputing_repeats_the_dropout_of_the_forward_pass():
    plain = inflate(make_unet(dropout=0.5)).train()
    recomputing = copy.deepcopy(plain)
    recomputing.checkpoint_gradients()
    for model in (plain, recomputing):
        torch.manual_seed(0)
        cond = {"encoder_hidden_states": torch.ones(2, 4, 8)}
        model(clips(model.image_model, 3), TIMESTEP, **cond).sample.square().mean().backward()

    for ours, theirs in zip(recomputing.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_settings_of_the_pipeline_are_the_options_of_inflation():
    assert InflateSettings().options() == {f.name: f.default for f in fields(InflationOptions)}


def test_attention_goes_to_the_levels_asked_for():
    def levels(*wanted):
        model = inflate(architectures.make("stable_diffusion_1_5"), attention_levels=wanted)
        return {key.split("/attentions")[0] for key in model.temporal if "/attentions" in key}

    assert levels(0) == {"down_blocks/0", "up_blocks/3"}
    assert levels(1, 2) == {"down_blocks/1", "down_blocks/2", "up_blocks/2", "up_blocks/1"}
    assert levels(3) == {"mid_block"}  # the coarsest level of Stable Diffusion has no attention else


def test_a_level_without_attention_is_refused_with_those_that_have_some():
    with pytest.raises(UserError, match=r"inflate\.attention_levels has 0, .* at levels \[1\]"):
        inflate(make_unet(), attention_levels=[0, 1])


@pytest.mark.parametrize(("options", "head_dim"), [({"heads": 4}, 4), ({"head_dim": 2}, 2), ({}, 8)])
def test_heads_or_their_width_can_be_chosen(options, head_dim):
    model = inflate(make_unet(), **options)  # attention blocks of 16 channels

    assert {m.head_dim for m in model.temporal.values() if isinstance(m, TemporalAttention)} == {head_dim}


def test_heads_fit_widths_that_64_does_not_divide():
    model = inflate(architectures.make("class_conditional", block_out_channels=(8, 160)))

    assert {m.head_dim for m in model.temporal.values() if isinstance(m, TemporalAttention)} == {40}


@torch.no_grad()
def test_relative_positions_are_a_bias_on_the_distance_of_frames():
    module = RelativeTemporalAttention(8, 4, max_frames=6)
    perturb(module)
    bias = module.bias(4)

    assert bias.shape == (2, 4, 4)
    for lag in range(-3, 4):
        assert bias.diagonal(lag, 1, 2).unique(dim=1).shape == (2, 1)
    assert bias.unique().numel() == 2 * 7


@torch.no_grad()
def test_relative_attention_without_a_bias_is_attention_without_positions(monkeypatch):
    relative, rotary = RelativeTemporalAttention(8, 4, max_frames=5), TemporalAttention(8, 4)
    perturb(relative)
    relative.position_bias.zero_()
    rotary.load_state_dict(relative.state_dict() | {}, strict=False)
    x = torch.randn(5, 8, 2, 2)
    shuffled = torch.tensor([3, 0, 4, 1, 2])

    torch.testing.assert_close(relative(x, 5)[shuffled], relative(x[shuffled], 5))
    perturb(relative)
    assert not torch.allclose(relative(x, 5)[shuffled], relative(x[shuffled], 5), atol=1e-3)


@torch.no_grad()
def test_sinusoidal_positions_tell_the_first_frame_from_the_others():
    """Rotary ones can't: alike frames stay alike."""
    still = torch.randn(1, 8, 2, 2).expand(5, -1, -1, -1)
    rotary, sinusoidal = TemporalAttention(8, 4), TemporalAttention(8, 4, absolute=True)
    perturb(rotary)
    sinusoidal.load_state_dict(rotary.state_dict())

    torch.testing.assert_close(rotary(still, 5)[0], rotary(still, 5)[3])
    assert not torch.allclose(sinusoidal(still, 5)[0], sinusoidal(still, 5)[3], atol=1e-3)


def test_an_inflated_model_has_the_positions_that_it_was_asked_for():
    for position, absolute in {"rotary": False, "sinusoidal": True}.items():
        modules = inflate(make_unet(), position=position).temporal.values()
        assert {m.absolute for m in modules if isinstance(m, TemporalAttention)} == {absolute}


def test_relative_positions_learn_and_end_at_their_range():
    model = inflate(make_unet(), position="relative", max_frames=4)
    cond = {"encoder_hidden_states": torch.ones(2, 4, 8)}
    perturb(model.temporal)
    model(clips(model.image_model, 4), TIMESTEP, **cond).sample.square().mean().backward()
    biases = [m.position_bias for m in model.temporal.values() if isinstance(m, RelativeTemporalAttention)]

    assert len(biases) == 4
    assert all((bias.grad != 0).all() for bias in biases)
    with pytest.raises(UserError, match=r"5 frames, .* up to inflate\.max_frames=4"):
        model(clips(model.image_model, 5), TIMESTEP, **cond)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"heads": 2, "head_dim": 8}, r"inflate\.heads=2 and inflate\.head_dim=8"),
        ({"heads": 3}, r"inflate\.heads=3 does not fit .* with 16 channels"),
        ({"heads": 16}, r"inflate\.heads=16 does not fit"),  # one channel each can't be rotated
        ({"position": "learned"}, r"inflate\.position='learned'"),
        ({"position": "relative"}, r"inflate\.max_frames=0 with inflate\.position=relative"),
        ({"max_frames": 8}, r"inflate\.max_frames=8 with inflate\.position=rotary"),
        ({"attention_levels": []}, r"inflate\.attention_levels=\(\)"),
        ({"attention_levels": [-1]}, r"inflate\.attention_levels=\(-1,\)"),
        ({"attention_levels": [7]}, r"inflate\.attention_levels has 7"),
        ({"convolution": "yes"}, r"inflate\.convolution='yes'"),
        ({"concat_channels": -1}, r"inflate\.concat_channels=-1"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_their_names(options, complaint):
    with pytest.raises(UserError, match=complaint):
        inflate(make_unet(), **options)


def test_dual_cross_attention_is_refused_by_its_name():
    with pytest.raises(UserError, match="dual_cross_attention=true"):
        inflate(make_unet(dual_cross_attention=True))


def test_a_block_of_another_kind_is_refused_by_its_name():
    image_model = make_unet()
    image_model.down_blocks[0] = type("MyDownBlock2D", (nn.Module,), {})()

    with pytest.raises(UserError, match="down_block_types has MyDownBlock2D"):
        inflate(image_model)


def test_a_model_is_inflated_once():
    image_model = make_unet()
    inflate(image_model)

    with pytest.raises(UserError, match="inflated already"):
        inflate(image_model)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_that_are_held_as_autocast_casts_them_give_the_same_clips(name):
    model = inflate(architectures.make(name))
    perturb(model.temporal)
    cond, x = conditions(model.image_model, 2), clips(model.image_model, 3)
    size = sum(p.nbytes for p in model.parameters())

    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x, TIMESTEP, **cond).sample
        lower_weights(model, torch.bfloat16)
        assert torch.equal(model(x, TIMESTEP, **cond).sample, expected)
    assert sum(p.nbytes for p in model.parameters()) < 0.65 * size
