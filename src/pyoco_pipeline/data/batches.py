"""Training batches: which clips make step k, as a function of (seed, k) alone, so that a run can go on anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyoco_pipeline.data.clips import ClipStore, Shard
from pyoco_pipeline.data.embeddings import Conditioning, TextEmbeddings
from pyoco_pipeline.data.order import ShuffledOrder, Turns, mix_seed
from pyoco_pipeline.data.reader import GroupReader, list_groups

Decode = Callable[[Tensor, torch.Generator], Tensor]  # stored (N, T, H, W, C) -> what is trained on


@dataclass(frozen=True)
class Batch:
    """x0: (B, C, T, H, W) float32, pixels in [-1, 1]; cond: the network's keyword arguments, batch first."""

    x0: Tensor
    cond: Conditioning


@dataclass(frozen=True)
class BatchOptions:
    """How batches are drawn.

    batch_size: clips per step, over all processes. image_share: share of steps on images, 1 for image pretraining;
    spread evenly. caption_dropout: share of captions replaced by the empty one, for classifier-free guidance. buffer:
    clips that are shuffled together in memory. lanes: walks through the data that a batch takes equal parts of; with
    as many as processes, or a multiple, each process reads only its own. with_fps: also tell the network each clip's
    frame rate.
    """

    batch_size: int
    image_share: float = 0.0
    caption_dropout: float = 0.1
    seed: int = 0
    buffer: int = 8192
    lanes: int = 1
    with_fps: bool = False


