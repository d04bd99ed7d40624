"""The autoencoder of a latent image model (Rombach et al., arXiv 2112.10752), frame by frame.

Shapes: pixels (N, 3, T, H, W); latents (N, C, T, h, w) with h = H / downsampling; its network sees frames, (N*T, …).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.io import load_network, load_stage_info, weights_sha256

SLICE_PIXELS = (
    1 << 18
)  # pixels of the frames that are computed at once: one of 512 × 512, sixteen of 128 × 128


@dataclass(frozen=True)
class LatentScaling:
    """What makes an autoencoder's latents those that the image model sees: (latents - shift) * factor, per channel."""

    shift: tuple[float, ...]  # (C,)
    factor: tuple[float, ...]  # (C,)

    def apply(self, latents: Tensor) -> Tensor:
        """Latents (N, C, T, h, w) as the image model sees them."""
        return (latents - _per_channel(self.shift, latents)) * _per_channel(self.factor, latents)

    def undo(self, latents: Tensor) -> Tensor:
        """Latents (N, C, T, h, w) of the image model as the decoder sees them."""
        return latents / _per_channel(self.factor, latents) + _per_channel(self.shift, latents)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """As diffusers' pipelines scale: by scaling_factor and shift_factor, or latents_mean and latents_std.

        Raises ValueError where they contradict each other, are not of every channel, or are not finite and positive.
        """
        channels, scaling = config["latent_channels"], config["scaling_factor"]
        shift, mean, std = (config.get(key) for key in ("shift_factor", "latents_mean", "latents_std"))
        if (mean is None) != (std is None):
            raise ValueError(f"latents_mean={mean} and latents_std={std}: give both or neither")
        if mean is not None and shift is not None:
            raise ValueError(f"shift_factor={shift} and latents_mean={mean}: give one of them")
        shifts = tuple(mean) if mean is not None else (shift or 0.0,) * channels
        factors = tuple(scaling / s for s in std) if std is not None else (scaling,) * channels
        if len(shifts) != channels or len(factors) != channels:
            raise ValueError(f"latents_mean={mean} and latents_std={std} for {channels} latent channels")
        if not all(math.isfinite(s) for s in shifts) or not all(0 < f < math.inf for f in factors):
            raise ValueError(f"scaling_factor={scaling}, latents_std={std}: they have to be above 0")
        return cls(shifts, factors)


