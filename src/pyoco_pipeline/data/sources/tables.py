"""Tables that people write: .csv, .jsonl or .parquet, local or in an object store."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

import pandas as pd

from pyoco_pipeline.data.storage import Storage, remote_errors
from pyoco_pipeline.errors import UserError


def read_table(
    storage: Storage,
    name: str,
    required: Sequence[str],
    *,
    what: str = "captions file",
    only: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The table `name`, every cell as it is written; of a .csv, text or None.

    only: keep these columns, where there are such. Raises UserError for a table that cannot be read, has no rows, or
    lacks one of the columns `required`.
    """
    location = storage.full(name)
    suffix = PurePosixPath(name).suffix.lower()
    readers: dict[str, Callable[[BinaryIO, str, Sequence[str] | None], pd.DataFrame]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    reader = readers.get(suffix)
    if reader is None:
        raise UserError(f"The {what} {location} is not a .csv, .jsonl or .parquet file.")
    try:
        with storage.open(name) as file, remote_errors(location):
            table = reader(file, location, only)
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        raise UserError(f"The {what} {location} cannot be read as {suffix} in UTF-8: {error}.") from error
    if table.empty:
        raise UserError(f"The {what} {location} has no rows; add one row per video.")
    for column in required:
        if column not in table.columns:
            found = ", ".join(map(str, table.columns)) or "none"
            raise UserError(f"The {what} {location} has no column {column}; its columns: {found}.")
    return table


def _read_parquet(file: BinaryIO, location: str, only: Sequence[str] | None) -> pd.DataFrame:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    return table.read(columns=_kept(table.schema_arrow.names, only)).to_pandas()


def _read_csv(file: BinaryIO, location: str, only: Sequence[str] | None) -> pd.DataFrame:
    """Every cell as text, blank ones as None: "NA" or "null" may be a caption."""
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    lines = _strict(reader)
    header = [name.strip() for name in next(lines, [])]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise UserError(f"The captions file {location} has more than one column {repeated[0]!r}; keep one.")
    kept = _kept(header, only)
    places = [header.index(name) for name in kept]
    rows = []
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(header):
            raise UserError(
                f"Line {reader.line_num} of {location} has {len(cells)} cells where the header has "
                f'{len(header)}; put a caption that holds a comma in "quotes".'
            )
        rows.append([cells[place] or None for place in places])
    return pd.DataFrame(rows, columns=kept, dtype=object)


def _strict(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(error) from error


def _read_jsonl(file: BinaryIO, location: str, only: Sequence[str] | None) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"Line {number} of {location} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UserError(
                f'Line {number} of {location} is not an object; write {{"path": ..., "caption": ...}}.'
            )
        rows.append(row)
    columns = _kept(list(dict.fromkeys(name for row in rows for name in row)), only)
    cells = [[row.get(name) for name in columns] for row in rows]
    return pd.DataFrame(cells, columns=columns, dtype=object)


def _kept(columns: list[str], only: Sequence[str] | None) -> list[str]:
    return [name for name in columns if only is None or name in only]


def read_lines(storage: Storage, name: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number from 1; UserError where there are none."""
    location = storage.full(name)
    try:
        with storage.open(name) as file, remote_errors(location):
            text = file.read().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"The list {location} cannot be read: {error}.") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"The list {location} is empty; take it from the data set's download.")
    return lines


def read_json(storage: Storage, name: str) -> object:
    """What a JSON file holds; UserError where it can't be read."""
    location = storage.full(name)
    try:
        with storage.open(name) as file, remote_errors(location):
            content: object = json.loads(file.read().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"The file {location} cannot be read as JSON: {error}.") from error
    return content
