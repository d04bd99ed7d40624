"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyoco_pipeline.training.sharding import local


class EMA:
    """A float32 shadow of a network's parameters with a half-life in steps (EDM, config F: rampup ratio 0.05).

    The half-life is at most `rampup` times the steps done, so that the average forgets the start. Of a sharded network
    each process averages its own part.
    """

    def __init__(self, network: nn.Module, half_life: float, rampup: float) -> None:
        self.half_life, self.rampup = half_life, rampup
        self.shadow = {name: p.detach().float().clone() for name, p in network.named_parameters()}

    def decay(self, step: int) -> float:
        """Weight of the old average after `step` steps (from 1)."""
        return 0.5 ** (1.0 / max(min(self.half_life, step * self.rampup), 1e-8))

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the weights after step `step`."""
        live = [local(p.detach()).float() for _, p in network.named_parameters()]
        torch._foreach_lerp_([local(value) for value in self.shadow.values()], live, 1.0 - self.decay(step))

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged parameters by name."""
        return self.shadow

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange the network's weights with the average; twice is the identity."""
        for name, p in network.named_parameters():
            held = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name].copy_(held)
