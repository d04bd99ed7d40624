"""Temporal modules: what inflation puts between the layers of an image UNet.

Each maps (B*T, C, H, W) to the same shape, ends in a zero-initialised projection, and adds its input, so that a new
module is the identity. Normalisation is per frame or per position, never over T, so that a clip of one frame and a
clip of many agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyoco_pipeline.models.fast import FastLayerNorm, GroupNormSiLU, lower
from pyoco_pipeline.models.fused import attend_over_frames


class TemporalConv(nn.Module):
    """Kernel-(3, 1, 1) convolution over frames: the temporal half of a pseudo-3-D one (Make-A-Video, sec. 3.2)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNormSiLU(groups, channels)  # frames lie on the batch axis: statistics per frame
        self.conv = nn.Conv2d(channels, channels, kernel_size=(3, 1), padding=(1, 0))
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        x = lower(x)
        h = self.norm(x)
        # As a (3, 1) convolution over (T, H*W) this is a view of channels-last data, not a copy.
        h = h.permute(0, 2, 3, 1).reshape(-1, num_frames, x.shape[2] * x.shape[3], x.shape[1])
        h = self.conv(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + h.reshape(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


class TemporalAttention(nn.Module):
    """Self-attention over the frames of each position, with rotary positions (RoFormer, eq. 34).

    absolute: whether sinusoidal embeddings of the frames' numbers are added to its input. Rotary positions say how far
        frames are apart, and not which is the first.
    """

    def __init__(self, channels: int, head_dim: int, absolute: bool = False) -> None:
        super().__init__()
        self.head_dim, self.absolute = head_dim, absolute
        self.norm = FastLayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        _, channels, height, width = x.shape
        h = self.norm(lower(x).permute(0, 2, 3, 1)).reshape(-1, num_frames, height * width, channels)
        if self.absolute:
            h = h + frame_embedding(num_frames, channels, h.device).to(h.dtype)[:, None]
        qkv = self.to_qkv(h).unflatten(-1, (3, channels // self.head_dim, self.head_dim))
        h = self.to_out(self.attend(qkv).flatten(-2))
        return x + h.reshape(x.shape[0], height, width, channels).permute(0, 3, 1, 2)

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention over T with positions (B, T, HW, heads, head_dim) of qkv (B, T, HW, 3, heads, head_dim)."""
        return attend_over_frames(qkv, *rotary_angles(qkv.shape[1], self.head_dim, qkv.device))


def frame_embedding(frames: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines (T, dim) of the frames' numbers (Attention Is All You Need, sec. 3.5); dim is even."""
    cos, sin = rotary_angles(frames, dim, device)
    return torch.cat([sin, cos], dim=1)


def rotary_angles(frames: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, dim / 2) of the angles of a rotary position embedding; dim is even."""
    frequency = 100.0 ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angle = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()
