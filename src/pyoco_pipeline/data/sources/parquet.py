"""Columns and single cells of Parquet files, and the media file that a cell holds or names."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyoco_pipeline.data.copies import check_size, temporary_copy
from pyoco_pipeline.data.sources.base import as_text
from pyoco_pipeline.data.storage import Storage, remote_errors
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 8  # cells with media that are in memory at a time
SMALL_GROUP_ROWS = 100  # what `datasets` writes into a row group of media
LARGE_GROUP_BYTES = 256_000_000

_CELL = re.compile(r"(?P<table>.+\.parquet)#(?P<row>\d+)")


def cell_path(table: str, row: int) -> str:
    """How a row's `path` names a cell: table.parquet#<row from 0>."""
    return f"{table}#{row}"


def split_cell_path(path: str) -> tuple[str, int] | None:
    """(table, row) of a `cell_path`, None for other paths."""
    found = _CELL.fullmatch(path)
    return (found["table"], int(found["row"])) if found else None


def read_schema(storage: Storage, name: str) -> pa.Schema:
    """The columns of a table; UserError where it can't be read."""
    with _readable(storage, name) as file:
        return file.schema_arrow


def num_rows(storage: Storage, name: str) -> int:
    """How many rows a table has; UserError where it can't be read."""
    with _readable(storage, name) as file:
        return int(file.metadata.num_rows)


def warn_of_large_groups(storage: Storage, name: str, column: str) -> None:
    """Says so where much media lies in one row group: each worker reads one from its beginning."""
    with _readable(storage, name) as file:
        groups = [file.metadata.row_group(k) for k in range(file.num_row_groups)]
    for group in groups:
        chunks = (group.column(k) for k in range(group.num_columns))
        size = sum(
            chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column
        )
        if group.num_rows > SMALL_GROUP_ROWS and size > LARGE_GROUP_BYTES:
            logger.warning(
                "%s has %d rows with %d MB of %s in one row group, which every worker reads from its beginning to its "
                "own rows; write such tables with row_group_size=%d",
                storage.full(name),
                group.num_rows,
                size // 10**6,
                column,
                SMALL_GROUP_ROWS,
            )
            return


@lru_cache(maxsize=64)
def _schema(root: str, name: str, stamp: object) -> pa.Schema:
    return read_schema(Storage(root), name)


def known_schema(storage: Storage, name: str) -> pa.Schema:
    """`read_schema`, once for each table; VideoError where there is no table."""
    at = storage.locate(name) if storage.is_local else None
    if at is not None and at.problem:
        raise VideoError(storage.full(name), at.problem)
    return _schema(storage.root, name, storage.stamp(name))


def read_columns(storage: Storage, name: str, columns: Sequence[str]) -> pa.Table:
    """These columns of a whole table; UserError where it can't be read."""
    with _readable(storage, name) as file:
        return file.read(columns=list(columns))


def require_columns(schema: pa.Schema, columns: Sequence[str], location: str) -> None:
    """Raises UserError for the first column that is not there."""
    for column in columns:
        if column not in schema.names:
            raise UserError(f"{location} has no column {column}; its columns: {', '.join(schema.names)}.")


def caption_lists(column: pa.ChunkedArray, place: str) -> list[list[str | None]]:
    """The captions of each row, of a column of text or of lists of text; no caption is [None]."""
    kind = column.type
    inner = kind.value_type if _is_list(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner)):
        raise UserError(f"{place} is {kind}, not text or lists of text; name the column of the captions.")
    values = column.to_pylist()
    if not _is_list(kind):
        return [[as_text(value, place)] for value in values]
    return [[as_text(one, place) for one in value or []] or [None] for value in values]


def holds_paths(schema: pa.Schema, column: str, location: str) -> bool:
    """Whether a column has paths (text), not bytes or structs of bytes and path; UserError for anything else."""
    kind = schema.field(column).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return True
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    is_struct = pa.types.is_struct(kind) and {field.name for field in kind} >= {"bytes", "path"}
    if not is_bytes and not is_struct:
        raise UserError(
            f"{location}, column {column}, is {kind}; a media column has bytes, paths, or both as datasets' Video "
            "and Image features keep them."
        )
    return False


@contextmanager
def media_file(storage: Storage, value: Any, shown: str, max_bytes: int) -> Iterator[Path]:
    """The file of a cell: a copy of its bytes, or the file below the root that it names."""
    named = value if isinstance(value, str) else None
    if isinstance(value, dict):
        value, named = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        if not value:
            raise VideoError(shown, "is empty")
        check_size(shown, len(value), max_bytes)
        with temporary_copy([value], named or shown) as path:
            yield path
    elif isinstance(named, str) and named:
        with storage.local_file(named, max_bytes) as path:
            yield path
    else:
        raise VideoError(shown, "is missing: the row has neither bytes nor a path")


def read_cell(storage: Storage, name: str, column: str, row: int) -> Any:
    """One cell. Quick for rows in ascending order; VideoError where it can't be read."""
    shown = cell_path(storage.full(name), row)
    at = storage.locate(name)
    if at.problem:
        raise VideoError(shown, at.problem)
    try:
        with remote_errors(storage.full(name), media=True):
            # A child process must not read through handles that it inherited.
            return _cursor(storage.root, name, column, storage.stamp(name), os.getpid()).cell(row)
    except IndexError as error:
        raise VideoError(shown, "is not there: the table has changed since its rows were listed") from error
    except (OSError, ValueError, KeyError) as error:
        raise VideoError(shown, f"cannot be read: {error}") from error


class _Cursor:
    """One column of a table, read forwards a few rows at a time, so that a row group is never whole in memory."""

    def __init__(self, file: pq.ParquetFile, column: str) -> None:
        self.file = file
        self.column = column
        rows = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
        self.starts = np.cumsum([0, *rows])
        self.group = -1
        self.first = 0  # row of the table that `cells` begins with
        self.cells: list[Any] = []
        self.batches: Iterator[pa.RecordBatch] = iter(())

    def cell(self, row: int) -> Any:
        if row >= self.starts[-1]:
            raise IndexError(row)
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        if group != self.group or row < self.first:
            self.group, self.first, self.cells = group, int(self.starts[group]), []
            self.batches = self.file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[self.column])
        while row >= self.first + len(self.cells):
            self.first += len(self.cells)
            self.cells = next(self.batches).column(0).to_pylist()
        return self.cells[row - self.first]


@lru_cache(maxsize=2)
def _cursor(root: str, name: str, column: str, stamp: object, process: int) -> _Cursor:
    return _Cursor(pq.ParquetFile(Storage(root).open(name), buffer_size=1 << 20), column)


@contextmanager
def _readable(storage: Storage, name: str) -> Iterator[pq.ParquetFile]:
    location = storage.full(name)
    at = storage.locate(name)
    if at.problem:
        raise UserError(f"The table {location} {at.problem}.")
    try:
        with storage.open(name) as file, remote_errors(location):
            yield pq.ParquetFile(file)
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        raise UserError(f"The table {location} cannot be read as Parquet: {error}.") from error


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
