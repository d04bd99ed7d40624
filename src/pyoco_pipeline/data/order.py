"""Which clip comes at which place: an order that is shuffled anew each epoch within a bounded buffer.

Clips are stored in groups that are read whole. An epoch takes the groups in random order, several at a time (a window
of about as many clips as the buffer holds), and the clips of a window in random order. The order is a function of the
seed, so that training can go on at any place without having kept anything, and where all groups fit into the buffer it
is a full shuffle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, so that streams of different purpose do not meet."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class _Epoch:
    """The groups of an epoch in their order, and where the windows begin, in groups and in clips."""

    groups: np.ndarray  # (G,)
    first_group: np.ndarray  # (W + 1,)
    first_clip: np.ndarray  # (W + 1,)


class ShuffledOrder:
    """Places 0, 1, … of an endless walk over clips, each epoch visiting every clip once.

    rows: clips per group; buffer: clips that may be in memory at a time, at least one group; seed: of the order.
    """

    def __init__(self, rows: Sequence[int], *, buffer: int, seed: int) -> None:
        self.rows = np.asarray(rows, np.int64)
        self.count = int(self.rows.sum())
        if not self.count:
            raise ValueError("there are no clips to order")
        self.buffer, self.seed = buffer, seed
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)
        self._window = lru_cache(maxsize=4)(self._make_window)

    def take(self, place: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The clips of the places from `place` on, as groups (count,) and rows in them (count,)."""
        taken: list[np.ndarray] = []
        while count:
            window, start = self._locate(place)
            part = self._window(*window)[start : start + count]
            taken.append(part)
            place, count = place + len(part), count - len(part)
        found = np.concatenate(taken)
        return found[:, 0], found[:, 1]

    def groups_at(self, place: int) -> list[int]:
        """The groups of the window that `place` is in."""
        (epoch, index), _ = self._locate(place)
        return self._groups(epoch, index).tolist()

    def groups_after(self, place: int) -> list[int]:
        """The groups of the window after the one that `place` is in."""
        (epoch, index), start = self._locate(place)
        return self.groups_at(place - start + len(self._window(epoch, index)))

    def _locate(self, place: int) -> tuple[tuple[int, int], int]:
        epoch, within = divmod(place, self.count)
        firsts = self._epoch(epoch).first_clip
        index = int(np.searchsorted(firsts, within, side="right")) - 1
        return (epoch, index), within - int(firsts[index])

    def _groups(self, epoch: int, index: int) -> np.ndarray:
        order = self._epoch(epoch)
        return order.groups[order.first_group[index] : order.first_group[index + 1]]

    def _make_epoch(self, epoch: int) -> _Epoch:
        draw = np.random.Generator(np.random.PCG64(mix_seed(self.seed, epoch, 0)))
        groups = draw.permutation(np.flatnonzero(self.rows))
        ends = np.cumsum(self.rows[groups])
        firsts = [0]
        while firsts[-1] < len(groups):
            before = ends[firsts[-1] - 1] if firsts[-1] else 0
            fit = int(np.searchsorted(ends, before + self.buffer, side="right"))
            firsts.append(max(fit, firsts[-1] + 1))
        first_group = np.array(firsts)
        return _Epoch(groups, first_group, np.concatenate(([0], ends[first_group[1:] - 1])))

    def _make_window(self, epoch: int, index: int) -> np.ndarray:
        groups = self._groups(epoch, index)
        draw = np.random.Generator(np.random.PCG64(mix_seed(self.seed, epoch, 1, index)))
        rows = np.concatenate([np.arange(n) for n in self.rows[groups]])
        return draw.permutation(np.stack((np.repeat(groups, self.rows[groups]), rows), axis=1))


class Turns:
    """Which of several kinds takes step k, each as often as its weight says, spread evenly."""

    def __init__(self, weights: Sequence[float]) -> None:
        share = np.asarray(weights, np.float64)
        self.edges = np.cumsum(share / share.sum())[:-1]
        self._counted, self._counts = 0, np.zeros(len(share), np.int64)

    def kind(self, step: int) -> int:
        """The kind of step `step`."""
        return int(self._kinds(step, step + 1)[0])

    def before(self, step: int) -> int:
        """How many steps before `step` were of its kind."""
        if step < self._counted:
            self._counted, self._counts = 0, np.zeros_like(self._counts)
        kinds = self._kinds(self._counted, step)
        self._counts = self._counts + np.bincount(kinds, minlength=len(self._counts))
        self._counted = step
        return int(self._counts[self.kind(step)])

    def _kinds(self, start: int, stop: int) -> np.ndarray:
        # Multiples of the golden ratio fill [0, 1) evenly.
        golden = (np.arange(start, stop) + 1) * 0.6180339887498949 % 1.0
        return np.searchsorted(self.edges, golden, side="right")
