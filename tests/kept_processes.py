"""Processes beside the tests' own that are kept from test to test, for what they import takes longer than a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyoco_pipeline.data.isolation import Isolated

_idle: list[Isolated] = []


class Kept:
    """Stands where `Isolated(timeout_s=None, memory_mb=None)` does; a process that has answered is there for the next.

    Not for tests in which a process dies: `Isolated` calls a fresh one only once, one that has answered twice.
    """

    def __init__(self, *, timeout_s: None, memory_mb: None) -> None:
        self._isolated = _idle.pop() if _idle else Isolated(timeout_s=timeout_s, memory_mb=memory_mb)
        self._unanswered = False

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        self._unanswered = True
        answer = self._isolated.call(function, *args)
        self._unanswered = False
        return answer

    def cancel(self) -> None:
        if self._unanswered:
            self._isolated.cancel()

    def close(self) -> None:
        if self._unanswered:
            self._isolated.close()
        else:
            _idle.append(self._isolated)


def end_kept_processes() -> None:
    while _idle:
        _idle.pop().close()
