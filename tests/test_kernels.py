"""The kernels on a CUDA GPU against torch's own operations in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyoco_pipeline.models.fused import (
    attend,
    attend_over_frames,
    geglu,
    group_norm_silu,
    layer_norm,
    rotate,
)
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
    [
        (320, 16, 32, "add"),
        (512, 32, 32, "scale and shift"),
        (96, 9, 32, "both"),
        (24, 5, 3, "none"),
        (48, 8, 6, "none"),
        (96, 32, 3, "add"),
        (32, 80, 8, "both"),  # more positions than a program holds
    ],
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


def test_a_bias_that_all_images_share_is_read_as_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64, 6, 6, device="cuda").to(memory_format=torch.channels_last)
    weight, bias, add = torch.randn(3, 64, device="cuda").unbind()

    found = group_norm_silu(x, 8, weight, bias, add=add.expand(4, -1))

    assert error(found, group_norm_silu(x, 8, weight, bias, add=add.repeat(4, 1)).double()) < 1e-7


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


def compiled_or_not(shape: tuple[int, ...], first: tuple[int, ...]) -> list[bool]:
    """Compiling takes seconds, so only one shape is."""
    return [False, True] if shape == first else [False]


NORMED = [(3, 40, 320), (5, 7, 640), (700, 1280), (2, 9, 5, 96), (1, 24), (3, 3000)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("shape", "compiled"), [(shape, how) for shape in NORMED for how in compiled_or_not(shape, NORMED[0])]
)
def test_layer_norm_and_its_gradients(dtype: torch.dtype, compiled: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    channels = shape[-1]
    x = (torch.randn(shape, device="cuda") * 2 + 3).to(dtype).requires_grad_()
    weight, bias = (torch.randn(channels, device="cuda").requires_grad_() for _ in range(2))
    call = torch.compile(layer_norm, dynamic=False) if compiled else layer_norm

    found = call(x, weight, bias)
    dy = torch.randn_like(found)
    gradients = torch.autograd.grad(found, (x, weight, bias), dy)

    expected = F.layer_norm(x.double(), (channels,), weight.double(), bias.double())
    assert found.dtype == dtype
    assert [gradient.dtype for gradient in gradients] == [dtype, torch.float32, torch.float32]
    assert error(found, expected) < TOLERANCE[dtype]
    wanted = torch.autograd.grad(expected, (x, weight, bias), dy.double())
    for gradient, one in zip(gradients, wanted, strict=True):
        assert error(gradient, one) < TOLERANCE[dtype]


GATED = [(3, 40, 2560), (700, 5120), (2, 9, 10240), (2, 3, 5, 48), (1, 200)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("shape", "compiled"), [(shape, how) for shape in GATED for how in compiled_or_not(shape, GATED[0])]
)
def test_geglu_and_its_gradient(dtype: torch.dtype, compiled: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    h = (torch.randn(shape, device="cuda") * 2).to(dtype).requires_grad_()
    call = torch.compile(geglu, dynamic=False) if compiled else geglu

    found = call(h)
    dy = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, h, dy)

    value, gate = h.double().chunk(2, dim=-1)
    expected = value * F.gelu(gate)
    assert found.dtype == gradient.dtype == dtype
    assert error(found, expected) < TOLERANCE[dtype]
    assert error(gradient, torch.autograd.grad(expected, h, dy.double())[0]) < TOLERANCE[dtype]


def test_neither_rows_nor_their_gradients_need_be_contiguous() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 320, 6, 5, device="cuda", dtype=torch.bfloat16)
    x = images.permute(0, 2, 3, 1).requires_grad_()  # channels lie apart
    weight, bias = torch.randn(2, 320, device="cuda").requires_grad_().unbind()
    for found, expected in (
        (layer_norm(x, weight, bias), F.layer_norm(x.double(), (320,), weight.double(), bias.double())),
        (geglu(x), x.double()[..., :160] * F.gelu(x.double()[..., 160:])),
    ):
        dy = torch.randn_like(found).transpose(1, 2).contiguous().transpose(1, 2)
        assert not dy.is_contiguous()
        (gradient,) = torch.autograd.grad(found, x, dy)

        assert error(found, expected) < TOLERANCE[torch.bfloat16]
        assert error(gradient, torch.autograd.grad(expected, x, dy.double())[0]) < TOLERANCE[torch.bfloat16]


def test_no_rows_give_no_rows() -> None:
    x, weight = torch.empty(0, 320, device="cuda").requires_grad_(), torch.ones(320, device="cuda")

    assert layer_norm(x, weight.requires_grad_(), weight).shape == (0, 320)
    assert geglu(x).shape == (0, 160)
    assert torch.autograd.grad(layer_norm(x, weight, weight).sum(), weight)[0].count_nonzero() == 0


def test_rows_beyond_the_range_of_32_bits() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs a GPU of 40 GB")
    torch.manual_seed(0)
    channels, last = 1280, torch.randn(90, 1280, device="cuda")
    x = torch.zeros(2**31 // channels + 100, channels, device="cuda", dtype=torch.bfloat16)
    x[-90:] = last
    weight, bias = torch.randn(2, channels, device="cuda").unbind()
    exact = x[-90:].double().requires_grad_()
    x.requires_grad_()
    for found, expected in (
        (layer_norm(x, weight, bias), F.layer_norm(exact, (channels,), weight.double(), bias.double())),
        (geglu(x), exact[:, :640] * F.gelu(exact[:, 640:])),
    ):
        (gradient,) = torch.autograd.grad(found, x, torch.ones_like(found))
        (wanted,) = torch.autograd.grad(expected, exact, torch.ones_like(expected))

        assert error(found[-90:], expected) < TOLERANCE[torch.bfloat16]
        assert error(gradient[-90:], wanted) < TOLERANCE[torch.bfloat16]


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
