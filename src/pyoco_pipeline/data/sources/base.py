"""What the sources of captioned files share: the protocol, the table of captions, splits by a hash."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pandas as pd

from pyoco_pipeline.data.storage import Located, Storage
from pyoco_pipeline.errors import UserError

SPLITS = ("train", "test")
Media = Literal["video", "image"]
Validate = Literal["train", "test", "drop"]  # what becomes of a source's validation split


class FileSource(Protocol):
    """Rows with captions, and the file of a row; see the package's description."""

    @property
    def kind(self) -> str: ...
    @property
    def media(self) -> Media: ...
    def captions(self) -> pd.DataFrame: ...
    def local_file(self, path: str) -> AbstractContextManager[Path]: ...


class StoredSource:
    """A source whose files lie below one root, a local folder or a URL.

    root: nothing outside it is read, symbolic links included
    max_copy_mb: largest file, in 10^6 bytes, that is copied out of an object store, a tar or a table
    """

    kind: ClassVar[str]

    def __init__(self, root: str | Path, *, media: Media = "video", max_copy_mb: float = 4096) -> None:
        if not max_copy_mb > 0:
            raise UserError(f"max_copy_mb is a number of megabytes above 0, not {max_copy_mb}.")
        self.storage = Storage(root)
        self.media = media
        self.max_bytes = int(max_copy_mb * 1e6)

    def local_file(self, path: str) -> AbstractContextManager[Path]:
        """The file of `path` in the table; VideoError where it is absent, outside the root, or too large."""
        return self.storage.local_file(path, self.max_bytes)

    def check_root(self, holds: str) -> None:
        """Raises UserError where the root is no folder."""
        if not self.storage.is_folder():
            raise UserError(
                f"The data root {self.storage} is not a folder; set it to the folder that holds {holds}."
            )


def captions_table(
    paths: Sequence[str],
    captions: Iterable[str | None],
    splits: Iterable[str],
    problems: Iterable[str],
    *,
    start: Iterable[float] | None = None,
    end: Iterable[float] | None = None,
    names: Sequence[str] | None = None,  # what the row_id ends in; default: the paths
    **extra: Iterable[Any],
) -> pd.DataFrame:
    """The table that `captions()` returns; `row_id` is the row's number from 1 and a name of safe characters."""
    ids = [f"{row:06d}-{safe_name(name)}" for row, name in enumerate(names or paths, start=1)]
    columns: dict[str, Any] = {
        "row_id": pd.Series(ids, dtype=object),
        "path": pd.Series(list(paths), dtype=object),
        "caption": pd.Series(list(captions), dtype=object),
    }
    for column, seconds in (("start", start), ("end", end)):
        values = [math.nan] * len(ids) if seconds is None else list(seconds)
        columns[column] = pd.Series(values, dtype=np.float64)
    columns["split"] = pd.Series(list(splits), dtype=object)
    columns["path_problem"] = pd.Series(list(problems), dtype=object)
    return pd.DataFrame(columns | {name: list(values) for name, values in extra.items()})


def one_spelling(paths: Iterable[str], files: Mapping[str, Located]) -> list[str]:
    """The paths with one name for each file, so that its rows meet; as written where nothing usable was found."""
    return [files[path].name if path in files and not files[path].problem else path for path in paths]


def split_by_hash(name: str, test_share: float) -> str:
    """ "test" for about `test_share` of all names: the same on every machine, whatever the other names are."""
    return "test" if draw(name) < test_share else "train"


def draw(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def check_share(test_share: float) -> float:
    """Raises UserError for what is no share."""
    if not 0 <= test_share <= 1:
        raise UserError(f"test_share is a share of the files from 0 to 1, not {test_share}.")
    return test_share


def official_split(name: Any, validate: Validate, place: str) -> str | None:
    """train, test or None (leave out) for a split as published; UserError for another name."""
    split = str(name).strip().lower()
    if split in ("validate", "validation", "valid", "val", "dev"):
        return None if validate == "drop" else validate
    if split not in SPLITS:
        raise UserError(f"{place} names the split {name!r}; train, validate and test are known.")
    return split


def as_text(value: Any, place: str) -> str | None:
    """A cell as text, None where it is blank; UserError for a list or mapping."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        # JSON can spell half a surrogate pair, which no file can hold: it becomes U+FFFD.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int | float | np.number):
        return str(value)
    raise UserError(f"{place} holds {value!r}, which is not text; write one string per row.")


def safe_name(path: str) -> str:
    """The end of a path in letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path).strip("._")[-80:] or "video"
