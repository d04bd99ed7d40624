"""Twins of diffusers' modules: the same results, state and layout; and layers that are compiled one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from peft import LoraConfig, inject_adapter_in_model
from tiny import make_unet
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from pyoco_pipeline.models import frame_by_frame, inflate
from pyoco_pipeline.models.fast import FastGEGLU, FastLayerNorm, GroupNormSiLU, use_twins

WIDTH, EMBEDDING = 16, 8


def resnet(**options: Any) -> ResnetBlock2D:
    return ResnetBlock2D(in_channels=WIDTH, temb_channels=EMBEDDING, groups=4, **options)


def transformer(**options: Any) -> Transformer2DModel:
    return Transformer2DModel(2, 8, in_channels=WIDTH, norm_num_groups=4, cross_attention_dim=6, **options)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "group norm": lambda: nn.Sequential(nn.GroupNorm(4, WIDTH)),
    "residual block": resnet,
    "residual block to another width": lambda: resnet(out_channels=24, groups_out=8),
    "residual block with scale and shift": lambda: resnet(time_embedding_norm="scale_shift"),
    "residual block that samples up": lambda: resnet(up=True),
    "residual block that samples down": lambda: resnet(down=True),
    "residual block with its own activation of time": lambda: resnet(skip_time_act=True),
    "residual block without time": lambda: ResnetBlock2D(in_channels=WIDTH, temb_channels=None, groups=4),
    "residual block with a scaled result": lambda: resnet(output_scale_factor=2.0**0.5),
    "upsampling": lambda: Upsample2D(WIDTH),
    "upsampling with a convolution": lambda: Upsample2D(WIDTH, use_conv=True),
    "spatial transformer": transformer,
    "spatial transformer with linear projections": lambda: transformer(use_linear_projection=True),
}


def arguments(module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the module takes beside its input."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(module, ResnetBlock2D):
        has_time = module.time_emb_proj is not None
        return (torch.randn(3, EMBEDDING, generator=generator) if has_time else None,), {}
    if isinstance(module, Transformer2DModel):
        return (), {"encoder_hidden_states": torch.randn(3, 5, 6, generator=generator), "return_dict": False}
    return (), {}


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The result, and the gradients of a loss in it with respect to the input and all parameters."""
    x = x.detach().requires_grad_()
    positional, named = arguments(module)
    out = module(x, *positional, **named)
    out = out[0] if isinstance(out, tuple) else out
    used = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((out * out.detach().cos()).sum(), [x, *used], allow_unused=True)
    return out.detach(), [g for g in gradients if g is not None]


@pytest.fixture(params=MODULES.values(), ids=MODULES.keys())
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """Diffusers' own module, and a copy that has become its twin."""
    torch.manual_seed(0)
    own: nn.Module = request.param()
    with torch.no_grad():
        for parameter in own.parameters():  # nothing may hide behind a one or a zero
            parameter.add_(0.3 * torch.randn_like(parameter))
    twin = copy.deepcopy(own)
    use_twins(twin)
    return own, twin


def test_a_twin_takes_the_place_of_every_such_module(pair: tuple[nn.Module, nn.Module]) -> None:
    own, twin = pair
    changed = [type(module).__name__ for module in twin.modules() if type(module).__name__.startswith("Fast")]

    assert changed
    assert all(isinstance(twin, type(own)) for own, twin in zip(own.modules(), twin.modules(), strict=True))


def test_a_twin_keeps_every_weight_and_its_name(pair: tuple[nn.Module, nn.Module]) -> None:
    own, twin = pair

    assert list(own.state_dict()) == list(twin.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_twin_gives_the_same_result_and_the_same_gradients(
    pair: tuple[nn.Module, nn.Module], layout: torch.memory_format
) -> None:
    own, twin = pair
    x = torch.randn(3, WIDTH, 6, 4)
    expected, expected_gradients = run(own, x)

    found, gradients = run(twin, x.to(memory_format=layout))

    torch.testing.assert_close(found, expected, atol=3e-5, rtol=3e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=3e-4, rtol=3e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_twin_keeps_the_layout(pair: tuple[nn.Module, nn.Module], layout: torch.memory_format) -> None:
    _, twin = pair
    twin.to(memory_format=layout)

    found, _ = run(twin, torch.randn(3, WIDTH, 6, 4).to(memory_format=layout))

    assert found.is_contiguous(memory_format=layout)


TOKEN_MODULES: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(WIDTH, eps=1e-3),
    "GEGLU": lambda: GEGLU(WIDTH, 24),
    "GEGLU without a bias": lambda: GEGLU(WIDTH, 24, bias=False),
}


def of_tokens(name: str) -> tuple[nn.Module, nn.Module]:
    """A module that takes tokens (…, WIDTH), and its twin."""
    torch.manual_seed(0)
    own = TOKEN_MODULES[name]()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    twin = copy.deepcopy(own)
    use_twins(twin)
    assert type(twin) in (FastLayerNorm, FastGEGLU)
    return own, twin


@pytest.mark.parametrize("name", TOKEN_MODULES)
def test_on_a_cpu_norms_and_gates_of_tokens_are_bitwise_the_modules_own(name: str) -> None:
    own, twin = of_tokens(name)
    images = torch.randn(3, WIDTH, 6, 4)

    for x in (torch.randn(2, 5, WIDTH), images.permute(0, 2, 3, 1), torch.randn(0, WIDTH)):
        (expected, wanted), (found, gradients) = run(own, x), run(twin, x)
        assert torch.equal(found, expected)
        assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))
    assert list(own.state_dict()) == list(twin.state_dict())


