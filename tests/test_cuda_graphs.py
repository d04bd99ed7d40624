"""Networks that are launched as CUDA graphs: the same steps and the same clips."""

import copy

import pytest
import torch
from tiny import TEXT_DIM, make_unet
from torch import Tensor

from pyoco_pipeline.data.batches import Batch
from pyoco_pipeline.diffusion import EDMDenoiser
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import inflate
from pyoco_pipeline.models.cuda_graphs import Captured, CapturedDenoiser
from pyoco_pipeline.noise import ProgressiveNoise
from pyoco_pipeline.training.captured import CapturedLoss
from pyoco_pipeline.training.objective import Objective
from pyoco_pipeline.training.settings import SigmaSettings, TrainSettings

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def network() -> torch.nn.Module:
    return inflate(make_unet(block_out_channels=(16, 32)))


def batch(seed: int, frames: int, device: str) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    x0 = torch.rand(4, 3, frames, 8, 8, generator=draw) * 2 - 1
    text = torch.randn(4, 3, TEXT_DIM, generator=draw)
    return Batch(x0.to(device), {"encoder_hidden_states": text.to(device)})


def autocast() -> torch.autocast:
    return torch.autocast("cuda", torch.bfloat16)


@needs_gpu
def test_clips_and_images_have_the_loss_and_the_gradients_of_uncaptured_steps(network) -> None:
    eager, network = copy.deepcopy(network).cuda(), network.cuda()
    objective = Objective(ProgressiveNoise(2.0), SigmaSettings())
    captured = CapturedLoss(objective, network, autocast)
    for seed, frames in enumerate([5, 5, 1, 5, 1]):
        part = batch(seed, frames, "cuda")
        draws = objective.draw(part.x0.shape, torch.device("cuda"), torch.Generator("cuda").manual_seed(seed))
        eager.zero_grad(set_to_none=True)
        with autocast():
            expected = objective.loss(eager, part, draws)
        expected.backward()
        loss = captured(part, draws)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
        for (name, ours), theirs in zip(network.named_parameters(), eager.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-4)


@needs_gpu
def test_a_captured_denoiser_gives_what_the_denoiser_gives_also_when_weights_have_changed(network) -> None:
    denoise = EDMDenoiser(network.cuda().eval())
    captured = CapturedDenoiser(denoise, "generate.cuda_graphs")
    with torch.inference_mode(), autocast():
        for seed, frames in enumerate([5, 1, 5]):
            given = batch(seed, frames, "cuda")
            sigma = torch.full((4,), 0.5 + seed, device="cuda")
            ours = captured(given.x0, sigma, **given.cond)
            before = ours.clone()
            torch.testing.assert_close(ours, denoise(given.x0, sigma, **given.cond), rtol=1e-2, atol=1e-2)
            captured(given.x0 + 1, sigma, **given.cond)
            assert torch.equal(ours, before)  # a solver keeps it over the next call
            for parameter in network.parameters():
                parameter.mul_(1.1)


@needs_gpu
def test_what_waits_for_the_gpu_can_not_be_captured_and_the_setting_is_named() -> None:
    def waits(inputs: dict[str, Tensor]) -> Tensor:
        return inputs["x"] * inputs["x"].sum().item()

    with pytest.raises(UserError, match=r"^train\.cuda_graphs=true: .*: set it to false\.$"):
        Captured(waits, "train.cuda_graphs")({"x": torch.ones(3, device="cuda")})


def test_on_a_cpu_a_captured_denoiser_is_the_denoiser(network) -> None:
    denoise = EDMDenoiser(network.eval(), sigma_data=0.25)
    captured = CapturedDenoiser(denoise, "generate.cuda_graphs")
    given, sigma = batch(0, 2, "cpu"), torch.ones(4)
    with torch.inference_mode():
        ours = captured(given.x0, sigma, **given.cond)
        assert torch.equal(ours, denoise(given.x0, sigma, **given.cond))
    assert captured.network is network
    assert captured.sigma_data == 0.25
    with pytest.raises(AttributeError):
        _ = captured.nothing_of_this_name


@pytest.mark.parametrize(
    ("other", "named"), [({"gradient_checkpointing": True}, "checkpointing"), ({"accumulation": 2}, "=2")]
)
def test_graphs_are_not_for_networks_that_need_less_memory(other: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"cuda_graphs is for networks that fit without .*{named}"):
        TrainSettings(steps=1, batch_size=4, learning_rate=1e-3, ema_half_life=1, cuda_graphs=True, **other)
