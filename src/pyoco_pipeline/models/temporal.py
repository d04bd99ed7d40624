"""Temporal modules: what inflation puts between the layers of an image UNet.

Each maps (B*T, C, H, W) to the same shape, ends in a zero-initialised projection, and adds its input, so that a new
module is the identity. Normalisation is per frame or per position, never over T, so that a clip of one frame and a
clip of many agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyoco_pipeline.models.fast import GroupNormSiLU, lower
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
    """Self-attention over the frames of each position, with rotary positions (RoFormer, eq. 34)."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        _, channels, height, width = x.shape
        h = self.norm(lower(x).permute(0, 2, 3, 1)).reshape(-1, num_frames, height * width, channels)
        qkv = self.to_qkv(h).unflatten(-1, (3, channels // self.head_dim, self.head_dim))
        q, k, v = qkv.unbind(3)  # each (B, T, HW, heads, head_dim)
        h = self.to_out(self.attend(q, k, v).flatten(-2))
        return x + h.reshape(x.shape[0], height, width, channels).permute(0, 3, 1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over T with positions; q, k, v and the result (B, T, HW, heads, head_dim)."""
        return attend_over_frames(rotate(q), rotate(k), v)


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding over T; x: (B, T, HW, heads, D) with D even."""
    frames, dim = x.shape[1], x.shape[-1]
    frequency = 100.0 ** (-torch.arange(0, dim, 2, device=x.device, dtype=torch.float32) / dim)
    angle = torch.arange(frames, device=x.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = (f.to(x.dtype)[:, None, None, :] for f in (angle.cos(), angle.sin()))
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
