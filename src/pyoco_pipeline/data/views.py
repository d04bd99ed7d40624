"""What a stage of the cascade sees of the stored clips: fewer frames, smaller ones, and parts of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.errors import UserError

Array = TypeVar("Array", Tensor, np.ndarray)


@dataclass(frozen=True)
class ClipView:
    """Every `stride`-th frame of a clip, `scale` times smaller by area; in training a random part of that.

    crop: (frames, height, width) of the part, after stride and scale; None: all of it. An image is a clip of one frame.
    """

    stride: int = 1
    scale: int = 1
    crop: tuple[int, int, int] | None = None

    def num_frames(self, stored: int) -> int:
        """Frames that are seen of a clip of `stored` frames in training."""
        return self.crop[0] if self.crop else -(-stored // self.stride)

    def cut(self, stored: Tensor, where: Tensor | None = None) -> Tensor:
        """Stored clips (N, T, H, W, C) without the frames and borders that are not seen; still in the stored size.

        where: (N, 3) in [0, 1), which part of each clip in time, height and width; without a crop it is not used.
        """
        if self.crop is None:
            return stored[:, :: self.stride]
        assert where is not None
        return torch.stack([self.cut_one(clip, place) for clip, place in zip(stored, where, strict=True)])

    def cut_one(self, stored: Array, where: Tensor | None = None) -> Array:
        """The same of one clip (T, H, W, C), a view of it; where: (3,)."""
        seen = stored[:: self.stride]
        if self.crop is None:
            return seen
        assert where is not None
        frames = min(self.crop[0], seen.shape[0])  # an image has one
        part = (frames, self.crop[1] * self.scale, self.crop[2] * self.scale)
        # Corners lie on the grid of the smaller pixels, so that a part of the small clip is what is left.
        grid = (1, self.scale, self.scale)
        places = [
            (size - want) // step + 1 for size, want, step in zip(seen.shape[:3], part, grid, strict=True)
        ]
        a, b, c = ((where * torch.tensor(places)).long() * torch.tensor(grid)).tolist()
        t, h, w = part
        return seen[a : a + t, b : b + h, c : c + w]

    def shrink(self, x0: Tensor) -> Tensor:
        """Clips (N, C, T, H, W) of pixels `scale` times smaller."""
        return shrink(x0, self.scale)


def shrink(x: Tensor, scale: int) -> Tensor:
    """Clips (B, C, T, H, W) `scale` times smaller, every pixel the mean of those that it covers."""
    if scale == 1:
        return x
    small = F.avg_pool2d(x.transpose(1, 2).flatten(0, 1), scale)
    return small.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def view_of(
    store: ClipStore,
    shape: tuple[int | None, int | None, int | None] | None,
    crop: tuple[int | None, int | None, int | None] | None = None,
) -> ClipView:
    """The view in which the clips of `store` have `shape` (frames, height, width), None for as they are stored.

    crop: the part of that, in the same order, None for the whole. Raises UserError where frames are not evenly spaced
    over the stored ones, the size is not a whole number of times smaller, or the part is larger than the whole.
    """
    stored = store.shape
    frames, height, width = _filled(shape, stored)
    if frames > stored[0] or (frames > 1 and (stored[0] - 1) % (frames - 1)) or (frames == 1 < stored[0]):
        fitting = [n for n in range(2, stored[0] + 1) if (stored[0] - 1) % (n - 1) == 0]
        raise UserError(
            f"clip.frames={frames} can't be spaced evenly over the {stored[0]} frames of {store.folder}: take one of "
            f"{', '.join(map(str, fitting))}, or change ingest.num_frames."
        )
    stride = (stored[0] - 1) // (frames - 1) if frames > 1 else 1
    scale = stored[1] // height
    if scale < 1 or (height * scale, width * scale) != stored[1:]:
        raise UserError(
            f"clip.height={height} and clip.width={width} are not a whole number of times smaller than the clips in "
            f"{store.folder}, {stored[1]}x{stored[2]}: change them, or ingest.height and ingest.width."
        )
    sizes = sorted({(shard.height, shard.width) for shard in store.manifest.shards})
    if odd := [size for size in sizes if size[0] % scale or size[1] % scale]:
        raise UserError(
            f"clip.height={height} and clip.width={width} make clips {scale} times smaller, which those of "
            f"{odd[0][0]}x{odd[0][1]} in {store.folder} don't divide into: change ingest.buckets."
        )
    if scale > 1 and store.manifest.autoencoder:
        raise UserError(
            "clip.height and clip.width are for pixels; latents can't be made smaller: set them to null."
        )
    if crop is None:
        return ClipView(stride, scale)
    part = _filled(crop, (frames, height, width))
    for name, want, whole in zip(("frames", "height", "width"), part, (frames, height, width), strict=True):
        if want > whole:
            raise UserError(
                f"crop.{name}={want} is more than the clip's {whole}: lower it, or set it to null."
            )
    if any(part[1] * scale > height or part[2] * scale > width for height, width in sizes):
        raise UserError(
            f"crop.height={part[1]} and crop.width={part[2]} don't fit into all sizes of clips: lower them."
        )
    return ClipView(stride, scale, part)


def _filled(
    asked: tuple[int | None, int | None, int | None] | None, whole: tuple[int, int, int]
) -> tuple[int, int, int]:
    frames, height, width = (w if a is None else a for a, w in zip(asked or (None,) * 3, whole, strict=True))
    return frames, height, width
