"""When a study begins nothing new any more, told to every process that works for it."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # drawn by Linux when it starts


@dataclass(frozen=True)
class Deadline:
    """A moment by two clocks; picklable.

    monotonic_s: by the clock of `machine` that counts from its start and can't be set. Linux gives all its processes
        the same (CLOCK_MONOTONIC), so workers on that machine compare with it.
    epoch_s: by the clock, for other machines of a Ray cluster, whose monotonic clocks began at another time.
    """

    monotonic_s: float
    epoch_s: float
    machine: str

    @classmethod
    def after(cls, minutes: float) -> Deadline:
        """In so many minutes from now."""
        return cls(time.monotonic() + 60 * minutes, time.time() + 60 * minutes, _machine())

    def left_s(self) -> float:
        """Seconds from now, below 0 when it has passed."""
        if self.machine == _machine():
            return self.monotonic_s - time.monotonic()
        return self.epoch_s - time.time()


@cache
def _machine() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.is_file() else platform.node()
