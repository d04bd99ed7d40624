"""Two runs never write into one folder: the second is refused before it does anything."""

from __future__ import annotations

import atexit
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from kedro.framework.hooks import hook_impl

from pyoco_pipeline.errors import UserError


class LocksHook:
    """Holds a lock beside every folder that a run writes, until the run ends; a killed run's locks end with it."""

    def __init__(self) -> None:
        self._held: list[FileLock] = []
        self._made: list[Path] = []  # folders that were made for a lock alone

    @hook_impl
    def before_pipeline_run(self, pipeline: Any, catalog: Any) -> None:
        """Take the locks; UserError where another run holds one."""
        from pyoco_pipeline.datasets.folder import FolderDataset, WorkFolderDataset

        self._release()
        for name in sorted(pipeline.all_outputs() | pipeline.inputs()):
            dataset = catalog.get(name)
            written = isinstance(dataset, FolderDataset) and name in pipeline.all_outputs()
            if written and dataset.is_url:
                raise UserError(
                    f"{name} is at {dataset.url}, which is only read from: let the run write into a local folder "
                    "(catalog.yml), and copy that there."
                )
            if written or isinstance(dataset, WorkFolderDataset):
                self._take(dataset.folder)
        atexit.register(self._release)  # where another hook ends the run before it begins

    @hook_impl
    def after_pipeline_run(self) -> None:
        self._release()

    @hook_impl
    def on_pipeline_error(self) -> None:
        self._release()

    def _take(self, folder: Path) -> None:
        path = folder.with_name(f".lock-{folder.name}")
        self._make(path.parent)
        lock = FileLock(path, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            self._release()
            raise UserError(
                f"another run is writing into {folder}: wait for it or stop it, or give this one a data folder of its "
                "own (globals.yml: data)."
            ) from error
        self._held.append(lock)

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            self._made.append(folder)

    def _release(self) -> None:
        while self._held:
            lock = self._held.pop()
            Path(lock.lock_file).unlink(
                missing_ok=True
            )  # before the lock, so that no one else's is taken away
            lock.release()
        while self._made:
            with suppress(OSError):  # no longer empty
                self._made.pop().rmdir()
