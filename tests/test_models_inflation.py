"""Inflation: a new video model is the image model frame by frame; a trained one lets frames of one clip meet."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from tiny import make_unet, make_video_unet, perturb, text_condition
from torch import nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import FrameByFrame, inflate
from pyoco_pipeline.models.fused import rotate
from pyoco_pipeline.models.temporal import TemporalAttention, TemporalConv, rotary_angles

TIMESTEP = torch.tensor([3.0, 700.0])


def unconditional_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def clips(frames: int, batch: int = 2, channels: int = 3, size: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, frames, size, size, generator=torch.Generator().manual_seed(seed))


def condition_for(model: nn.Module, batch: int = 2) -> dict[str, torch.Tensor]:
    return text_condition(batch) if isinstance(model, UNet2DConditionModel) else {}


def image_by_image(model: nn.Module, x: torch.Tensor, timestep: torch.Tensor, **cond) -> torch.Tensor:
    """What the image model itself makes of every frame."""
    return torch.stack([model(frame, timestep, **cond).sample for frame in x.unbind(2)], dim=2)


@pytest.fixture
def trained():
    """A video model whose temporal weights are no longer new."""
    return make_video_unet()


def temporal(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    perturb(module)
    return module


MODULES = {"conv": lambda: TemporalConv(8, 4), "attention": lambda: TemporalAttention(8, 4)}


@pytest.mark.parametrize("image_model", [make_unet, unconditional_unet])
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
@torch.no_grad()
def test_a_new_video_model_equals_the_image_model_frame_by_frame(image_model, frames):
    image_model = image_model()
    x, cond = clips(frames), condition_for(image_model)
    expected = image_by_image(image_model, x, TIMESTEP, **cond)

    torch.testing.assert_close(
        inflate(image_model)(x, TIMESTEP, **cond).sample, expected, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_frame_by_frame_gives_every_frame_its_clips_timestep_and_text():
    model, x, cond = make_unet(), clips(3), text_condition(2)

    out = FrameByFrame(model)(x, TIMESTEP, **cond).sample

    torch.testing.assert_close(out, image_by_image(model, x, TIMESTEP, **cond), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("image_model", [make_unet, unconditional_unet])
@torch.no_grad()
def test_a_clip_of_one_frame_is_bitwise_the_image_models_whatever_the_temporal_weights(image_model):
    image_model = image_model()
    x, cond = clips(1), condition_for(image_model)
    expected = image_model(x[:, :, 0], TIMESTEP, **cond).sample
    model = inflate(image_model)
    perturb(model.temporal)

    assert torch.equal(model(x, TIMESTEP, **cond).sample[:, :, 0], expected)


@pytest.mark.parametrize("image_model", [make_unet, unconditional_unet])
def test_every_temporal_projection_has_a_gradient_at_step_one(image_model):
    model = inflate(image_model())
    model(clips(3), TIMESTEP, **condition_for(model.image_model)).sample.square().mean().backward()

    kinds = {type(module) for module in model.temporal.values()}
    assert kinds == {TemporalConv, TemporalAttention}
    for path, module in model.temporal.items():
        last = module.conv if isinstance(module, TemporalConv) else module.to_out
        assert last.weight.grad.abs().max() > 0, path


@torch.no_grad()
def test_temporal_modules_let_every_frame_of_a_clip_see_the_others(trained):
    x, cond = clips(4), text_condition(2)
    changed = x.clone()
    changed[0, :, 2] += 1.0

    moved = (trained(changed, TIMESTEP, **cond).sample - trained(x, TIMESTEP, **cond).sample).abs()

    assert moved[0].amax(dim=(0, 2, 3)).min() > 1e-4


@torch.no_grad()
def test_clips_of_one_batch_never_see_each_other(trained):
    x, cond = clips(4), text_condition(2)
    changed = x.clone()
    changed[0] += 1.0

    before, after = (trained(video, TIMESTEP, **cond).sample for video in (x, changed))

    assert not torch.equal(before[0], after[0])
    torch.testing.assert_close(before[1], after[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch(trained):
    x, cond = clips(4), text_condition(2)
    alone = trained(x[1:], TIMESTEP[1:], **{key: value[1:] for key, value in cond.items()}).sample

    torch.testing.assert_close(trained(x, TIMESTEP, **cond).sample[1:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 5, 17])
@torch.no_grad()
def test_one_model_takes_clips_of_any_length(trained, frames):
    out = trained(clips(frames), TIMESTEP, **text_condition(2)).sample

    assert out.shape == (2, 3, frames, 8, 8)
    assert out.isfinite().all()


@pytest.mark.parametrize("frames", [2, 5])
@torch.no_grad()
def test_a_model_that_saw_clips_gives_the_same_answer_after_an_image(trained, frames):
    x, cond = clips(frames), text_condition(2)
    first = trained(x, TIMESTEP, **cond).sample
    trained(clips(1), TIMESTEP, **cond)

    assert torch.equal(trained(x, TIMESTEP, **cond).sample, first)


@torch.no_grad()
def test_a_deep_copy_has_temporal_modules_of_its_own(trained):
    x, cond = clips(3), text_condition(2)
    before = trained(x, TIMESTEP, **cond).sample
    copied = copy.deepcopy(trained)
    for module in (trained.temporal, trained.image_model):
        for p in module.parameters():
            p.zero_()

    assert torch.equal(copied(x, TIMESTEP, **cond).sample, before)


@pytest.mark.parametrize("kind", MODULES)
@torch.no_grad()
def test_a_new_temporal_module_is_bitwise_the_identity(kind):
    x = torch.randn(6, 8, 4, 4)
    assert torch.equal(MODULES[kind]()(x, 3), x)


@torch.no_grad()
def test_the_norm_of_a_frame_knows_nothing_of_other_frames():
    x = clips(5, batch=1, channels=8)[0].transpose(0, 1)  # (T, C, H, W)
    changed = x.clone()
    changed[3] = 50.0 * x[3] + 7.0

    # A kernel of three frames reaches frame 3 from frames 2 and 4; frames 0 and 1 could see it through norms only.
    conv = temporal(TemporalConv(8, 4))
    assert torch.equal(conv(x, 5)[:2], conv(changed, 5)[:2])

    # Attention that takes every value from its own frame would see other frames through norms only.
    attention = temporal(TemporalAttention(8, 4))
    seen = []
    hook = attention.norm.register_forward_hook(lambda _m, _i, output: seen.append(output))
    attention(x, 5), attention(changed, 5)
    hook.remove()
    before, after = seen  # (B*T, H, W, C)
    others = [0, 1, 2, 4]
    assert torch.equal(before[others], after[others])


@pytest.mark.parametrize("kind", MODULES)
@torch.no_grad()
def test_temporal_modules_never_mix_positions(kind):
    module = temporal(MODULES[kind]())
    if kind == "conv":
        module.norm = nn.Identity()  # group norm pools the positions of one frame, as the image model's does
    x = torch.randn(5, 8, 4, 4)
    changed = x.clone()
    changed[:, :, 2, 3] += 3.0

    moved = (module(x, 5) - module(changed, 5)).abs().amax(dim=(0, 1)) > 1e-6

    assert moved.nonzero().tolist() == [[2, 3]]


@pytest.mark.parametrize("kind", MODULES)
@torch.no_grad()
def test_temporal_modules_give_the_same_in_both_memory_formats(kind):
    module, x = temporal(MODULES[kind]()), torch.randn(6, 8, 4, 4)

    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last), 3), module(x, 3))


@torch.no_grad()
def test_temporal_convolution_is_a_3d_convolution_over_frames():
    module, x = temporal(TemporalConv(8, 4)), torch.randn(6, 8, 4, 4)
    hidden = module.norm(x).unflatten(0, (2, 3)).transpose(1, 2)  # (B, C, T, H, W)
    expected = F.conv3d(hidden, module.conv.weight[..., None], module.conv.bias, padding=(1, 0, 0))

    torch.testing.assert_close(module(x, 3), x + expected.transpose(1, 2).flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_rotated_queries_and_keys_depend_on_the_difference_of_their_frames_only():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64).expand(2, 12, 8)
    angles = rotary_angles(12, 8, q.device)
    q, k = (
        rotate(t[None, :, None, None], *angles)[0, :, 0, 0] for t in (q, k)
    )  # it takes (B, T, HW, heads, D)
    dots = q @ k.T

    for lag in range(-11, 12):
        diagonal = dots.diagonal(lag)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)
    assert dots[0].std() > 1e-3


def test_rotation_keeps_lengths_and_frame_zero():
    x = torch.randn(3, 7, 2, 2, 16)
    rotated = rotate(x, *rotary_angles(7, 16, x.device))

    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotated[:, 0], x[:, 0])


@torch.no_grad()
def test_attention_of_a_frozen_clip_gives_every_frame_the_same():
    module, frame = temporal(TemporalAttention(8, 4)), torch.randn(1, 8, 4, 4)
    out = module(frame.expand(6, -1, -1, -1), 6)

    torch.testing.assert_close(out, out[:1].expand_as(out), atol=1e-5, rtol=1e-5)


def test_options_choose_the_temporal_modules():
    def kinds(**options):
        return {type(module) for module in inflate(make_unet(), **options).temporal.values()}

    assert kinds(attention=False) == {TemporalConv}
    assert kinds(convolution=False) == {TemporalAttention}
    assert kinds(convolution=False, attention=False) == set()


@pytest.mark.parametrize("head_dim", [3, 5, 6, 32])
def test_a_head_dim_that_does_not_fit_is_refused_by_its_name(head_dim):
    with pytest.raises(UserError, match=rf"inflate\.head_dim={head_dim} does not fit .* with 16 channels"):
        inflate(make_unet(), head_dim=head_dim)


@pytest.mark.parametrize("other", [nn.Linear(2, 2), AutoencoderKL(block_out_channels=(32,))])
def test_a_model_of_another_class_is_refused(other):
    with pytest.raises(UserError, match=f"not {type(other).__name__}"):
        inflate(other)
