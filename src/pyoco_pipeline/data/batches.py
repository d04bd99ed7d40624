"""Training batches: which clips make step k, as a function of (seed, k) alone, so that a run can go on anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pyoco_pipeline.data.clips import ClipStore, Shard
from pyoco_pipeline.data.embeddings import Conditioning, TextEmbeddings
from pyoco_pipeline.data.order import ShuffledOrder, Turns, mix_seed
from pyoco_pipeline.data.reader import GroupReader, list_groups
from pyoco_pipeline.data.views import ClipView

# Number in the batch, clip (T, H, W, C) -> what is taken of it.
Seen = Callable[[int, np.ndarray], np.ndarray]
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
    clips that are shuffled together in memory, of at most buffer_mb (10^6 bytes); as many again are read ahead. lanes:
    walks through the data that a batch takes equal parts of; with as many as processes, or a multiple, each process
    reads only its own. with_fps: also tell the network each clip's frame rate.
    """

    batch_size: int
    image_share: float = 0.0
    caption_dropout: float = 0.1
    seed: int = 0
    buffer: int = 8192
    buffer_mb: int = 2048
    lanes: int = 1
    with_fps: bool = False


class ClipBatches:
    """The batches of a training run over the clips of one split, read from disk as they are needed.

    A step of videos takes clips of one size, in an order shuffled anew each epoch. A step of images takes as many
    frames as a step of videos has, as clips of one frame: the store's images or, where it has none, frames of clips,
    each from its own. decode: from what is stored to what is trained on; None: pixels to [-1, 1]. view: what is seen of
    each clip; frame rates are those of the seen frames.
    """

    def __init__(
        self,
        store: ClipStore,
        embeddings: TextEmbeddings,
        options: BatchOptions,
        *,
        split: str = "train",
        decode: Decode | None = None,
        view: ClipView | None = None,
    ) -> None:
        if options.batch_size % options.lanes:
            raise ValueError(f"a batch of {options.batch_size} can't be split over {options.lanes} lanes")
        self.options, self.embeddings = options, embeddings
        self.decode, self.view = decode, view or ClipView()
        self.stored_frames = store.manifest.num_frames
        self.frames = self.view.num_frames(self.stored_frames)
        self.null_row = embeddings.rows([""])
        self._videos = self._images = None
        clips, images = store.shards(split), store.shards(split, images=True)
        if not clips and (options.image_share < 1 or not images):
            raise store.empty(split)
        facts = _Facts(store, embeddings, [*clips, *images])
        both = 0 < options.image_share < 1  # then each has half of the memory
        if options.image_share < 1:
            self._videos = _Walks(store, clips, facts, options, _buffer(store, clips, options) // (1 + both))
        if options.image_share > 0:
            own, shards = replace(options, seed=mix_seed(options.seed, 4)), images or clips
            self._images = _Walks(store, shards, facts, own, _buffer(store, shards, options) // (1 + both))

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
        frame = torch.randint(self.stored_frames, (size,), generator=draw)
        dropped = torch.rand(size, generator=draw) < self.options.caption_dropout
        which = torch.rand(size, generator=draw)
        where = torch.rand(size, 3, generator=draw) if self.view.crop else None
        # Image and video steps walk through their own epochs: how many of one kind came before is known.
        images_before = int(step * self.options.image_share)
        walks = self._images if image_step else self._videos
        assert walks is not None
        stored, rows, fps = walks.take(
            images_before if image_step else step - images_before,
            size,
            which,
            part,
            lambda i, clip: self.view.cut_one(
                clip[frame[i] % len(clip)][None] if image_step else clip, None if where is None else where[i]
            ),
        )
        rows = torch.where(dropped[mine], self.null_row, rows)
        cond = dict(self.embeddings.conditioning(rows, device))
        if self.options.with_fps:
            cond["fps"] = fps.to(device) / self.view.stride
        return Batch(self.view.shrink(self._decoded(stored.to(device), step, mine.start)), cond)

    def _decoded(self, stored: Tensor, step: int, first: int) -> Tensor:
        if self.decode is None:
            return to_float(stored)
        # A generator for each clip, so that parts of a batch draw what the whole batch draws.
        seeds = [mix_seed(self.options.seed, step, 5, first + i) for i in range(len(stored))]
        draws = [torch.Generator(stored.device).manual_seed(seed) for seed in seeds]
        return torch.cat([self.decode(stored[i : i + 1], draw) for i, draw in enumerate(draws)])


class _Walks:
    """Endless walks through shards, one for each size of their clips and each lane.

    buffer: clips in memory, over all walks; each gets the part that its clips are of all.
    """

    def __init__(
        self, store: ClipStore, shards: list[Shard], facts: _Facts, options: BatchOptions, buffer: int
    ) -> None:
        self.lanes = options.lanes
        by_size: dict[tuple[int, int], list[Shard]] = {}
        for shard in shards:
            by_size.setdefault((shard.height, shard.width), []).append(shard)
        sizes = sorted(by_size)
        counts = [sum(shard.rows for shard in by_size[size]) for size in sizes]
        self.walks = [
            [
                _Walk(store, by_size[size], facts, options, lane, buffer * count // sum(counts))
                for lane in range(options.lanes)
            ]
            for size, count in zip(sizes, counts, strict=True)
        ]
        self.turns = Turns(counts)

    def take(
        self, step: int, size: int, which: Tensor, part: tuple[int, int], seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clips, rows of embeddings and frame rates of part of the step-th batch, of `size` clips.

        which: (size,) in [0, 1), chooses among a clip's captions. seen: what is taken of the batch's i-th
            clip (T, H, W, C).
        """
        walks, before = self.walks[self.turns.kind(step)], self.turns.before(step)
        each = size // self.lanes
        mine = _slice(size, part)
        found = []
        for lane, walk in enumerate(walks):
            start, stop = max(mine.start, lane * each), min(mine.stop, (lane + 1) * each)
            if start < stop:
                place = before * each + start - lane * each
                part_seen = partial(_from, start, seen)
                found.append(walk.take(place, stop - start, which[start:stop], part_seen))
        clips, rows, fps = (torch.cat(parts) for parts in zip(*found, strict=True))
        return clips, rows, fps


class _Walk:
    """One walk: an order, a reader, and what is known of each clip beside its pixels."""

    def __init__(
        self,
        store: ClipStore,
        shards: list[Shard],
        facts: _Facts,
        options: BatchOptions,
        lane: int,
        buffer: int,
    ) -> None:
        groups = list_groups(shards)
        # Lanes differ by a group at most; where that is much, every lane walks through all, in an order of its own.
        own = groups[lane :: options.lanes] if len(groups) >= 8 * options.lanes else groups
        buffer = max(1, buffer // options.lanes)
        rows = [group.rows for group in own]
        self.order = ShuffledOrder(rows, buffer=buffer, seed=mix_seed(options.seed, lane, 6))
        self.reader = GroupReader(store, own, keep=2 * (buffer + max(rows)))
        self.facts = facts
        # Where the clips of each group begin among all clips that facts are known of.
        self.starts = np.array(
            [facts.start(group.shard) + group.index * group.shard.group_rows for group in own]
        )

    def take(self, place: int, count: int, which: Tensor, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        groups, rows = self.order.take(place, count)
        clips = self.reader.read(groups, rows, seen)
        self.reader.prefetch(self.order.groups_after(place + count - 1))
        return clips, *self.facts.of(torch.from_numpy(self.starts[groups] + rows), which)


class _Facts:
    """What is known of each clip of some shards beside its pixels: which embeddings are its captions', its rate."""

    def __init__(self, store: ClipStore, embeddings: TextEmbeddings, shards: list[Shard]) -> None:
        self._starts: dict[str, int] = {}
        counts: list[int] = [0]
        rows: list[Tensor] = []
        rates: list[float] = []
        for shard in shards:
            self._starts[shard.file] = len(rates)
            captions: list[str] = []
            with store.open_shard(shard) as file:
                for row in file.read(columns=["caption", "other_captions", "fps"]).to_pylist():
                    captions += [row["caption"], *row["other_captions"]]
                    counts.append(1 + len(row["other_captions"]))
                    rates.append(row["fps"] or store.manifest.fps)
            rows.append(embeddings.rows(captions))
        self._first, self._rows = torch.from_numpy(np.cumsum(counts)), torch.cat(rows)
        self._fps = torch.tensor(rates)

    def start(self, shard: Shard) -> int:
        """The place of a shard's first clip."""
        return self._starts[shard.file]

    def of(self, places: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of embeddings and frame rates of clips (N,); which: (N,) in [0, 1), chooses among a clip's captions."""
        first, stop = self._first[places], self._first[places + 1]
        chosen = first + (which * (stop - first)).long().clamp(max=(stop - first) - 1)
        return self._rows[chosen], self._fps[places]


def _buffer(store: ClipStore, shards: list[Shard], options: BatchOptions) -> int:
    """Clips that may be in memory, by number and by the size of the largest."""
    itemsize = np.dtype(store.manifest.dtype).itemsize
    largest = max(int(np.prod(store.clip_shape(shard))) for shard in shards) * itemsize
    return max(1, min(options.buffer, options.buffer_mb * 10**6 // largest))


def _slice(size: int, part: tuple[int, int]) -> slice:
    index, parts = part
    if size % parts:
        raise ValueError(f"a batch of {size} can't be split into {parts} equal parts")
    return slice(index * size // parts, (index + 1) * size // parts)


def _from(start: int, seen: Seen, i: int, clip: np.ndarray) -> np.ndarray:
    return seen(start + i, clip)


def to_float(video: Tensor) -> Tensor:
    """Stored clips (N, T, H, W, C) uint8 as the networks' (N, C, T, H, W) float32 in [-1, 1]."""
    return video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def to_uint8(video: Tensor) -> Tensor:
    """The inverse of `to_float`, rounding and clipping."""
    return ((video.permute(0, 2, 3, 4, 1) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
