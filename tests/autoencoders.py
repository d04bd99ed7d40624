"""A tiny AutoencoderKL: one position of its latents is 2 × 2 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.latents import write_latents


def make_vae(seed: int = 0, **config: Any) -> AutoencoderKL:
    """Two levels of 4 and 8 channels and latents of 4, in evaluation mode."""
    defaults: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
        "sample_size": 16,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(**(defaults | config)).eval()


def make_latents(folder: Path, pixels: ClipStore, seed: int = 0, **config: Any) -> ClipStore:
    """The latents of a store's clips in folder / "latents", of the autoencoder in folder / "origin"."""
    make_vae(seed, **config).save_pretrained(folder / "origin" / "vae")
    latents = folder / "latents"
    write_latents(latents, clips=Path(pixels.folder), autoencoder=str(folder / "origin"))
    return ClipStore(latents)
