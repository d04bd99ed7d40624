"""A folder of videos or images and a table of their captions and segments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyoco_pipeline.data.sources.base import (
    SPLITS,
    Media,
    StoredSource,
    as_text,
    captions_table,
    check_share,
    one_spelling,
    split_by_hash,
)
from pyoco_pipeline.data.sources.tables import read_table
from pyoco_pipeline.data.storage import Located
from pyoco_pipeline.errors import UserError


class VideoFolderSource(StoredSource):
    """Captioned files below `root`, listed in a .csv, .jsonl or .parquet table.

    The table needs the columns `path` (relative to `root`) and `caption`, and may have `start` and `end`
    (seconds; blank means the whole video) and `split` (train or test). Without `split`, about `test_share` of
    the files are test files, chosen by a hash of the path: the same on every machine and for all rows of a file.

    captions_file: the table; a relative name is looked up inside `root`
    test_share: in [0, 1]
    """

    kind = "video_folder"

    def __init__(
        self,
        root: str | Path,
        captions_file: str | Path,
        *,
        test_share: float = 0.1,
        media: Media = "video",
        max_copy_mb: float = 4096,
    ) -> None:
        super().__init__(root, media=media, max_copy_mb=max_copy_mb)
        self.captions_file = str(captions_file)
        self.test_share = check_share(test_share)

    def captions(self) -> pd.DataFrame:
        """One row per row of the table, in its order; `path` is one name for all spellings of a file.

        Raises UserError for a missing folder or table, a table that cannot be read, has no rows or lacks a column,
        and for a split or time that means nothing.
        """
        self.check_root(f"the {self.media}s")
        if not self.storage.is_file(self.captions_file):
            raise UserError(
                f"The folder {self.storage} has no captions file {self.storage.full(self.captions_file)}; write a "
                ".csv, .jsonl or .parquet table there with the columns path and caption."
            )
        table = read_table(self.storage, self.captions_file, ("path", "caption"))
        paths = [text or "" for text in self._texts(table, "path")]
        files = self.storage.locate_all(paths)
        return captions_table(
            one_spelling(paths, files),
            self._texts(table, "caption"),
            self._splits(table, paths, files),
            [files[path].problem for path in paths],
            start=self._seconds(table, "start"),
            end=self._seconds(table, "end"),
            names=paths,
        )

    def _texts(self, table: pd.DataFrame, column: str) -> list[str | None]:
        return [as_text(value, self._place(row, column)) for row, value in enumerate(table[column], start=1)]

    def _seconds(self, table: pd.DataFrame, column: str) -> list[float] | None:
        if column not in table.columns:
            return None
        return [self._second(value, row, column) for row, value in enumerate(table[column], start=1)]

    def _second(self, value: Any, row: int, column: str) -> float:
        text = as_text(value, self._place(row, column))
        if text is None or not text.strip():
            return math.nan
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.inf
        if not np.isfinite(seconds):
            raise UserError(f"{self._place(row, column)} holds {value!r}; write seconds or leave it blank.")
        return seconds

    def _splits(self, table: pd.DataFrame, paths: list[str], files: dict[str, Located]) -> list[str]:
        if "split" not in table.columns:
            by_path = {path: split_by_hash(at.name, self.test_share) for path, at in files.items()}
            return [by_path[path] for path in paths]
        splits = []
        for row, (value, text) in enumerate(zip(table["split"], self._texts(table, "split"), strict=True), 1):
            split = (text or "").strip().lower()
            if split not in SPLITS:
                raise UserError(f"{self._place(row, 'split')} holds {value!r}; write train or test.")
            splits.append(split)
        return splits

    def _place(self, row: int, column: str) -> str:
        return f"Row {row} of {self.storage.full(self.captions_file)}, column {column},"
