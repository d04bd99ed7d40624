"""Training batches: which clips make step k, as a function of (seed, k) alone, so that a run can go on anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import Conditioning, TextEmbeddings


@dataclass(frozen=True)
class Batch:
    """x0: (B, C, T, H, W) float32 in [-1, 1]; cond: the network's keyword arguments, batch first."""

    x0: Tensor
    cond: Conditioning


class ClipBatches:
    """Clips of one split in memory, and the batches of a training run over them.

    batch_size: clips per step. A step of videos takes clips in an order shuffled anew each epoch; a step of images
    takes as many frames as a step of videos has, each from its own clip, as clips of one frame. image_share: share
    of image steps, 1 for image pretraining; spread evenly. caption_dropout: share of captions replaced by the empty
    one, for classifier-free guidance.
    """

    def __init__(
        self,
        store: ClipStore,
        embeddings: TextEmbeddings,
        *,
        split: str = "train",
        batch_size: int,
        image_share: float,
        caption_dropout: float,
        seed: int,
    ) -> None:
        items = store.take(split)
        self.videos = torch.from_numpy(np.stack([item.clip.video for item in items]))  # (N, T, H, W, C) uint8
        self.rows = embeddings.rows([item.caption for item in items])
        self.null_row = embeddings.rows([""])
        self.embeddings = embeddings
        self.batch_size, self.image_share = batch_size, image_share
        self.caption_dropout, self.seed = caption_dropout, seed

    def is_image_step(self, step: int) -> bool:
        """Whether step `step` (from 0) trains on images."""
        return int((step + 1) * self.image_share) > int(step * self.image_share)

    def batch(self, step: int, device: torch.device) -> Batch:
        """The batch of one step on `device`; a function of (seed, step)."""
        draw = torch.Generator().manual_seed(mix_seed(self.seed, step, 1))
        frames = self.videos.shape[1]
        image_step = self.is_image_step(step)
        size = self.batch_size * (frames if image_step else 1)
        clips = self._clip_indices(step, size, image_step)
        if image_step:
            frame = torch.randint(frames, (size,), generator=draw)
            pixels = self.videos[clips, frame][:, None]
        else:
            pixels = self.videos[clips]
        rows = self.rows[clips]
        dropped = torch.rand(size, generator=draw) < self.caption_dropout
        rows = torch.where(dropped, self.null_row, rows)
        return Batch(to_float(pixels.to(device)), self.embeddings.conditioning(rows, device))

    def _clip_indices(self, step: int, size: int, image_step: bool) -> Tensor:
        # Image and video steps walk through their own epochs: how many of one kind came before is known.
        images_before = int(step * self.image_share)
        position = (images_before if image_step else step - images_before) * size
        count, taken = len(self.videos), []
        while size:
            epoch, start = divmod(position, count)
            part = _epoch_order(self.seed, epoch, count)[start : start + size]
            taken.append(part)
            position, size = position + len(part), size - len(part)
        return torch.cat(taken)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix_seed(seed, epoch, 0)))


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, so that streams of different purpose do not meet."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def to_float(video: Tensor) -> Tensor:
    """Stored clips (N, T, H, W, C) uint8 as the networks' (N, C, T, H, W) float32 in [-1, 1]."""
    return video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def to_uint8(video: Tensor) -> Tensor:
    """The inverse of `to_float`, rounding and clipping."""
    return ((video.permute(0, 2, 3, 4, 1) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
