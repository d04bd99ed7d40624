"""What the tests of isolation and of executors call in other processes; imports little, as each child imports it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from pyoco_pipeline.data.isolation import Isolated

calls = 0
kept: list[np.ndarray] = []


def pid() -> int:
    return os.getpid()


def square(x: int) -> int:
    return x * x


def later_square(x: int) -> int:
    """The later a task begins, the sooner it is done, so that results come out of order."""
    time.sleep(0.02 * (4 - x % 4))
    return x * x


def pictures(count: int, height: int) -> list[np.ndarray]:
    return [np.full((height, 5, 3), k, np.uint8) for k in range(count)]


def fail(error: Exception) -> None:
    raise error


def fail_at(x: int, where: int, error: Exception, seen: Path) -> int:
    (seen / str(x)).touch()
    if x == where:
        raise error
    return x


def fail_beyond_pickle() -> None:
    class Local(Exception):
        pass

    raise Local("seven")


def unpicklable() -> object:
    return lambda: None


def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def wait_in_c(seconds: int, mark: Path) -> None:
    """Sleeps in C code that keeps all of Python's threads from running."""
    mark.write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(seconds)


def wait_marked(seconds: float, mark: Path) -> None:
    mark.write_text(str(os.getpid()))
    time.sleep(seconds)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def abort() -> None:
    os.abort()


def leave(code: int) -> None:
    os._exit(code)


def die_at(x: int, where: int) -> int:
    if x == where:
        os._exit(9)
    return x


def die_unless_first() -> int:
    """Stands for a decoder that an earlier file has damaged."""
    global calls
    calls += 1
    if calls > 1:
        os.abort()
    return calls


def allocate(megabytes: int) -> int:
    return int(np.ones(megabytes * 2**20, np.uint8)[-1]) * megabytes


def keep(megabytes: int) -> int:
    kept.append(np.ones(megabytes * 2**20, np.uint8))
    return os.getpid()


def chatter() -> str:
    print("printed")
    os.write(1, b"written")
    return sys.stdin.read()


def imported(names: list[str]) -> list[str]:
    import pyoco_pipeline.data.video  # noqa: F401

    return [name for name in names if name in sys.modules]


def slow_pid(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def wait_or_fail(seconds: float) -> float:
    time.sleep(seconds)
    if seconds == 0.5:
        raise ValueError("odd")
    return seconds


def isolated_square(x: int) -> int:
    with Isolated(timeout_s=30, memory_mb=500) as isolated:
        return isolated.call(square, x)


def wait_isolated(seconds: float, mark: Path) -> None:
    with Isolated(timeout_s=60, memory_mb=500) as isolated:
        isolated.call(wait_marked, seconds, mark)
