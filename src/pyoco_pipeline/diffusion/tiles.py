"""Denoising in overlapping tiles, where a clip does not fit a GPU's memory in one piece.

Only D is evaluated piece by piece. The noise of a clip stays one field, which the prior draws for the whole clip and
of which every tile sees its part; so do the solver's own draws. Tiles leave the law of the noise as it is.
"""

from collections.abc import Sequence
from itertools import product
from math import pi
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise
from pyoco_pipeline.diffusion.wrapper import WrappedDenoiser

AXES = ("frames", "height", "width")
Place = tuple[slice, slice, slice]
Weights = tuple[Tensor, Tensor, Tensor]


class TiledDenoiser(WrappedDenoiser):
    """D(x; σ) from overlapping tiles of x, blended into each other.

    denoise: sees tiles (B, C, frames, height, width), all of one size; those at an end end there, and may overlap
        more. Conditions that are clips of x's frames and size, (B, C', T, H, W), are cut as x is; others are for all
        tiles. Guidance may stand around it or within it, and around it where it thresholds.
    tile: (frames, height, width), None for all there is; where all are as large as x, denoise is called with x itself.
    overlap: of neighbouring tiles, (frames, height, width), smaller than the tile. Its outer quarters, where a tile
        knows least of what surrounds it, have weight 0, and a raised cosine goes from one tile to the next in between:
        a denoiser that looks no farther than `overlap // 4` gives what it gives without tiles.
    at_once: how many tiles are stacked on the batch axis for one call.
    Raises ValueError on a tile or at_once below 1, and an overlap below 0 or not smaller than its tile.
    """

    def __init__(
        self,
        denoise: Denoise,
        tile: Sequence[int | None],
        overlap: Sequence[int] = (0, 0, 0),
        at_once: int = 1,
    ) -> None:
        super().__init__(denoise)
        for axis, size, shared in zip(AXES, tile, overlap, strict=True):
            if size is not None and size < 1:
                raise ValueError(f"the tile's {axis} is {size}: expected at least 1, or None for all.")
            if shared < 0 or (size is not None and shared >= size):
                most = "" if size is None else f" and less than the tile's, {size}"
                raise ValueError(f"the overlap's {axis} is {shared}: expected at least 0{most}.")
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}: expected at least 1 tile per call.")
        self.tile, self.overlap, self.at_once = tuple(tile), tuple(overlap), at_once

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """The clean clip, shaped like x (B, C, T, H, W); sigma (B,), conditions batch-first."""
        whole = tuple(x.shape[2:])
        size = tuple(min(asked or there, there) for asked, there in zip(self.tile, whole, strict=True))
        if size == whole:
            return self.denoise(x, sigma, **cond)
        tiles = _tiles(whole, size, self.overlap)
        x0: Tensor | None = None
        for first in range(0, len(tiles), self.at_once):
            some = tiles[first : first + self.at_once]
            places = [place for place, _ in some]
            parts = self.denoise(_cut(x, places, x), _cut(sigma, places, x), **_cut(cond, places, x))
            if x0 is None:
                x0 = torch.zeros_like(x, dtype=parts.dtype)
            for (place, (frames, height, width)), part in zip(some, parts.chunk(len(some)), strict=True):
                weight = frames.to(part)[:, None, None] * height.to(part)[:, None] * width.to(part)
                x0[(..., *place)].addcmul_(part, weight)
        assert x0 is not None
        return x0


def _cut(value: Any, places: Sequence[Place], x: Tensor) -> Any:
    """What belongs to these tiles of x, one tile's batch after the other's."""
    if isinstance(value, dict):
        return {name: _cut(item, places, x) for name, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 5 and value.shape[2:] == x.shape[2:]:
        return torch.cat([value[(..., *place)] for place in places])
    if len(places) > 1 and value.shape[:1] == x.shape[:1]:
        return torch.cat([value] * len(places))
    return value


def _tiles(whole: Sequence[int], tile: Sequence[int], overlap: Sequence[int]) -> list[tuple[Place, Weights]]:
    """The place of every tile in (T, H, W), and its weights along each of the three."""
    frames, height, width = map(_tiles_along, whole, tile, overlap)
    return [
        ((t, h, w), (of_t, of_h, of_w)) for (t, of_t), (h, of_h), (w, of_w) in product(frames, height, width)
    ]


def _tiles_along(whole: int, tile: int, overlap: int) -> list[tuple[slice, Tensor]]:
    """The tiles of one axis and their weights (tile,) float64, which add up to 1 at every position."""
    if tile == whole:
        return [(slice(0, whole), torch.ones(tile, dtype=torch.float64, device="cpu"))]
    starts = [*range(0, whole - tile, tile - overlap), whole - tile]
    rising = _ramp(tile, overlap)
    tiles, total = [], torch.zeros(whole, dtype=torch.float64, device="cpu")
    for start in starts:
        weight = torch.ones_like(rising)
        if start > 0:
            weight = weight * rising
        if start + tile < whole:
            weight = weight * rising.flip(0)
        place = slice(start, start + tile)
        total[place] += weight
        tiles.append((place, weight))
    return [(place, weight / total[place]) for place, weight in tiles]


def _ramp(tile: int, overlap: int) -> Tensor:
    """(tile,) from 0 in the first quarter of the overlap to 1 from its last quarter on."""
    if overlap == 0:
        return torch.ones(tile, dtype=torch.float64, device="cpu")
    unused = overlap // 4
    place = torch.arange(tile, dtype=torch.float64, device="cpu") + 0.5
    return (pi / 2 * ((place - unused) / (overlap - 2 * unused)).clamp(0, 1)).sin() ** 2