class Autoencoder:
    """Clips to latents and back, each frame by itself, a few frames at a time: memory does not grow with a clip.

    It computes in float32; on a GPU in float16 where the configuration says that the weights are made for it
    (force_upcast=false, as diffusers' pipelines do), whatever autocast is around it.

    slice_frames: how many frames at a time; None: as many as have SLICE_PIXELS, at least one.
    tiling: frames larger than the autoencoder was trained on in overlapping tiles, blended (diffusers' tiling): less
        memory, and not exactly the same pixels.
    Raises UserError for one that is not of RGB, and for a configuration that scales latents in a contradictory way.
    """

    def __init__(
        self, model: AutoencoderKL, *, slice_frames: int | None = None, tiling: bool = False
    ) -> None:
        self.model, self.slice_frames = model.eval().requires_grad_(False), slice_frames
        self.name = "autoencoder"  # of the model it belongs to, where that is known
        config = model.config
        if (config["in_channels"], config["out_channels"]) != (3, 3):
            raise UserError(
                f"the autoencoder has in_channels={config['in_channels']} and out_channels={config['out_channels']}: "
                "one of RGB, with 3 and 3, is needed."
            )
        try:
            self.scaling = LatentScaling.from_config(config)
        except ValueError as error:
            raise UserError(f"the autoencoder's config.json has {error}.") from error
        self.channels: int = config["latent_channels"]
        self.downsampling: int = 2 ** (len(config["block_out_channels"]) - 1)
        if tiling:
            model.enable_tiling()

    @cached_property
    def sha256(self) -> str:
        """Digest of the weights and of how latents are scaled: what a model that was trained on them depends on."""
        parts = weights_sha256(self.model), repr(self.scaling.shift), repr(self.scaling.factor)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Clips (N, T, H, W, 3) uint8 as (N, T, h, w, 2C) float32: mean and standard deviation of their latents.

        Unscaled, on the weights' device. Raises UserError where `downsampling` does not divide H and W.
        """
        batch, frames, height, width = video.shape[:4]
        self.check_size(height, width)
        parts = []
        for images in video.flatten(0, 1).split(self._frames_at_once(height, width)):
            pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            with self._precision():
                posterior = self.model.encode(pixels).latent_dist
            parts.append(torch.cat((posterior.mean, posterior.std), dim=1).float().permute(0, 2, 3, 1))
        return torch.cat(parts).unflatten(0, (batch, frames))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (N, 3, T, H, W) float32, about in [-1, 1], of latents (N, C, T, h, w) as the image model sees them."""
        batch, _, frames, height, width = latents.shape
        s = self.downsampling
        images = self.scaling.undo(latents.float()).transpose(1, 2).flatten(0, 1)
        pixels = torch.empty(batch * frames, 3, height * s, width * s, device=latents.device)
        at_once = self._frames_at_once(height * s, width * s)
        for part, out in zip(images.split(at_once), pixels.split(at_once), strict=True):
            with self._precision():
                out.copy_(self.model.decode(part.to(self.device)).sample)
        return pixels.unflatten(0, (batch, frames)).transpose(1, 2)

    def check_size(self, height: int, width: int) -> None:
        """UserError where frames of that size have no latents."""
        if height % self.downsampling or width % self.downsampling:
            raise UserError(
                f"the clips are {height}x{width}, and the autoencoder makes one position of {self.downsampling}x"
                f"{self.downsampling} pixels: set ingest's height and width to multiples of {self.downsampling}."
            )

    def save(self, folder: str | Path) -> None:
        """Write it in diffusers' layout, in the precision it computes in, without the path it came from."""
        self.model.register_to_config(_name_or_path="")
        self.model.save_pretrained(folder, safe_serialization=True)

    def _frames_at_once(self, height: int, width: int) -> int:
        if self.slice_frames is not None:
            return self.slice_frames
        return max(1, SLICE_PIXELS // (height * width))

    def _precision(self) -> torch.autocast:
        kind = self.device.type
        half = kind == "cuda" and not self.model.config["force_upcast"]
        return torch.autocast(kind, torch.float16 if kind == "cuda" else torch.bfloat16, enabled=half)


def load_autoencoder(
    folder: str | Path, *, slice_frames: int | None = None, tiling: bool = False
) -> Autoencoder:
    """Load an AutoencoderKL in float32 from its folder, or from the `vae` folder of a diffusers pipeline.

    Raises UserError when there is none, when it is of another class, or its weights do not fit its configuration.
    """
    folder = Path(folder)
    places = [place for place in (folder / "vae", folder) if (place / "config.json").is_file()]
    if not places:
        raise UserError(f"{folder} holds no autoencoder: neither vae/config.json nor config.json is in it.")
    model = load_network(places[0], {"AutoencoderKL": AutoencoderKL}).float()
    autoencoder = Autoencoder(model, slice_frames=slice_frames, tiling=tiling)
    autoencoder.name = (folder.parent if folder.name == "vae" else folder).resolve().name
    return autoencoder


def check_autoencoder(model: str | Path, sha256: str | None) -> None:
    """UserError unless the stage in folder `model` was trained on latents of this autoencoder; None: on pixels."""
    trained = load_stage_info(model).autoencoder_sha256
    if trained != sha256:
        raise UserError(
            f"{model} was trained on {_space(trained)}, and ingest made {_space(sha256)}: set ingest.autoencoder back, "
            "or train the model anew."
        )


def _space(sha256: str | None) -> str:
    return "pixels" if sha256 is None else f"latents of the autoencoder with the sha256 {sha256[:12]}…"


def _per_channel(values: tuple[float, ...], latents: Tensor) -> Tensor:
    if latents.shape[1] != len(values):
        raise ValueError(f"latents have shape {tuple(latents.shape)}: expected (N, {len(values)}, T, h, w).")
    return torch.tensor(values, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1, 1)
