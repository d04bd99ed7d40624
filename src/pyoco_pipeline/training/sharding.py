"""FSDP2 by torch's fully_shard: weights, gradients, averages and the optimiser's state in equal parts on the processes.

A block is put together when it computes, forward and backward, and taken apart behind it. Accelerate's plugin for the
same chooses blocks by class and keeps checkpoints as pickles, so torch's own function is called here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from pyoco_pipeline.models.frame_by_frame import FrameByFrame


def shard(network: nn.Module, mesh: DeviceMesh, *, bf16: bool, channels_last: bool = False) -> FSDPModule:
    """Shard a network in place over the processes of `mesh`: every block and temporal module, then what is left.

    bf16: blocks are put together in bfloat16, to be called under autocast; parts and sums of gradients stay float32.
    Autocast alone would keep a whole copy of the weights in bfloat16 from the forward to the backward pass.
    channels_last: of activations; the parts of weights are rows, which have no such layout.
    """
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if channels_last and isinstance(network, FrameByFrame):
        network.image_model.conv_in.register_forward_pre_hook(_channels_last)
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # noise levels need float32
    )
    # Clips are a view of the frames on the batch axis; nothing here changes a network's output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return fully_shard(network, mesh=mesh, mp_policy=policy)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What is put together and taken apart by itself, one after the other."""
    if isinstance(network, FrameByFrame):
        model = network.image_model
        yield from getattr(network, "temporal", nn.ModuleDict()).values()
        yield from (b for b in (*model.down_blocks, model.mid_block, *model.up_blocks) if b is not None)


def _channels_last(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: of one that is not sharded, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def offset(tensor: Tensor) -> int:
    """The row of the whole that this process's part begins with."""
    if not isinstance(tensor, DTensor) or not tensor.ndim:
        return 0
    assert tensor.placements == (Shard(0),)
    rows, mesh = tensor.shape[0], tensor.device_mesh
    return min(rows, -(-rows // mesh.size()) * mesh.get_local_rank())  # as torch.chunk shares them out


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """Of this process's part of a tensor, the tensor; sharded as `like` is."""
    if not isinstance(like, DTensor):
        return value
    return DTensor.from_local(
        value.to(local(like).device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process; they all have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
