"""Hugging Face `datasets` on disk: a folder of `save_to_disk`, or a folder of Parquet files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa

from pyoco_pipeline.data.sources import parquet
from pyoco_pipeline.data.sources.base import (
    Media,
    StoredSource,
    Validate,
    captions_table,
    check_share,
    official_split,
    one_spelling,
    split_by_hash,
)
from pyoco_pipeline.data.sources.tables import read_json
from pyoco_pipeline.data.storage import ABSENT, remote_errors
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)

_SPLIT_NAME = re.compile(r"(train|test|validation|valid|validate|val|dev)(?=[-_.0-9]|$)")
_SAVED_ROW = re.compile(r"(?P<part>[^#]*)#(?P<row>\d+)")


class HFDatasetSource(StoredSource):
    """Rows with a media column and a caption column; media are kept as they are, never decoded by `datasets`.

    media_column: a Video or Image feature (bytes or path), bytes, or paths below `root`
    caption_column: text, or lists of text: each is then a row
    Splits are the folders of a DatasetDict, or named by Parquet files (train-00000-of-00002.parquet) or their
    folders (train/0000.parquet). Where none is a test split, about `test_share` of the rows are test rows, chosen by a
    hash of table and row, or of the file that the row names; `validate_split` says what becomes of a validation split.
    """

    kind = "hf_dataset"

    def __init__(
        self,
        root: str | Path,
        *,
        media_column: str,
        caption_column: str,
        media: Media = "video",
        validate_split: Validate = "train",
        test_share: float = 0.1,
        max_copy_mb: float = 4096,
    ) -> None:
        super().__init__(root, media=media, max_copy_mb=max_copy_mb)
        self.media_column = media_column
        self.caption_column = caption_column
        self.validate_split = validate_split
        self.test_share = check_share(test_share)

    def captions(self) -> pd.DataFrame:
        """A row for every row and caption. Raises UserError for a folder that is neither layout, and for columns."""
        self.check_root("the dataset")
        saved = self._saved_parts()
        tables = saved if saved is not None else self._parquet_parts()
        splits = self._splits(list(tables))
        self._say_left_out({part: table for part, table in tables.items() if part not in splits})
        if saved is None:  # one tool wrote all
            parquet.warn_of_large_groups(self.storage, next(iter(splits)), self.media_column)
        paths, captions, parts, names = [], [], [], []
        for part in splits:
            table = tables[part] if saved is not None else self._parquet_columns(part)
            for row, (path, texts) in enumerate(self._rows(part, table)):
                name = f"{part}#{row}"
                for text in texts:
                    paths.append(path)
                    captions.append(text)
                    parts.append(part)
                    names.append(name)
        if not paths:
            raise UserError(f"{self.storage} has no rows.")
        files = self.storage.locate_all(path for path, name in zip(paths, names, strict=True) if path != name)
        problems = [files[path].problem if path in files else "" for path in paths]
        # Rows that name one file show the same footage, so the file is drawn, not the row.
        drawn = [files[path].name if path in files else name for path, name in zip(paths, names, strict=True)]
        chosen = [
            splits[part] or split_by_hash(name, self.test_share)
            for part, name in zip(parts, drawn, strict=True)
        ]
        return captions_table(one_spelling(paths, files), captions, chosen, problems, names=names)

    @contextmanager
    def local_file(self, path: str) -> Iterator[Path]:
        """The file of a row: a copy of its bytes, or the file below the root that it names."""
        in_table = parquet.split_cell_path(path)
        in_saved = _SAVED_ROW.fullmatch(path)
        if in_table:
            value = parquet.read_cell(self.storage, in_table[0], self.media_column, in_table[1])
        elif in_saved:
            value = self._saved_cell(in_saved["part"], int(in_saved["row"]), path)
        else:
            value = path
        with parquet.media_file(self.storage, value, path, self.max_bytes) as file:
            yield file

    def _rows(self, part: str, table: pa.Table) -> Iterator[tuple[str, list[str | None]]]:
        place = f"{self.storage.full(part)}, column {self.caption_column},"
        texts = parquet.caption_lists(table.column(self.caption_column), place)
        if self.media_column not in table.column_names:
            return ((parquet.cell_path(part, row), text) for row, text in enumerate(texts))
        named = table.column(self.media_column).to_pylist()
        return ((path or "", text) for path, text in zip(named, texts, strict=True))

    def _splits(self, parts: list[str]) -> dict[str, str | None]:
        """Part -> train, test, or None: by the hash. Parts of a validation split may be left out."""
        named = {part: _split_of(part) for part in parts}
        if any(named.values()) and not all(named.values()):
            lacking = next(part for part, name in named.items() if not name)
            raise UserError(
                f"{self.storage.full(lacking)} names no split, but others of its folder do; name it train-*, "
                "validation-* or test-*, or move it."
            )
        splits: dict[str, str | None] = {}
        for part, name in named.items():
            split = official_split(name, self.validate_split, self.storage.full(part)) if name else None
            if split or not name:
                splits[part] = split
        if not splits:
            raise UserError(
                f"{self.storage} has only a validation split, and validate_split=drop leaves it out."
            )
        return splits if "test" in splits.values() else dict.fromkeys(splits)

    def _say_left_out(self, tables: Mapping[str, pa.Table | None]) -> None:
        if tables:
            rows = sum(
                parquet.num_rows(self.storage, part) if table is None else table.num_rows
                for part, table in tables.items()
            )
            logger.warning("%d validation rows are left out (validate_split): %s", rows, ", ".join(tables))

    def _parquet_parts(self) -> dict[str, None]:
        found = self.storage.glob("**/*.parquet")
        if not found:
            raise UserError(
                f"{self.storage} is no dataset on disk: it has neither dataset_dict.json or state.json, as "
                "save_to_disk writes, nor .parquet files."
            )
        return dict.fromkeys(found)

    def _parquet_columns(self, name: str) -> pa.Table:
        """The captions, and the media where these are paths."""
        location = self.storage.full(name)
        schema = parquet.read_schema(self.storage, name)
        parquet.require_columns(schema, (self.media_column, self.caption_column), location)
        paths = parquet.holds_paths(schema, self.media_column, location)
        columns = [self.caption_column, self.media_column] if paths else [self.caption_column]
        return parquet.read_columns(self.storage, name, columns)

    def _saved_parts(self) -> dict[str, pa.Table] | None:
        """Split, or "" where there is but one Dataset -> its columns; None where save_to_disk did not write this."""
        if self.storage.is_file("dataset_dict.json"):
            content = read_json(self.storage, "dataset_dict.json")
            parts = content.get("splits") if isinstance(content, dict) else None
            if not isinstance(parts, list) or not all(
                re.fullmatch(r"[\w.-]*\w", str(part)) for part in parts
            ):
                raise UserError(f"{self.storage.full('dataset_dict.json')} does not list splits.")
            return {str(part): self._saved_columns(str(part)) for part in parts}
        return {"": self._saved_columns("")} if self.storage.is_file("state.json") else None

    def _saved_columns(self, part: str) -> pa.Table:
        state = str(PurePosixPath(part) / "state.json")
        content = read_json(self.storage, state)
        files = content.get("_data_files") if isinstance(content, dict) else None
        if not isinstance(files, list) or not all(
            isinstance(file, dict) and "/" not in str(file.get("filename", "/")) for file in files
        ):
            raise UserError(f"{self.storage.full(state)} does not list data files of its folder.")
        location = self.storage.full(part)
        with remote_errors(location):
            data = _load(location, self.storage.stamp(state), os.getpid())
        schema = data.features.arrow_schema
        parquet.require_columns(schema, (self.media_column, self.caption_column), location)
        paths = parquet.holds_paths(schema, self.media_column, location)
        columns = [self.caption_column, self.media_column] if paths else [self.caption_column]
        return data.select_columns(columns).with_format("arrow")[:]

    def _saved_cell(self, part: str, row: int, path: str) -> Any:
        if part and not re.fullmatch(r"[\w.-]*\w", part):
            raise VideoError(path, "is not a row of the dataset")
        location = self.storage.full(part)
        try:
            with remote_errors(location, media=True):
                stamp = self.storage.stamp(str(PurePosixPath(part) / "state.json"))
                data = _load(location, stamp, os.getpid())
        except FileNotFoundError as error:
            raise VideoError(path, ABSENT) from error
        if row >= len(data):
            raise VideoError(path, "is not there: the dataset has changed since its rows were listed")
        column = data.select_columns([self.media_column]).with_format("arrow")
        return column[row : row + 1].column(0)[0].as_py()


def _split_of(part: str) -> str | None:
    """The split that a Parquet file, its folder, or a DatasetDict's folder names."""
    path = PurePosixPath(part)
    for name in (path.name, path.parent.name):
        found = _SPLIT_NAME.match(name)
        if found:
            return found.group(1)
    return None


@lru_cache(maxsize=8)
def _load(location: str, stamp: object, process: int) -> Any:
    """The dataset of one process; its files are memory-mapped."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise UserError('A folder of save_to_disk needs datasets: pip install -e ".[datasets]".') from error
    try:
        return load_from_disk(location)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{location} cannot be read as a dataset of save_to_disk: {error}.") from error
