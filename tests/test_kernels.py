"""The kernels on a CUDA GPU against torch's own operations in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyoco_pipeline.models.fused import attend, attend_over_frames, group_norm_silu, rotate
from pyoco_pipeline.models.temporal import rotary_angles
from pyoco_pipeline.noise import MixedNoise, NoisePrior, ProgressiveNoise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # relative, of the norm


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("channels", "size", "groups", "embedding"),
    [(320, 16, 32, "add"), (512, 32, 32, "scale and shift"), (96, 9, 32, "both"), (24, 5, 3, "none")],
)
def test_group_norm_and_its_gradients(
    dtype: torch.dtype, compiled: bool, channels: int, size: int, groups: int, embedding: str
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(4, channels, size, size, device="cuda") + 0.5).to(
        dtype, memory_format=torch.channels_last
    )
    weight, bias = (torch.randn(channels, device="cuda").requires_grad_() for _ in range(2))
    add = torch.randn(4, channels, device="cuda").requires_grad_() if embedding in ("add", "both") else None
    scale, shift = (torch.randn(4, channels, device="cuda").requires_grad_() for _ in range(2))
    scaled = embedding in ("scale and shift", "both")
    inputs = [x.requires_grad_(), weight, bias]
    inputs += [add] if add is not None else []
    inputs += [scale, shift] if scaled else []
    call = torch.compile(group_norm_silu, dynamic=False) if compiled else group_norm_silu

    found = call(x, groups, weight, bias, add=add, scale_shift=(scale, shift) if scaled else None)
    dy = torch.randn_like(found)
    gradients = torch.autograd.grad(found, inputs, dy)

    h = x.double() if add is None else x.double() + add.double()[:, :, None, None]
    h = F.group_norm(h, groups, weight.double(), bias.double(), 1e-5)
    if scaled:
        h = h * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
    expected = F.silu(h)
    assert error(found, expected) < TOLERANCE[dtype]
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs, dy.double()), strict=True):
        assert error(gradient, wanted) < TOLERANCE[dtype]
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("frames", "dim"), [(16, 64), (5, 24), (20, 40), (32, 128)])
def test_attention_over_frames_and_its_gradient(
    dtype: torch.dtype, compiled: bool, frames: int, dim: int
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, frames, 9, 3, 4, dim, device="cuda").to(dtype).requires_grad_()
    angles = rotary_angles(frames, dim, qkv.device)
    call = torch.compile(attend_over_frames, dynamic=False) if compiled else attend_over_frames

    found = call(qkv, *angles)
    do = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, qkv, do)

    q, k, v = qkv.double().unbind(3)
    cos, sin = (angle.double() for angle in angles)
    expected = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
    assert error(found, expected) < TOLERANCE[dtype]
    assert error(gradient, torch.autograd.grad(expected, qkv, do.double())[0]) < TOLERANCE[dtype]


PRIORS = [ProgressiveNoise(2.0), MixedNoise(1.0), ProgressiveNoise(0.0), MixedNoise(float("inf"))]


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
@pytest.mark.parametrize("frames", [2, 5, 16])
def test_noise_drawn_in_one_pass_has_the_priors_covariance(prior: NoisePrior, frames: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    noise = prior.sample((4, 3, frames, 100, 130), generator=generator).double()

    pixels = noise.transpose(1, 2).transpose(0, 1).flatten(1)
    found = (pixels @ pixels.T / pixels.shape[1]).cpu()

    # Six standard errors: among 256 entries, chance passes it once in two million runs.
    tolerance = 6 * (2 / pixels.shape[1]) ** 0.5
    torch.testing.assert_close(found, prior.covariance(frames), atol=tolerance, rtol=0)
    assert abs(pixels.mean()) < 6 * (frames / pixels.numel()) ** 0.5
    assert abs((pixels**4).mean() - 3) < 6 * (96 / pixels.shape[1]) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clips_noise_is_the_same_in_every_batch(dtype: torch.dtype) -> None:
    def draw(*seeds: int) -> Tensor:
        generators = [torch.Generator("cuda").manual_seed(seed) for seed in seeds]
        return ProgressiveNoise(2.0).sample((len(seeds), 3, 16, 32, 32), generator=generators, dtype=dtype)

    together = draw(0, 1, 2)

    assert torch.equal(together[1:2], draw(1))
    assert not torch.equal(together[0], together[1])
    assert together.dtype == dtype


def test_channels_and_neighbouring_pixels_are_independent() -> None:
    noise = ProgressiveNoise(2.0).sample((8, 3, 4, 64, 64), device="cuda").double()
    tolerance = 6 * noise[:, 0, 0].numel() ** -0.5

    assert abs((noise[:, 0, 0] * noise[:, 1, 0]).mean()) < tolerance
    assert abs((noise[:, 0, 0, :, 1:] * noise[:, 0, 0, :, :-1]).mean()) < tolerance
    assert abs((noise[:, 0, 0, 1:] * noise[:, 0, 0, :-1]).mean()) < tolerance
    assert abs((noise[0] * noise[1]).mean()) < tolerance * 8**0.5