@pytest.mark.parametrize("name", TOKEN_MODULES)
def test_norms_and_gates_of_tokens_give_bfloat16_under_autocast(name: str) -> None:
    own, twin = of_tokens(name)
    x = torch.randn(2, 5, WIDTH)

    with torch.autocast("cpu", torch.bfloat16):
        found, _ = run(twin, x)

    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), own(x), atol=0.05, rtol=0.05)


def test_nothing_in_a_spatial_transformer_norms_or_gates_by_itself() -> None:
    module = transformer()
    use_twins(module)
    kinds = [type(child) for child in module.modules()]

    assert (kinds.count(FastLayerNorm), kinds.count(FastGEGLU)) == (3, 1)
    assert nn.LayerNorm not in kinds
    assert GEGLU not in kinds


def test_an_adapter_in_a_gate_is_heard() -> None:
    own, twin = of_tokens("GEGLU")
    torch.manual_seed(1)
    for module in (own, twin):
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["proj"]), module)
        with torch.no_grad():
            module.proj.lora_B["default"].weight.fill_(0.5)
    twin.load_state_dict(own.state_dict())
    x = torch.randn(2, 5, WIDTH)

    adapted = twin(x)

    assert torch.equal(adapted, own(x))
    assert not torch.allclose(adapted, of_tokens("GEGLU")[1](x))


def test_upsampling_goes_to_the_size_that_is_asked_for() -> None:
    torch.manual_seed(0)
    own = Upsample2D(WIDTH, use_conv=True)
    twin = copy.deepcopy(own)
    use_twins(twin)
    x = torch.randn(2, WIDTH, 3, 5)

    for size in ((7, 9), (6, 10)):
        expected = own(x, output_size=size)
        torch.testing.assert_close(twin(x, output_size=size), expected)
        torch.testing.assert_close(twin(x.to(memory_format=torch.channels_last), output_size=size), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet(non_linearity="mish"),
        lambda: (
            ResnetBlockCondNorm2D(
                in_channels=32, temb_channels=EMBEDDING, time_embedding_norm="spatial"
            ).norm1
        ),
        lambda: Upsample2D(WIDTH, use_conv_transpose=True),
        lambda: nn.GroupNorm(4, WIDTH, affine=False),
        lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
        lambda: nn.LayerNorm(WIDTH, bias=False),
        lambda: nn.LayerNorm((4, WIDTH)),
    ],
    ids=[
        "another activation",
        "another kind of norm",
        "a transposed convolution",
        "a norm without weights",
        "a layer norm without weights",
        "a layer norm without a bias",
        "a layer norm over two axes",
    ],
)
def test_a_module_without_a_twin_stays_what_it_is(make: Callable[[], nn.Module]) -> None:
    module = make()
    kind = type(module)

    use_twins(module)

    assert type(module) is kind


def test_activations_are_bfloat16_under_autocast() -> None:
    norm = GroupNormSiLU(4, WIDTH)

    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(2, WIDTH, 4, 4)).dtype == torch.bfloat16
    assert norm(torch.randn(2, WIDTH, 4, 4)).dtype == torch.float32


def test_statistics_are_float32_of_bfloat16_activations() -> None:
    x = (100 + torch.randn(2, WIDTH, 16, 16)).bfloat16()
    norm = GroupNormSiLU(4, WIDTH)

    exact = norm(x.double().float())

    assert (norm.bfloat16()(x).float() - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_layers_train_as_uncompiled_ones_also_in_a_copy(
    monkeypatch: pytest.MonkeyPatch, recomputed: bool
) -> None:
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled_forward = torch.compile(frame_by_frame._forward, dynamic=False, backend=graphs)
    monkeypatch.setattr(frame_by_frame, "_compiled", lambda: compiled_forward)
    torch.manual_seed(0)
    plain = inflate(make_unet())
    first = copy.deepcopy(plain)
    if recomputed:
        first.checkpoint_gradients()
    first.compile_layers()
    compiled = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(torch.nan)  # the copy's layers are its own
    x, sigma = torch.randn(2, 3, 4, 16, 16), torch.ones(2)
    text = torch.randn(2, 5, plain.image_model.config.cross_attention_dim)

    for frames in (4, 1):
        outputs = [
            net(x[:, :, :frames], sigma, encoder_hidden_states=text).sample for net in (plain, compiled)
        ]
        torch.testing.assert_close(*outputs)
        for net, out in zip((plain, compiled), outputs, strict=True):
            net.zero_grad()
            out.square().mean().backward()
        for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        captured = graphs.frame_count
        compiled(x[:, :, :frames], sigma, encoder_hidden_states=text)
        assert graphs.frame_count == captured  # what is compiled is used again
        if frames == 4:
            assert 0 < captured < len(compiled.layers())  # layers of one shape share a graph
