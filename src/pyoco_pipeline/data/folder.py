"""A folder of captioned videos: a table of files, captions and segments, and the clips cut from them."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyoco_pipeline.data.clips import Clip
from pyoco_pipeline.data.video import VideoError, decode_frames, probe
from pyoco_pipeline.errors import UserError

SPLITS = ("train", "test")


class VideoFolderSource:
    """Captioned videos below `root`, listed in a .csv, .jsonl or .parquet table.

    The table needs the columns `path` (relative to `root`) and `caption`, and may have `start` and `end`
    (seconds; blank means the whole video) and `split` (train or test). Without `split`, about `test_share` of
    the files are test files, chosen by a hash of the path: the same on every machine and for all rows of a file.

    root: folder that holds the videos; nothing outside it is read, symbolic links included
    captions_file: the table; a relative name is looked up inside `root`
    num_frames, height, width: size of a clip; fps: frames per second at which a clip samples its video
    max_clips_per_row: most clips cut from one row; test_share: in [0, 1]
    """

    kind = "video_folder"

    def __init__(
        self,
        root: str | Path,
        captions_file: str | Path,
        *,
        num_frames: int,
        height: int,
        width: int,
        fps: float,
        max_clips_per_row: int,
        test_share: float,
    ) -> None:
        if min(num_frames, height, width, max_clips_per_row) < 1 or not fps > 0:
            raise UserError(
                "num_frames, height, width, fps and max_clips_per_row must be positive, not "
                f"{num_frames}, {height}, {width}, {fps} and {max_clips_per_row}."
            )
        if not 0 <= test_share <= 1:
            raise UserError(f"test_share is a share of the files from 0 to 1, not {test_share}.")
        self.root = Path(root)
        self.captions_file = self.root / captions_file
        self.num_frames = num_frames
        self.height = height
        self.width = width
        self.fps = fps
        self.max_clips_per_row = max_clips_per_row
        self.test_share = test_share

    def captions(self) -> pd.DataFrame:
        """One row per row of the table, in its order.

        Columns: `row_id` (row number from 1, then the path with only safe characters), `path` (as written),
        `caption` (str or None), `start` and `end` (float seconds or NaN), `split` ("train" or "test"), and
        `path_problem` ("" or what is wrong with the path; this is data to be judged, not an error). Raises
        UserError for a missing folder or table, a table that cannot be read, has no rows or lacks a column,
        and for a split or time that means nothing.
        """
        if not self.root.is_dir():
            raise UserError(f"The data root {self.root} is not a folder; set it to the folder of videos.")
        if not self.captions_file.is_file():
            raise UserError(
                f"The folder {self.root} has no captions file {self.captions_file}; write a .csv, .jsonl or "
                ".parquet table there with the columns path and caption."
            )
        table = self._read_table()
        numbers = range(1, len(table) + 1)
        paths = [self._text(v, row, "path") or "" for row, v in zip(numbers, table["path"], strict=True)]
        files = {path: self._locate(path) for path in set(paths)}
        return pd.DataFrame(
            {
                "row_id": [f"{row:06d}-{_safe_name(path)}" for row, path in zip(numbers, paths, strict=True)],
                "path": pd.Series(paths, dtype=object),
                "caption": pd.Series(
                    [self._text(v, row, "caption") for row, v in zip(numbers, table["caption"], strict=True)],
                    dtype=object,
                ),
                "start": self._seconds(table, "start"),
                "end": self._seconds(table, "end"),
                "split": self._splits(table, paths, files),
                "path_problem": [files[path][1] for path in paths],
            }
        )

    def read(self, rows: Sequence[Mapping[Any, Any]]) -> Iterator[list[Clip] | VideoError]:
        """Per row its clips, or why there are none; one bad file does not end the others."""
        for row in rows:
            try:
                yield list(self.clips(row))
            except VideoError as error:
                yield error

    def clips(self, row: Mapping[Any, Any]) -> Iterator[Clip]:
        """The consecutive clips of one row of `captions()`, not overlapping, from the segment's start.

        `video` is uint8 (num_frames, height, width, 3); `attributes` are the path and the clip's start in
        seconds. An end after the end of the video means the end of the video. All clips of a row are decoded
        before the first is handed out, so a row gives every clip or none. Raises VideoError when the file
        cannot be read or the segment is too short for one clip.
        """
        name = str(row["path"])
        path, (_, problem) = self.root / name, self._locate(name)
        if problem:
            raise VideoError(path, problem)
        start = 0.0 if pd.isna(row["start"]) else float(row["start"])
        duration = probe(path).duration_s
        end = duration if pd.isna(row["end"]) else min(float(row["end"]), duration)
        clip_s = self.num_frames / self.fps
        # Half a frame of slack: the last frame of a clip is taken at the beginning of its own interval.
        count = math.floor((end - start + 0.5 / self.fps) / clip_s)
        if count < 1:
            raise VideoError(
                path,
                f"is too short: its segment from {start:.2f} s has {max(0.0, end - start):.2f} s, but a clip "
                f"of {self.num_frames} frames at {self.fps:g} fps needs {clip_s:.2f} s",
            )
        count = min(count, self.max_clips_per_row)
        times = start + np.arange(count * self.num_frames) / self.fps
        frames = decode_frames(path, times.tolist(), self.height, self.width)
        for k, video in enumerate(np.split(frames, count)):
            attributes = {"path": name, "start_s": f"{start + k * clip_s:.3f}"}
            yield Clip(clip_id=f"{row['row_id']}-{k:03d}", video=video, attributes=attributes)

    def _read_table(self) -> pd.DataFrame:
        readers: dict[str, Callable[[Path], pd.DataFrame]] = {
            ".csv": _read_csv,
            ".jsonl": _read_jsonl,
            ".parquet": pd.read_parquet,
        }
        reader = readers.get(self.captions_file.suffix.lower())
        if reader is None:
            raise UserError(f"The captions file {self.captions_file} is not a .csv, .jsonl or .parquet file.")
        try:
            table = reader(self.captions_file)
        except UserError:
            raise
        except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are among these
            raise UserError(
                f"The captions file {self.captions_file} cannot be read as "
                f"{self.captions_file.suffix} in UTF-8: {error}."
            ) from error
        if table.empty:
            raise UserError(f"The captions file {self.captions_file} has no rows; add one row per video.")
        for column in ("path", "caption"):
            if column not in table.columns:
                found = ", ".join(map(str, table.columns)) or "none"
                raise UserError(
                    f"The captions file {self.captions_file} has no column {column}; its columns: {found}."
                )
        return table

    def _text(self, value: Any, row: int, column: str) -> str | None:
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, str):
            # JSON can spell half a surrogate pair, which no file can hold: it becomes U+FFFD.
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(value, int | float | np.number):
            return str(value)
        raise UserError(
            f"{self._place(row, column)} holds {value!r}, which is not text; write one string per row."
        )

    def _seconds(self, table: pd.DataFrame, column: str) -> pd.Series:
        if column not in table.columns:
            return pd.Series(np.nan, index=range(len(table)), dtype=np.float64)
        seconds = [self._second(value, row, column) for row, value in enumerate(table[column], start=1)]
        return pd.Series(seconds, dtype=np.float64)

    def _second(self, value: Any, row: int, column: str) -> float:
        text = self._text(value, row, column)
        if text is None or not text.strip():
            return math.nan
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.inf
        if not math.isfinite(seconds):
            raise UserError(f"{self._place(row, column)} holds {value!r}; write seconds or leave it blank.")
        return seconds

    def _splits(self, table: pd.DataFrame, paths: list[str], files: dict[str, tuple[str, str]]) -> list[str]:
        if "split" not in table.columns:
            by_path = {path: self._split_by_hash(name) for path, (name, _) in files.items()}
            return [by_path[path] for path in paths]
        splits = []
        for row, value in enumerate(table["split"], start=1):
            split = (self._text(value, row, "split") or "").strip().lower()
            if split not in SPLITS:
                raise UserError(f"{self._place(row, 'split')} holds {value!r}; write train or test.")
            splits.append(split)
        return splits

    def _split_by_hash(self, name: str) -> str:
        draw = (
            int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
        )
        return "test" if draw < self.test_share else "train"

    def _locate(self, path: str) -> tuple[str, str]:
        """(one name for all spellings of the file, what is wrong with the path or "")."""
        if not path.strip():
            return path, "is missing: the row has no path"
        try:
            root = self.root.resolve()
            target = (root / path).resolve()
            if not target.is_relative_to(root):
                return path, "is outside the data root; put the file below it"
            name = target.relative_to(root).as_posix()
            if not target.exists():
                return name, "does not exist"
            return name, "" if target.is_file() else "is not a regular file"
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL character, a circle of links
            return path, f"is not a usable path: {error}"

    def _place(self, row: int, column: str) -> str:
        return f"Row {row} of {self.captions_file}, column {column},"


def _read_csv(path: Path) -> pd.DataFrame:
    """Every cell as text, blank ones as None: "NA" or "null" may be a caption."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise UserError(f"The captions file {path} has more than one column {repeated[0]!r}; keep one.")
        rows = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"Line {reader.line_num} of {path} has {len(cells)} cells where the header has "
                    f'{len(header)}; put a caption that holds a comma in "quotes".'
                )
            rows.append([cell or None for cell in cells])
    return pd.DataFrame(rows, columns=header, dtype=object)


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"Line {number} of {path} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise UserError(
                    f'Line {number} of {path} is not an object; write {{"path": ..., "caption": ...}}.'
                )
            rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in columns] for row in rows]
    return pd.DataFrame(cells, columns=columns, dtype=object)


def _safe_name(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path).strip("._")[-80:] or "video"
