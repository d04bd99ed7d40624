"""How much memory a training step will need, from the network's shape alone.

Weights, gradients, AdamW's two moments and the averaged weights are five copies in float32; activations are what the
layers give in one forward pass, all of which the backward pass may want. Fused kernels keep less and libraries take
workspace of their own: the estimate is one of size, not of the last gigabyte.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pyoco_pipeline.config import InflateSettings, PretrainImageSettings, StageSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.latents import sample_channels
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.launch import devices
from pyoco_pipeline.models import VideoUNet, inflate
from pyoco_pipeline.models.frame_by_frame import ImageUNet, spatial_blocks
from pyoco_pipeline.models.io import image_config, read_json
from pyoco_pipeline.models.scratch import build_image_unet
from pyoco_pipeline.models.shipped import FOLDER as SHIPPED
from pyoco_pipeline.preflight.findings import Finding
from pyoco_pipeline.preflight.plan import Plan
from pyoco_pipeline.training.settings import TrainSettings
from pyoco_pipeline.training.sharding import blocks
from pyoco_pipeline.training.stages import stage_condition, stage_shape, stage_view

COPIES = 5  # of the weights, in float32
_TOKENS = 77  # of a caption; more make hardly a difference
_TEXT_DIM = 384  # of the embedded encoder; a new network for another one has a few more weights


def check_memory(plan: Plan) -> Iterator[Finding]:
    """Every stage's training step against the memory of the device."""
    device, available = device_memory()
    for name, network in plan.networks.items():
        stage, store = plan.stages[name], plan.clips[name]
        shape = stage_view(stage, store).crop or stage_shape(stage, store)
        on = devices(stage.train.num_processes)
        channels = sample_channels(store)
        needed = step_bytes(network, channels, shape, stage.train, processes=len(on), on_gpu=on[0] != "cpu")
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        words = (
            f"stage {name}: {millions:.1f}M parameters, about {needed / 1e9:.1f} GB for a training step of "
            f"{stage.train.batch_size} clips, of {available / 1e9:.1f} GB ({device})"
        )
        if needed > available:
            fix = "lower train.batch_size, raise train.accumulation, or set train.gradient_checkpointing"
            if len(on) > 1 and stage.train.parallel == "ddp":
                fix += " or train.parallel=fsdp"
            yield Finding("problem", f"{words}: {fix}.")
        else:
            yield Finding("warning" if needed > 0.8 * available else "ok", f"{words}.")


def device_memory() -> tuple[str, int]:
    """The device that trains, and its memory in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    return "memory of this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def step_bytes(
    network: VideoUNet,
    channels: int,
    shape: tuple[int, int, int],
    train: TrainSettings,
    *,
    processes: int = 1,
    on_gpu: bool = False,
) -> int:
    """What each process needs for a training step on clips of `channels` and (frames, height, width), in bytes.

    network: on the meta device.
    """
    weights = sum(p.numel() for p in network.parameters())
    bf16 = train.precision == "bf16" or (train.precision == "auto" and on_gpu)
    one = activation_numbers(network, channels, shape, recomputed=train.gradient_checkpointing)
    at_once = -(-train.batch_size // (train.accumulation * processes))
    held = COPIES * 4 * weights
    if train.parallel == "fsdp" and processes > 1:
        # A part of each, and of the blocks two weights and one gradient whole at a time.
        sizes = [sum(p.numel() for p in block.parameters()) for block in blocks(network)]
        held = held // processes + 3 * 4 * max(sizes, default=0)
    return held + at_once * one * (2 if bf16 else 4)


def activation_numbers(
    network: VideoUNet, channels: int, shape: tuple[int, int, int], *, recomputed: bool = False
) -> int:
    """How many numbers the layers give for one clip; recomputed: those of whole blocks, and of the largest one."""
    leaves = [module for module in network.modules() if not any(True for _ in module.children())]
    blocks = [block for _, block in spatial_blocks(network.image_model)]
    counts: dict[int, int] = {}
    hooks = [module.register_forward_hook(_counter(counts)) for module in {*leaves, *blocks}]
    try:
        _forward(network, channels, shape)
    finally:
        for hook in hooks:
            hook.remove()
    if not recomputed:
        return sum(counts.get(id(leaf), 0) for leaf in leaves)
    inner = [
        sum(counts.get(id(part), 0) for part in block.modules() if part is not block) for block in blocks
    ]
    inside = {id(part) for block in blocks for part in block.modules()}
    outside = sum(counts.get(id(leaf), 0) for leaf in leaves if id(leaf) not in inside)
    return outside + sum(counts.get(id(block), 0) for block in blocks) + max(inner, default=0)


def _counter(counts: dict[int, int]) -> Any:
    def count(module: nn.Module, _inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        if isinstance(first, Tensor):
            counts[id(module)] = counts.get(id(module), 0) + first.numel()

    return count


def _forward(network: VideoUNet, channels: int, shape: tuple[int, int, int]) -> None:
    config, options = network.image_model.config, network.options
    positions = (
        config["in_channels"] - options.concat_channels
    ) // channels  # of a clip in one of the network
    frames, height, width = shape
    with torch.device("meta"), torch.no_grad():
        x = torch.empty(1, channels, frames, height, width)
        width_of_text = config.get("encoder_hid_dim") or config["cross_attention_dim"]
        cond: dict[str, Any] = {"encoder_hidden_states": torch.empty(1, _TOKENS, width_of_text)}
        if options.concat_channels:
            cond["concat"] = torch.empty(1, options.concat_channels // positions, frames, height, width)
        if options.noise_level:
            cond["noise_level"] = torch.empty(1)
        if options.fps:
            cond["fps"] = torch.ones(1)
        network(x, torch.empty(1), **cond)


def planned_network(
    stage: StageSettings,
    pretrain: PretrainImageSettings,
    inflation: InflateSettings,
    clips: ClipStore,
    project: Path,
) -> VideoUNet:
    """The network that a stage trains, on the meta device; its own weights are not read."""
    condition, channels = stage_condition(stage), sample_channels(clips)
    options = inflation.options()
    with torch.device("meta"):
        if stage.init == "scratch" or (stage.init is None and pretrain.init == "scratch"):
            unet, size = stage.unet or pretrain.unet, stage_shape(stage, clips)[1]
            image_model: ImageUNet = build_image_unet(
                size=size, text_dim=_TEXT_DIM, channels=channels, seed=0, **unet.model_dump()
            )
        else:
            folder = project / stage.init if stage.init else _image_folder(pretrain, project)
            config = read_json(image_config(folder))
            if stage.init and (folder / "temporal.json").is_file():
                options = read_json(folder / "temporal.json")
                config["in_channels"] -= options.get("concat_channels", 0)
            image_model = _from_config(config, folder)
        if condition is not None:
            concat = image_model.config["in_channels"] // channels * condition.concat_channels(channels)
            options = options | {"concat_channels": concat, "noise_level": True}
        return inflate(image_model, **options)


def _image_folder(pretrain: PretrainImageSettings, project: Path) -> Path:
    return SHIPPED if pretrain.init == "shipped" else project / pretrain.init


def _from_config(config: dict[str, Any], folder: Path) -> ImageUNet:
    if config.get("_class_name") != "UNet2DConditionModel":
        raise UserError(
            f"{folder} holds a {config.get('_class_name')}, which takes no captions: give a UNet2DConditionModel."
        )
    return UNet2DConditionModel.from_config(config)
