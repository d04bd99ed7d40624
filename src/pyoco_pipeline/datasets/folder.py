"""Folders as Kedro datasets: nodes pass paths and writers, never weights or pixels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from pyoco_pipeline.errors import UserError

FolderWriter = Callable[[Path], object]


class FolderDataset(AbstractDataset[FolderWriter, Path | str]):
    """A folder that is either whole or not there.

    Saving takes a function that writes into an empty folder; it is given one beside the target, which takes the
    target's place when the function has returned. What the function returns is called then, where it is a function.
    Loading gives the path.

    filepath: the folder; or an fsspec URL such as s3://bucket/clips of one that is only read.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._url = filepath if "://" in filepath else None
        self._filepath = Path(filepath)
        self.metadata = metadata

    @property
    def is_url(self) -> bool:
        """Whether it is at an address, not on this machine."""
        return self._url is not None

    @property
    def url(self) -> str | None:
        """Its address, where it has one."""
        return self._url

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return self._filepath

    def load(self) -> Path | str:
        if self._url is not None:
            return self._url
        self._recover()
        if not self._filepath.is_dir():
            raise UserError(f"{self._filepath} is missing: run the pipeline that makes it first.")
        return self._filepath

    def save(self, data: FolderWriter) -> None:
        if self._url is not None:
            raise UserError(
                f"{self._url} is only read from: let the pipeline write into a local folder, and copy that there."
            )
        self._recover()
        target = self._filepath.resolve()  # a link to a folder on another disk stays one
        aside, old = target.with_name(f".writing-{target.name}"), target.with_name(f".old-{target.name}")
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            after = data(aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if target.exists():
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        if callable(after):
            after()

    def _recover(self) -> None:
        """Put back what a run took away that was killed before the new folder took its place."""
        target = self._filepath.resolve()
        old = target.with_name(f".old-{target.name}")
        if not target.exists() and old.is_dir():
            old.rename(target)

    def _exists(self) -> bool:
        if self._url is not None:
            from pyoco_pipeline.data.storage import filesystem

            return bool(filesystem(self._url).isdir(self._url))
        self._recover()
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._url or str(self._filepath)}


class WorkFolderDataset(AbstractDataset[None, Path]):
    """A folder that a node keeps for itself between runs, such as checkpoints; made when it is missing."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return self._filepath

    def load(self) -> Path:
        self._filepath.mkdir(parents=True, exist_ok=True)
        return self._filepath

    def save(self, data: None) -> None:
        raise UserError(f"{self._filepath} is a work folder: nodes write into it, the catalog does not.")

    def _exists(self) -> bool:
        # Always there for a node that asks; it is never something to run another pipeline for.
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
