"""Tables in the columns of WebVid (Bain et al. 2021, arXiv:2104.00650), with files that are already there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from pyoco_pipeline.data.sources.base import (
    StoredSource,
    as_text,
    captions_table,
    check_share,
    split_by_hash,
)
from pyoco_pipeline.data.sources.tables import read_table
from pyoco_pipeline.errors import UserError

COLUMNS = ("videoid", "page_dir", "name")  # contentUrl, duration and page_idx are not read


class WebVidSource(StoredSource):
    """The caption of a row is its `name`, its file `videos`/<page_dir>/<videoid>.<extension>; nothing is fetched.

    train, test: tables, .csv or .parquet, below `root` or absolute. Without test tables about `test_share` of the
        files are test files, chosen by a hash of the path; a video that is in a train and in a test table is an error
    A table without the column page_dir, or a blank cell in it, means a file right in `videos`.
    """

    kind = "webvid"

    def __init__(
        self,
        root: str | Path,
        *,
        train: Sequence[str] = ("results_2M_train.csv",),
        test: Sequence[str] = (),
        videos: str = "videos",
        extension: str = "mp4",
        test_share: float = 0.1,
        max_copy_mb: float = 4096,
    ) -> None:
        super().__init__(root, max_copy_mb=max_copy_mb)
        self.tables = [(name, "train") for name in train] + [(name, "test") for name in test]
        if not self.tables:
            raise UserError("webvid needs at least one table.")
        self.hashed = not test
        self.videos = videos.strip("/")
        self.extension = extension.lstrip(".")
        self.test_share = check_share(test_share)

    def captions(self) -> pd.DataFrame:
        """One row per row of the tables, in their order; more columns: videoid.

        Raises UserError for a table that can't be read or lacks a column, a row without a videoid, and a video in
        both splits.
        """
        self.check_root("the tables and the videos")
        ids: list[str] = []
        paths: list[str] = []
        captions: list[str | None] = []
        splits: list[str] = []
        split_of: dict[str, str] = {}
        for name, split in self.tables:
            for place, video, page, caption in self._rows(name):
                path = "/".join(part for part in (self.videos, page, f"{video}.{self.extension}") if part)
                if not self.hashed and split_of.setdefault(video, split) != split:
                    raise UserError(
                        f"{place} has the videoid {video} that is in a train table too; keep one of the rows."
                    )
                ids.append(video)
                paths.append(path)
                captions.append(caption)
                splits.append(split_by_hash(path, self.test_share) if self.hashed else split)
        files = self.storage.locate_all(paths)
        return captions_table(paths, captions, splits, [files[path].problem for path in paths], videoid=ids)

    def _rows(self, name: str) -> Iterator[tuple[str, str, str, str | None]]:
        """(where it is written, videoid, page_dir or "", caption) of each row."""
        table = read_table(self.storage, name, ("videoid", "name"), what="table", only=COLUMNS)
        location = self.storage.full(name)
        pages = table["page_dir"] if "page_dir" in table.columns else [None] * len(table)
        for row, cells in enumerate(zip(table["videoid"], pages, table["name"], strict=True), start=1):
            place = f"Row {row} of {location}"
            video, page, caption = (
                as_text(cell, f"{place}, column {column},")
                for cell, column in zip(cells, COLUMNS, strict=True)
            )
            if not (video or "").strip():
                raise UserError(f"{place} has no videoid; drop the row or fill it in.")
            yield place, (video or "").strip(), (page or "").strip().strip("/"), caption
