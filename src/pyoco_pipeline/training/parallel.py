"""How processes share one model: each trains a copy of it (DDP), or holds a part of it (FSDP2).

Either way a step gives the weights that one process alone gives, and rank 0 can have the averaged model whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from pyoco_pipeline.training.ema import EMA
from pyoco_pipeline.training.settings import TrainSettings
from pyoco_pipeline.training.sharding import shard, whole


class Parallel(Protocol):
    """network: whose parameters are optimised; model: what a step calls, once it was started."""

    sharded: bool
    network: nn.Module
    model: nn.Module

    def start(self) -> None:
        """Before the first step, after weights were loaded."""

    def unsynchronised(self) -> AbstractContextManager[None]:
        """Within: gradients are of this process alone."""

    def clip(self, max_norm: float) -> Tensor:
        """Scale gradients down to a norm over the whole model, which is returned."""

    def averaged(self, ema: EMA) -> AbstractContextManager[nn.Module | None]:
        """Within: the network with averaged weights, in evaluation mode, on rank 0; None on the others."""

    def finish(self, ema: EMA) -> None:
        """Leave the averaged weights in the network that training was given, on rank 0 at least."""


def parallel(network: nn.Module, settings: TrainSettings, accelerator: Accelerator) -> Parallel:
    """`network` in the way that train.parallel says; one process needs none."""
    network.train()
    if settings.parallel == "fsdp" and accelerator.num_processes > 1:
        return Shards(network, settings, accelerator)
    return Copies(network, settings, accelerator)


class Copies:
    """The whole network on each process: DDP, or one process."""

    sharded = False

    def __init__(self, network: nn.Module, settings: TrainSettings, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        network.to(accelerator.device)
        if settings.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = self.model = network

    def start(self) -> None:
        self.model = self.accelerator.prepare(self.network)

    def unsynchronised(self) -> AbstractContextManager[None]:
        return self.accelerator.no_sync(self.model)

    def clip(self, max_norm: float) -> Tensor:
        return self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm)

    @contextmanager
    def averaged(self, ema: EMA) -> Iterator[nn.Module | None]:
        if not self.accelerator.is_main_process:
            yield None
            return
        ema.swap(self.network)
        self.network.eval()
        yield self.network
        self.network.train()
        ema.swap(self.network)

    def finish(self, ema: EMA) -> None:
        ema.swap(self.network)
        self.network.eval()


class Shards:
    """A part of every parameter on each process: FSDP2.

    The network that is given stays whole, in the machine's memory, on rank 0 alone, for what is made of it there.
    """

    sharded = True

    def __init__(self, network: nn.Module, settings: TrainSettings, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.given = network if accelerator.is_main_process else None
        self.network = copy.deepcopy(network) if accelerator.is_main_process else network
        device = accelerator.device
        mesh = init_device_mesh(device.type, (accelerator.num_processes,))
        self.model = self.network
        self.fsdp = shard(
            self.network,
            mesh,
            bf16=accelerator.mixed_precision == "bf16",
            channels_last=settings.channels_last,
        )

    def start(self) -> None:
        pass

    @contextmanager
    def unsynchronised(self) -> Iterator[None]:
        self.fsdp.set_requires_gradient_sync(False)
        yield
        self.fsdp.set_requires_gradient_sync(True)

    def clip(self, max_norm: float) -> Tensor:
        return whole(nn.utils.clip_grad_norm_(self.network.parameters(), max_norm))

    @contextmanager
    def averaged(self, ema: EMA) -> Iterator[nn.Module | None]:
        self._gather(ema)
        if self.given is None:
            yield None
            return
        yield self.given.to(self.accelerator.device).eval()
        self.given.to("cpu")

    def finish(self, ema: EMA) -> None:
        self._gather(ema)

    @torch.no_grad()
    def _gather(self, ema: EMA) -> None:
        """The averaged weights into the network that was given; one tensor at a time is whole on the others."""
        own = dict(self.given.named_parameters()) if self.given else {}
        for name, value in ema.shadow.items():
            gathered = whole(value)
            if name in own:
                own[name].copy_(gathered)
        if self.given is not None:
            buffers = dict(self.network.named_buffers())
            for name, buffer in self.given.named_buffers():
                buffer.copy_(buffers[name])
            self.given.eval()
