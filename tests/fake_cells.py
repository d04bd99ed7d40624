"""Cells of a study that train nothing; apart from the tests, so that a worker imports little."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Literal

from pyoco_pipeline.study.work import CellFolder


@dataclass(frozen=True)
class FakeTask:
    """A cell that does nothing, or ends its process."""

    name: str
    dies: bool
    folder: CellFolder

    def is_done(self) -> bool:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def run(self) -> Literal["done", "stopped"]:
        return "done" if self.is_done() else "stopped"


class ProcessId(FakeTask):
    """Notes, after those of earlier runs, in which process it runs."""

    def run(self) -> Literal["done", "stopped"]:
        self.folder.folder.mkdir(parents=True, exist_ok=True)
        noted = self.folder.folder / "process"
        before = set(noted.read_text().split()) if noted.is_file() else set()
        noted.write_text(" ".join(sorted(before | {str(os.getpid())})))
        return "done"
