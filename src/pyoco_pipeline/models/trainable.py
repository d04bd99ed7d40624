"""Which parameters of a video model are trained: all, the new ones, cross-attention too, or low-rank additions.

The temporal modules, the embeddings of conditioning and a `conv_in` that was widened are new, and train in every mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.inflation import VideoUNet

Trainable = Literal["all", "temporal", "temporal+cross_attention", "lora"]
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
_ADAPTER = "default"


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank additions (LoRA, arXiv 2106.09685): W + alpha/rank * B A; rank above 0, alpha above 0."""

    rank: int = 8
    alpha: float = 8.0

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise UserError(f"lora.rank={self.rank!r} is not a whole number above 0.")
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < float("inf"):
            raise UserError(f"lora.alpha={self.alpha!r} is not a number above 0.")


def choose_trainable(model: VideoUNet, part: Trainable, lora: LoraOptions = LoraOptions()) -> None:
    """Let gradients reach that part of the model alone.

    lora: of new low-rank additions, which part="lora" makes unless the model has them; random numbers come from torch's
        global generator.

    Raises UserError where the model has nothing of that kind, or low-rank additions of another rank or alpha.
    """
    if part == "lora":
        found = lora_options(model)
        if found is None:
            add_lora(model, lora)
        elif found != lora:
            raise UserError(
                f"the model has {found}, but {lora} is asked for: give those it has, or merge them first."
            )
    crossing = set(_cross_attention(model)) if part == "temporal+cross_attention" else set()
    for name, parameter in model.named_parameters():
        new = name.startswith(("temporal.", "conditioning."))
        new |= model.options.concat_channels > 0 and name.startswith("image_model.conv_in.")
        chosen = (part == "lora" and ".lora_" in name) or name in crossing
        parameter.requires_grad_(part == "all" or new or chosen)


def _cross_attention(model: VideoUNet) -> Iterator[str]:
    """Names of the parameters that read the text."""
    found = False
    for path, module in model.named_modules():
        if not isinstance(module, Attention) or not module.is_cross_attention:
            continue
        # DeepFloyd's blocks attend to text and image at once; their text side is the added projections.
        joint = module.added_kv_proj_dim is not None and not module.only_cross_attention
        for name, _ in module.named_parameters():
            if not joint or name.startswith(("add_", "norm_cross.")):
                found = True
                yield f"{path}.{name}"
    if not found:
        raise UserError(
            f"trainable=temporal+cross_attention: this {type(model.image_model).__name__} has no cross-attention."
        )


def add_lora(model: VideoUNet, options: LoraOptions) -> None:
    """Put low-rank additions on the projections of the image model's attention; new ones change nothing.

    Raises UserError when there is no attention, or no peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("trainable=lora needs the package peft: install it.") from error
    targets = [
        f"{path}.{name}"
        for path, module in model.image_model.named_modules()
        if isinstance(module, Attention)
        for name, child in module.named_modules()
        if name in _PROJECTIONS and isinstance(child, nn.Linear)
    ]
    if not targets:
        raise UserError(
            f"trainable=lora: this {type(model.image_model).__name__} has no attention to put low-rank additions on."
        )
    alpha: Any = options.alpha  # peft says int, and takes any number
    config = LoraConfig(r=options.rank, lora_alpha=alpha, target_modules=targets)
    inject_adapter_in_model(config, model.image_model, _ADAPTER)


def lora_options(model: VideoUNet) -> LoraOptions | None:
    """Of the low-rank additions that a model has; None where it has none."""
    config = getattr(model.image_model, "peft_config", {}).get(_ADAPTER)
    return None if config is None else LoraOptions(config.r, config.lora_alpha)


def lora_state(model: VideoUNet) -> dict[str, torch.Tensor]:
    """The low-rank additions alone, by name."""
    return {name: value for name, value in model.image_model.state_dict().items() if ".lora_" in name}


def merge_lora(model: VideoUNet) -> None:
    """Add the low-rank additions to the weights they stand beside, and take them away."""
    if lora_options(model) is None:
        return
    for parent, name, layer in _adapted(model):
        layer.merge(adapter_names=[_ADAPTER])
        setattr(parent, name, layer.get_base_layer())
    del model.image_model.peft_config


@contextmanager
def without_lora(model: VideoUNet) -> Iterator[None]:
    """The image model as it was before low-rank additions, under the names of its own parameters."""
    places = _adapted(model)
    for parent, name, layer in places:
        setattr(parent, name, layer.get_base_layer())
    try:
        yield
    finally:
        for parent, name, layer in places:
            setattr(parent, name, layer)


def _adapted(model: VideoUNet) -> list[tuple[nn.Module, str, Any]]:
    if lora_options(model) is None:
        return []
    from peft.tuners.lora import LoraLayer

    return [
        (parent, name, child)
        for parent in model.image_model.modules()
        for name, child in parent.named_children()
        if isinstance(child, LoraLayer)
    ]
