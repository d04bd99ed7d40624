"""The optimiser: its groups of parameters, its learning rate, and its state by name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.training.pieces import Pieces
from pyoco_pipeline.training.settings import TrainSettings


def make_optimizer(
    network: nn.Module, settings: TrainSettings, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW with the groups that `parameter_groups` makes."""
    return torch.optim.AdamW(
        parameter_groups(network, settings.lr_scale),
        lr=settings.learning_rate,
        betas=(0.9, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",  # on a CPU fused steps are not the same after a resume
    )


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant, or a cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


def parameter_groups(network: nn.Module, lr_scale: dict[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters grouped by the factor on their learning rate; the longest matching prefix decides.

    Raises UserError for a prefix that no parameter's name begins with.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    unused = set(lr_scale)
    for name, parameter in network.named_parameters():
        matching = [prefix for prefix in lr_scale if name.startswith(prefix)]
        unused -= set(matching)
        scale = lr_scale[max(matching, key=len)] if matching else 1.0
        if parameter.requires_grad:
            groups.setdefault(scale, []).append(parameter)
    if unused:
        parts = sorted({name.split(".")[0] for name, _ in network.named_parameters()})
        raise UserError(
            f"train.lr_scale names {sorted(unused)[0]!r}, but parameters begin with {', '.join(parts)}."
        )
    return [{"params": parameters, "lr_scale": scale} for scale, parameters in groups.items()]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's per-parameter state as tensors named "<index>.<key>"; groups come from the settings."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, entry in state.items()
        for key, value in entry.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, pieces: Pieces) -> None:
    """Put back what `optimizer_tensors` took; state in a parameter's shape is sharded as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, shape in pieces.shapes.items():
        index, key = name.split(".", 1)
        like = parameters[int(index)]
        state.setdefault(int(index), {})[key] = pieces.read(
            name, like if shape == tuple(like.shape) else None
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter in parameters:
        for key, value in optimizer.state[parameter].items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                # A fused step takes one layout, of channels last where the parameter has it.
                optimizer.state[parameter][key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
