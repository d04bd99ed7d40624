"""Temporal attention with learned relative positions, for a known largest number of frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyoco_pipeline.models.fused import attend
from pyoco_pipeline.models.temporal import TemporalAttention


class RelativeTemporalAttention(TemporalAttention):
    """Self-attention over the frames of each position, with a learned bias per head and distance (T5, sec. 2.1).

    max_frames: of a clip; distances are not put into buckets.
    """

    def __init__(self, channels: int, head_dim: int, max_frames: int) -> None:
        super().__init__(channels, head_dim)
        self.max_frames = max_frames
        self.position_bias = nn.Parameter(torch.zeros(channels // head_dim, 2 * max_frames - 1))

    def attend(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unbind(3)
        return attend(q, k, v, self.bias(qkv.shape[1]).to(qkv.dtype))

    def bias(self, num_frames: int) -> Tensor:
        """(heads, T, T): what is added to the logits of query frame i and key frame j."""
        frame = torch.arange(num_frames, device=self.position_bias.device)
        return self.position_bias[:, frame[None, :] - frame[:, None] + self.max_frames - 1]
