"""Forward and backward pass of a training step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pyoco_pipeline.data.batches import Batch
from pyoco_pipeline.models.cuda_graphs import Captured
from pyoco_pipeline.training.objective import Draws, Objective

Gradients = list[Tensor | None]


class CapturedLoss:
    """Loss and gradients of a batch, captured once for clips and once for images.

    Kernels and their order are those of an uncaptured step. For one process, and gradients of one batch, not a sum.
    """

    def __init__(
        self, objective: Objective, model: nn.Module, autocast: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.objective, self.autocast = objective, autocast
        self.denoise = objective.denoiser(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._captured: Captured[tuple[Tensor, Gradients]] = Captured(self._run, "train.cuda_graphs")

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        """The mean loss; gradients are in the parameters then, None where the loss has none."""
        loss, gradients = self._captured(
            {
                "x0": batch.x0,
                "sigma": draws.sigma,
                "noise": draws.noise,
                **{f"cond.{name}": value for name, value in batch.cond.items()},
                **{f"draws.{name}": value for name, value in draws.condition.items()},
            }
        )
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss.clone()

    def _run(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Gradients]:
        def named(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): value for n, value in inputs.items() if n.startswith(prefix)}

        for parameter in self.parameters:
            parameter.grad = None  # so that the backward pass writes, and does not add
        batch = Batch(inputs["x0"], named("cond."))
        draws = Draws(inputs["sigma"], inputs["noise"], named("draws."))
        with torch.enable_grad(), self.autocast():
            loss = self.objective.loss_of(self.denoise, batch, draws)
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in self.parameters]
