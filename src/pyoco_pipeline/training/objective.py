"""What a stage minimises, and all that is random in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pyoco_pipeline.cascade.conditions import Condition
from pyoco_pipeline.data.batches import Batch
from pyoco_pipeline.diffusion import EDM, Denoise, LogNormalSigma, Parametrisation, edm_loss
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.noise import NoisePrior
from pyoco_pipeline.training.settings import SigmaSettings


@dataclass(frozen=True)
class Draws:
    """What is random in the loss of a batch: noise levels (B,), noise (B, C, T, H, W), and what a condition draws."""

    sigma: Tensor
    noise: Tensor
    condition: dict[str, Tensor] = field(default_factory=dict)

    def part(self, index: int, parts: int) -> Draws:
        """Those of one of so many equal parts of the batch."""

        def chunk(whole: Tensor) -> Tensor:
            return whole.chunk(parts)[index]

        return Draws(
            chunk(self.sigma),
            chunk(self.noise),
            {name: chunk(value) for name, value in self.condition.items()},
        )


@dataclass(frozen=True)
class Objective:
    """What a stage minimises: EDM's loss with noise of `prior` at levels of `sigma`, which the network knows.

    condition: what the network is given of the clip itself. Raises UserError where `sigma` has no level that it knows.
    """

    prior: NoisePrior
    sigma: SigmaSettings
    sigma_data: float = 0.5
    parametrisation: Parametrisation = field(default_factory=EDM)
    condition: Condition | None = None

    def __post_init__(self) -> None:
        try:
            self.law()
        except ValueError as error:
            low, high = self.parametrisation.sigma_limits
            raise UserError(
                f"sigma has no noise level from {low:g} to {high:g}, which the network knows: {error}"
            ) from error

    def law(self) -> LogNormalSigma:
        """The law of the noise levels: within the range that is asked for, and that the network knows."""
        low, high = self.parametrisation.sigma_limits
        return LogNormalSigma(
            self.sigma.mean, self.sigma.std, max(low, self.sigma.min), min(high, self.sigma.max)
        )

    def denoiser(self, network: nn.Module) -> Denoise:
        """The network's denoiser."""
        return self.parametrisation.denoiser(network, self.sigma_data)

    def draw(self, shape: torch.Size, device: torch.device, generator: torch.Generator) -> Draws:
        """What is random for a batch of clips of `shape` (B, C, T, H, W).

        A clip of one frame has the prior's marginal, N(0, I): images share no noise with each other.
        """
        sigma = self.law().sample(shape[0], generator=generator, device=device)
        noise = self.prior.sample(shape, generator=generator, device=device)
        given = self.condition.draw(shape, device, generator) if self.condition else {}
        return Draws(sigma, noise, given)

    def loss(self, network: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Mean loss over a batch."""
        return self.loss_of(self.denoiser(network), batch, draws)

    def loss_of(self, denoise: Denoise, batch: Batch, draws: Draws) -> Tensor:
        """The loss of one of the network's denoisers."""
        given = self.condition.of(batch.x0, draws.condition) if self.condition else {}
        losses = edm_loss(denoise, batch.x0, draws.noise, draws.sigma, self.sigma_data, **batch.cond, **given)
        return losses.mean()