class ClipBatches:
    """The batches of a training run over the clips of one split, read from disk as they are needed.

    A step of videos takes clips of one size, in an order shuffled anew each epoch. A step of images takes as many
    frames as a step of videos has, as clips of one frame: the store's images or, where it has none, frames of clips,
    each from its own. decode: from what is stored to what is trained on; None: pixels to [-1, 1].
    """

    def __init__(
        self,
        store: ClipStore,
        embeddings: TextEmbeddings,
        options: BatchOptions,
        *,
        split: str = "train",
        decode: Decode | None = None,
    ) -> None:
        if options.batch_size % options.lanes:
            raise ValueError(f"a batch of {options.batch_size} can't be split over {options.lanes} lanes")
        self.options, self.embeddings = options, embeddings
        self.decode = decode
        self.frames = store.manifest.num_frames
        self.null_row = embeddings.rows([""])
        self._videos = self._images = None
        clips, images = store.shards(split), store.shards(split, images=True)
        if not clips and (options.image_share < 1 or not images):
            raise store.empty(split)
        if options.image_share < 1:
            self._videos = _Walks(store, clips, embeddings, options)
        if options.image_share > 0:
            own = replace(options, seed=mix_seed(options.seed, 4))
            self._images = _Walks(store, images or clips, embeddings, own)

    def is_image_step(self, step: int) -> bool:
        """Whether step `step` (from 0) trains on images."""
        share = self.options.image_share
        return int((step + 1) * share) > int(step * share)

    def size(self, step: int) -> int:
        """Clips in the batch of a step, images being clips of one frame."""
        return self.options.batch_size * (self.frames if self.is_image_step(step) else 1)

    def batch(self, step: int, device: torch.device, part: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of one step on `device`, or the part (index, number of parts) of it; a function of (seed, step).

        Raises ValueError where the batch does not split into so many parts.
        """
        draw = torch.Generator().manual_seed(mix_seed(self.options.seed, step, 1))
        image_step, size = self.is_image_step(step), self.size(step)
        mine = _slice(size, part)
        frame = torch.randint(self.frames, (size,), generator=draw)
        dropped = torch.rand(size, generator=draw) < self.options.caption_dropout
        which = torch.rand(size, generator=draw)
        # Image and video steps walk through their own epochs: how many of one kind came before is known.
        images_before = int(step * self.options.image_share)
        walks = self._images if image_step else self._videos
        assert walks is not None
        stored, rows, fps = walks.take(
            images_before if image_step else step - images_before, size, which, part
        )
        if image_step:
            frame = frame[mine] % stored.shape[1]
            stored = stored[torch.arange(len(stored)), frame][:, None]
        rows = torch.where(dropped[mine], self.null_row, rows)
        cond = dict(self.embeddings.conditioning(rows, device))
        if self.options.with_fps:
            cond["fps"] = fps.to(device)
        return Batch(self._decoded(stored.to(device), step, mine.start), cond)

    def _decoded(self, stored: Tensor, step: int, first: int) -> Tensor:
        if self.decode is None:
            return to_float(stored)
        # A generator for each clip, so that parts of a batch draw what the whole batch draws.
        seeds = [mix_seed(self.options.seed, step, 5, first + i) for i in range(len(stored))]
        draws = [torch.Generator(stored.device).manual_seed(seed) for seed in seeds]
        return torch.cat([self.decode(stored[i : i + 1], draw) for i, draw in enumerate(draws)])


class _Walks:
    """Endless walks through shards, one for each size of their clips and each lane."""

    def __init__(
        self, store: ClipStore, shards: list[Shard], embeddings: TextEmbeddings, options: BatchOptions
    ) -> None:
        self.lanes = options.lanes
        by_size: dict[tuple[int, int], list[Shard]] = {}
        for shard in shards:
            by_size.setdefault((shard.height, shard.width), []).append(shard)
        sizes = sorted(by_size)
        self.walks = [
            [_Walk(store, by_size[size], embeddings, options, lane) for lane in range(options.lanes)]
            for size in sizes
        ]
        self.turns = Turns([sum(shard.rows for shard in by_size[size]) for size in sizes])

    def take(
        self, step: int, size: int, which: Tensor, part: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clips, rows of embeddings and frame rates of part of the step-th batch, of `size` clips.

        which: (size,) in [0, 1), chooses among a clip's captions.
        """
        walks, before = self.walks[self.turns.kind(step)], self.turns.before(step)
        each = size // self.lanes
        mine = _slice(size, part)
        found = []
        for lane, walk in enumerate(walks):
            start, stop = max(mine.start, lane * each), min(mine.stop, (lane + 1) * each)
            if start < stop:
                place = before * each + start - lane * each
                found.append(walk.take(place, stop - start, which[start:stop]))
        clips, rows, fps = (torch.cat(parts) for parts in zip(*found, strict=True))
        return clips, rows, fps


class _Walk:
    """One walk: an order, a reader, and what is known of each clip beside its pixels."""

    def __init__(
        self,
        store: ClipStore,
        shards: list[Shard],
        embeddings: TextEmbeddings,
        options: BatchOptions,
        lane: int,
    ) -> None:
        groups = list_groups(shards)
        buffer = max(1, options.buffer // options.lanes)
        # As few groups as lanes: every lane walks through all of them, in an order of its own.
        own = groups[lane :: options.lanes] if len(groups) >= options.lanes else groups
        self.order = ShuffledOrder(
            [group.rows for group in own], buffer=buffer, seed=mix_seed(options.seed, lane, 6)
        )
        self.reader = GroupReader(store, own, keep=2 * (buffer + max(group.rows for group in own)))
        self.starts = np.cumsum([0, *(group.rows for group in own)])
        self._read_captions(store, embeddings)

    def _read_captions(self, store: ClipStore, embeddings: TextEmbeddings) -> None:
        # Which embeddings belong to each clip: flat, with the place of each clip's first.
        counts: list[int] = []
        captions: list[str] = []
        rates: list[float] = []
        for group in self.reader.groups:
            with store.open_shard(group.shard) as file:
                columns = ["caption", "other_captions", "fps"]
                for row in file.read_row_group(group.index, columns=columns).to_pylist():
                    captions += [row["caption"], *row["other_captions"]]
                    counts.append(1 + len(row["other_captions"]))
                    rates.append(row["fps"] or store.manifest.fps)
        self.first = torch.from_numpy(np.cumsum([0, *counts]))
        self.rows, self.fps = embeddings.rows(captions), torch.tensor(rates)

    def take(self, place: int, count: int, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups, rows = self.order.take(place, count)
        clips = self.reader.read(groups, rows)
        self.reader.prefetch(self.order.groups_after(place + count - 1))
        index = torch.from_numpy(self.starts[groups] + rows)
        first, stop = self.first[index], self.first[index + 1]
        chosen = first + (which * (stop - first)).long().clamp(max=(stop - first) - 1)
        return clips, self.rows[chosen], self.fps[index]


def _slice(size: int, part: tuple[int, int]) -> slice:
    index, parts = part
    if size % parts:
        raise ValueError(f"a batch of {size} can't be split into {parts} equal parts")
    return slice(index * size // parts, (index + 1) * size // parts)


def to_float(video: Tensor) -> Tensor:
    """Stored clips (N, T, H, W, C) uint8 as the networks' (N, C, T, H, W) float32 in [-1, 1]."""
    return video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def to_uint8(video: Tensor) -> Tensor:
    """The inverse of `to_float`, rounding and clipping."""
    return ((video.permute(0, 2, 3, 4, 1) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
