"""What img2dataset and video2dataset leave on disk for tables such as LAION's: Parquet with files or with bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pyoco_pipeline.data.sources import parquet
from pyoco_pipeline.data.sources.base import (
    Media,
    StoredSource,
    as_text,
    captions_table,
    check_share,
    one_spelling,
    split_by_hash,
)
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)

CAPTION_COLUMNS = ("caption", "TEXT", "text", "txt")
BYTES_COLUMNS = ("jpg", "jpeg", "png", "webp", "mp4", "image")


class LaionSource(StoredSource):
    """Captioned images (or videos) that Parquet tables list or hold; nothing is fetched from the web.

    tables: patterns of the tables below `root`
    caption_column: text, or lists of text: each is then a row; None: the first of CAPTION_COLUMNS that a table has
    bytes_column: holds the files themselves (`output_format=parquet`); None: one of BYTES_COLUMNS, if there
    path_column: paths below `root`; None: <table without .parquet>/<key>.<extension> (`output_format=files`)
    test_share: of the files, chosen by a hash of the path
    Rows whose `status` is not "success" were never downloaded; they are counted and left out.
    """

    kind = "laion"

    def __init__(
        self,
        root: str | Path,
        *,
        tables: Sequence[str] = ("*.parquet",),
        media: Media = "image",
        caption_column: str | None = None,
        bytes_column: str | None = None,
        path_column: str | None = None,
        extension: str = "jpg",
        test_share: float = 0.1,
        max_copy_mb: float = 4096,
    ) -> None:
        super().__init__(root, media=media, max_copy_mb=max_copy_mb)
        self.tables = tuple(tables)
        self.caption_column = caption_column
        self.bytes_column = bytes_column
        self.path_column = path_column
        self.extension = extension.lstrip(".")
        self.test_share = check_share(test_share)

    def captions(self) -> pd.DataFrame:
        """A row for every downloaded row of the tables and caption, in the order of the tables' names.

        Raises UserError where no table fits, and for a table that can't be read, has no caption, or has neither
        bytes nor paths nor keys.
        """
        self.check_root("the tables")
        found = dict.fromkeys(name for pattern in self.tables for name in self.storage.glob(pattern))
        if not found:
            raise UserError(f"No table below {self.storage} fits {', '.join(map(repr, self.tables))}.")
        paths: list[str] = []
        captions: list[str | None] = []
        self._warn_of_large_groups(next(iter(found)))
        listed = downloaded = 0
        for name in found:
            for done, path, texts in self._rows(name):
                listed += 1
                downloaded += done
                if done:
                    paths += [path] * len(texts)
                    captions += texts
        if listed > downloaded:
            logger.warning(
                "%d of %d rows below %s were not downloaded (their status is not success); they are left out",
                listed - downloaded,
                listed,
                self.storage,
            )
        if not paths:
            raise UserError(f"None of the {listed} rows below {self.storage} was downloaded.")
        files = self.storage.locate_all(path for path in paths if not parquet.split_cell_path(path))
        problems = [files[path].problem if path in files else "" for path in paths]
        drawn = [files[path].name if path in files else path for path in paths]
        splits = [split_by_hash(name, self.test_share) for name in drawn]
        return captions_table(one_spelling(paths, files), captions, splits, problems, names=paths)

    @contextmanager
    def local_file(self, path: str) -> Iterator[Path]:
        """The file of a row, or a copy of its bytes."""
        cell = parquet.split_cell_path(path)
        value = path
        if cell:
            column = self._bytes_column(parquet.known_schema(self.storage, cell[0])) or ""
            value = parquet.read_cell(self.storage, cell[0], column, cell[1])
        with parquet.media_file(self.storage, value, path, self.max_bytes) as file:
            yield file

    def _warn_of_large_groups(self, name: str) -> None:
        column = self._bytes_column(parquet.read_schema(self.storage, name))
        if column is not None:
            parquet.warn_of_large_groups(self.storage, name, column)

    def _rows(self, name: str) -> Iterator[tuple[bool, str, list[str | None]]]:
        """(whether it was downloaded, path, captions) of each row of a table."""
        location = self.storage.full(name)
        schema = parquet.read_schema(self.storage, name)
        caption_column = self.caption_column or _first(schema, CAPTION_COLUMNS)
        parquet.require_columns(schema, [caption_column or CAPTION_COLUMNS[0]], location)
        assert caption_column is not None
        of_bytes = self._bytes_column(schema)
        source = None if of_bytes else self.path_column or "key"
        if source is not None and source not in schema.names:
            raise UserError(
                f"{location} has no column {source}; its columns: {', '.join(schema.names)}. A table of addresses "
                "alone is of no use here, nothing is fetched: download it first, with img2dataset for one."
            )
        wanted = [
            caption_column,
            *([source] if source else []),
            *(["status"] if "status" in schema.names else []),
        ]
        table = parquet.read_columns(self.storage, name, wanted)
        place = f"{location}, column {caption_column},"
        captions = parquet.caption_lists(table.column(caption_column), place)
        return zip(_downloaded(table), self._paths(name, table, source), captions, strict=True)

    def _paths(self, name: str, table: pa.Table, source: str | None) -> list[str]:
        if source is None:
            return [parquet.cell_path(name, row) for row in range(table.num_rows)]
        place = f"{self.storage.full(name)}, column {source},"
        values = [as_text(value, place) or "" for value in table.column(source).to_pylist()]
        if self.path_column is not None:
            return values
        folder = name.removesuffix(".parquet")
        return [f"{folder}/{key}.{self.extension}" if key else "" for key in values]

    def _bytes_column(self, schema: pa.Schema) -> str | None:
        if self.bytes_column is not None or self.path_column is not None:
            return self.bytes_column
        found = _first(schema, BYTES_COLUMNS)
        return found if found and not parquet.holds_paths(schema, found, "The table") else None


def _downloaded(table: pa.Table) -> list[bool]:
    if "status" not in table.column_names:
        return [True] * table.num_rows
    return [status == "success" for status in table.column("status").to_pylist()]


def _first(schema: pa.Schema, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in schema.names), None)
