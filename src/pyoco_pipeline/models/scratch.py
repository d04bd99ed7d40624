"""A small text-conditional image UNet to start from nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel


def build_image_unet(
    *,
    size: int,
    text_dim: int,
    block_out_channels: Sequence[int],
    layers_per_block: int,
    attention_levels: Sequence[bool],
    attention_heads: int,
    norm_groups: int,
    patch: int = 1,
    channels: int = 3,
    seed: int,
) -> UNet2DConditionModel:
    """A new `UNet2DConditionModel` for images of side `size`, conditioned on tokens of width `text_dim`.

    attention_levels: per resolution level, from the finest, whether its blocks have self- and cross-attention.
    patch: side of the blocks of pixels that are one position, as `FrameByFrame` takes them.
    channels: of the images, 3 for RGB, those of an autoencoder for its latents.
    """
    down = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attention_levels]
    up = ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attention_levels)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=size // patch,
            in_channels=channels * patch**2,
            out_channels=channels * patch**2,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            cross_attention_dim=text_dim,
            attention_head_dim=attention_heads,  # diffusers reads this argument as the number of heads
            norm_num_groups=norm_groups,
        )
