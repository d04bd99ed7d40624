"""The optimiser's state goes to disk and comes back as it was, in value and in layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import train_settings
from torch import Tensor, nn

from pyoco_pipeline.training.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from pyoco_pipeline.training.pieces import Pieces, write

SETTINGS = train_settings()


def stepped(layout: torch.memory_format) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A convolution and its optimiser after a step."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)).to(memory_format=layout)
    optimizer = make_optimizer(network, SETTINGS, torch.device("cpu"))
    network(torch.randn(2, 3, 6, 6)).square().mean().backward()
    optimizer.step()
    return network, optimizer


def states(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    return {name: optimizer.state[parameter] for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_state_comes_back_in_its_parameters_layout(tmp_path: Path, layout: torch.memory_format) -> None:
    """On disk it lies in one layout alone, and a fused step on a GPU refuses state that lies otherwise than weights."""
    network, optimizer = stepped(layout)
    write(tmp_path, {"optimizer": optimizer_tensors(optimizer)}, rank=0, count=1)

    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)).to(memory_format=layout)
    resumed = make_optimizer(fresh, SETTINGS, torch.device("cpu"))
    load_optimizer(resumed, Pieces(tmp_path, "optimizer", 1))

    before, after = states(network, optimizer), states(fresh, resumed)
    assert before.keys() == after.keys()
    for name, parameter in fresh.named_parameters():
        assert set(after[name]) == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in after[name].items():
            assert torch.equal(value, before[name][key]), (name, key)
            if value.shape == parameter.shape:
                assert value.stride() == parameter.stride(), (name, key)
