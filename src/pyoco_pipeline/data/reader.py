"""Row groups of a clip store as tensors: read ahead by threads, a bounded number kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyoco_pipeline.data.clips import ClipStore, Shard


@dataclass(frozen=True)
class Group:
    """A row group of a shard: what is read at once."""

    shard: Shard
    index: int
    rows: int


def list_groups(shards: Iterable[Shard]) -> list[Group]:
    """The row groups of shards, in order."""
    groups = []
    for shard in shards:
        for index, first in enumerate(range(0, shard.rows, shard.group_rows)):
            groups.append(Group(shard, index, min(shard.group_rows, shard.rows - first)))
    return groups


class GroupReader:
    """Clips by group and row.

    keep: clips kept in memory, those of the groups used or asked for last; threads: that read ahead.
    """

    def __init__(self, store: ClipStore, groups: Sequence[Group], *, keep: int, threads: int = 2) -> None:
        self.store, self.groups, self.keep = store, groups, keep
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="clips")
        self._read: OrderedDict[int, Future[np.ndarray]] = OrderedDict()

    def read(
        self,
        groups: np.ndarray,
        rows: np.ndarray,
        seen: Callable[[int, np.ndarray], np.ndarray] | None = None,
    ) -> Tensor:
        """Clips (N, T, H, W, C), all of one size, in the store's dtype: row rows[i] of group groups[i].

        seen: the part of clip i (T, H, W, C) that is wanted, of one shape for all; no more is copied. None: all.
        """
        self._start(groups.tolist())
        videos = {int(group): self._group(int(group)) for group in np.unique(groups)}
        clips = (videos[group][row] for group, row in zip(groups.tolist(), rows.tolist(), strict=True))
        parts = [clip if seen is None else seen(i, clip) for i, clip in enumerate(clips)]
        out = np.stack(parts)
        self._forget()
        return torch.from_numpy(out)

    def prefetch(self, groups: Iterable[int]) -> None:
        """Start reading groups, and let go of those used longest ago."""
        self._start(groups)
        self._forget()

    def _start(self, groups: Iterable[int]) -> None:
        for group in groups:
            if group not in self._read:
                self._read[group] = self._threads.submit(self._load, group)
            self._read.move_to_end(group)

    def close(self) -> None:
        """Stop the threads and let go of the groups."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._read.clear()

    def _group(self, group: int) -> np.ndarray:
        self._read.move_to_end(group)
        return self._read[group].result()

    def _forget(self) -> None:
        kept = sum(self.groups[group].rows for group in self._read)
        while kept > self.keep and len(self._read) > 1:
            group, reading = self._read.popitem(last=False)
            reading.cancel()
            kept -= self.groups[group].rows

    def _load(self, number: int) -> np.ndarray:
        group = self.groups[number]
        self.store.check_unchanged()
        with self.store.open_shard(group.shard) as file:
            column = file.read_row_group(group.index, columns=["video"], use_threads=False)["video"]
        dtype, shape = np.dtype(self.store.manifest.dtype), self.store.clip_shape(group.shard)
        parts = []
        for chunk in column.chunks:
            width = chunk.type.byte_width
            data = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
            parts.append(data.view(dtype).reshape(-1, *shape))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
