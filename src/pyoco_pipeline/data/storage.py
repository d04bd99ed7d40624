"""Where data lie: a local folder, or a folder of an object store given as an fsspec URL (s3://bucket/folder)."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from pyoco_pipeline.data.copies import check_size, last_copy
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError

# Stores that a user fills, and what reads each; the web (http, ftp, github, ...) is left out on purpose.
PROTOCOLS = {
    "s3": 's3fs: pip install -e ".[s3]"',
    "gs": "gcsfs: pip install gcsfs",
    "gcs": "gcsfs: pip install gcsfs",
    "az": "adlfs: pip install adlfs",
    "abfs": "adlfs: pip install adlfs",
    "memory": "fsspec: pip install fsspec",
}
MISSING = "is missing: the row has no path"
OUTSIDE = "is outside the data root; put the file below it"
ABSENT = "does not exist"
NOT_A_FILE = "is not a regular file"

_CHUNK = 1 << 22  # bytes
_LISTINGS_AT_ONCE = 16
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::)")


class Located(NamedTuple):
    """A path of a data set after the look-up."""

    name: str  # one name below the root for all spellings of the file
    problem: str  # "" or what is wrong; completes the sentence that the path begins


def is_url(location: str | Path) -> bool:
    """Whether this is protocol://..., not a path of this machine."""
    return bool(_URL.match(str(location)))


def resolve_root(root: str, base: Path) -> str:
    """`root` as it is when absolute or a URL, else below `base`."""
    return root if is_url(root) else str(base / root)


class Storage:
    """A root and the files below it; holds no connection, so it pickles.

    root: a folder, or a URL with one of PROTOCOLS; UserError for any other. Credentials and endpoints come from
    the environment, as the store's own tools read them (AWS_PROFILE, AWS_ENDPOINT_URL, ...).
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).removeprefix("file://")
        self.is_local = not is_url(self.root)
        if not self.is_local:
            _check_protocol(self.root)
            self.root = self.root.rstrip("/")

    def __str__(self) -> str:
        return self.root

    def full(self, name: str | Path) -> str:
        """The location of a file that the settings name: below the root, or elsewhere if absolute or a URL."""
        if is_url(name):
            _check_protocol(str(name))
            return str(name)
        return str(Path(self.root) / name) if self.is_local else f"{self.root}/{name}"

    def is_folder(self, name: str = "") -> bool:
        """Whether the root, or this folder below it, exists."""
        if self.is_local:
            return (Path(self.root) / name).is_dir()
        with remote_errors(self.root):
            return bool(filesystem(self.root).isdir(f"{self.root}/{name}".rstrip("/")))

    def is_file(self, name: str | Path) -> bool:
        """Whether a file that the settings name exists."""
        location = self.full(name)
        if not is_url(location):
            return Path(location).is_file()
        with remote_errors(location):
            try:  # fsspec's isfile takes every error for a no
                return bool(filesystem(location).info(location)["type"] == "file")
            except FileNotFoundError:
                return False

    def open(self, name: str | Path, *, block_size: int = _CHUNK) -> BinaryIO:
        """A file that the settings name, for reading bytes; `block_size` is what one request to a store reads."""
        location = self.full(name)
        if not is_url(location):
            return Path(location).open("rb")
        with remote_errors(location):
            return cast(BinaryIO, filesystem(location).open(location, "rb", block_size=block_size))

    def glob(self, pattern: str) -> list[str]:
        """Names of the files below the root that match, sorted; `**` stands for any folders."""
        if self.is_local:
            root = Path(self.root)
            names = [path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file()]
            wrong = next((name for name in names if not _is_text(name)), None)
            if wrong is not None:
                raise UserError(
                    f"The name of the file {os.fsencode(wrong).decode(errors='backslashreplace')} below {self.root} is "
                    "not in UTF-8; rename the file."
                )
            return sorted(names)
        with remote_errors(self.root):
            files = filesystem(self.root)
            top = files._strip_protocol(self.root).rstrip("/") + "/"
            found = files.glob(f"{self.root}/{pattern}", detail=True)
        return sorted(name.removeprefix(top) for name, info in found.items() if info["type"] == "file")

    def locate(self, path: str) -> Located:
        """Where `path` of a data set is: nothing outside the root is ever named without a problem."""
        return self.locate_all([path])[path]

    def locate_all(self, paths: Iterable[str]) -> dict[str, Located]:
        """`locate` of many; in a store it takes one listing for each folder that occurs."""
        distinct = set(paths)
        if self.is_local:
            return {path: self._locate_local(path) for path in distinct}
        named = {path: self._confined(path) for path in distinct}
        folders = sorted({posixpath.dirname(at.name) for at in named.values() if not at.problem})
        with remote_errors(self.root), ThreadPoolExecutor(_LISTINGS_AT_ONCE) as pool:
            kinds: dict[str, str] = {}
            for listing in pool.map(self._list, folders):
                kinds |= listing
        wrong = {"file": "", "": ABSENT}
        return {
            path: at if at.problem else Located(at.name, wrong.get(kinds.get(at.name, ""), NOT_A_FILE))
            for path, at in named.items()
        }

    @contextmanager
    def local_file(self, path: str, max_bytes: int | None = None) -> Iterator[Path]:
        """`path` of a data set as a file of this machine: itself, or a copy whose name is gone afterwards.

        The process keeps its last copy, so that the segments of one video, one after the other, cost one download.
        Raises VideoError where the file is absent, outside the root, or to be copied and larger than `max_bytes`;
        UserError where the store does not answer.
        """
        shown = path if is_url(path) else self.full(path)
        at = self._of_one(path)
        if at.problem:
            raise VideoError(shown, at.problem)
        if self.is_local:
            yield Path(self.root) / path
            return
        with remote_errors(shown, media=True):
            info = filesystem(self.root).info(f"{self.root}/{at.name}")
        if info["type"] != "file":
            raise VideoError(shown, NOT_A_FILE)
        size = int(info["size"] or 0)
        check_size(shown, size, max_bytes)
        with last_copy(f"{self.root}/{at.name} {info}", self.part(path, 0, size, shown), shown) as copy:
            yield copy

    def part(self, path: str, start: int, size: int, shown: str) -> Iterator[bytes]:
        """`size` bytes of `path` of a data set from byte `start` on, in pieces; VideoError where they are not there."""
        at = self._of_one(path)
        if at.problem:
            raise VideoError(shown, at.problem)
        location = f"{self.root}/{at.name}"
        try:
            with (
                remote_errors(location, media=True),
                Path(location).open("rb")
                if self.is_local
                else filesystem(location).open(location, "rb", block_size=_CHUNK) as file,
            ):
                file.seek(start)
                while size > 0 and (chunk := file.read(min(size, _CHUNK))):
                    size -= len(chunk)
                    yield chunk
        except OSError as error:
            raise VideoError(shown, f"cannot be read: {error.strerror}") from error
        if size > 0:
            raise VideoError(shown, f"is cut short: {path} ends {size:,} bytes before it does")

    def stamp(self, name: str) -> tuple[int, int] | None:
        """What changes when a local file does; None in a store, where asking costs a request."""
        if not self.is_local:
            return None
        status = (Path(self.root) / name).stat()
        return status.st_mtime_ns, status.st_size

    def _of_one(self, path: str) -> Located:
        """`locate` without a listing: a worker asks for one file after the other."""
        return self._locate_local(path) if self.is_local else self._confined(path)

    def _list(self, folder: str) -> dict[str, str]:
        """Name -> file or directory, of what is directly in `folder`."""
        files = filesystem(self.root)
        top = files._strip_protocol(f"{self.root}/{folder}").rstrip("/")
        try:
            entries = files.ls(top, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        inside = ((entry["name"].rstrip("/"), entry["type"]) for entry in entries)
        return {
            posixpath.join(folder, posixpath.basename(name)): kind
            for name, kind in inside
            if posixpath.dirname(name) == top
        }

    def _confined(self, path: str) -> Located:
        if not path.strip():
            return Located(path, MISSING)
        if "\0" in path:
            return Located(path, "is not a usable path: embedded null byte")
        name = path.removeprefix(self.root + "/")
        if is_url(name) or name.startswith("/"):
            return Located(path, OUTSIDE)
        name = posixpath.normpath(name)
        if name == ".." or name.startswith("../"):
            return Located(path, OUTSIDE)
        return Located(name, NOT_A_FILE if name == "." else "")

    def _locate_local(self, path: str) -> Located:
        if not path.strip():
            return Located(path, MISSING)
        if is_url(path):
            return Located(path, OUTSIDE)
        try:
            root = Path(self.root).resolve()
            target = (root / path).resolve()
            if not target.is_relative_to(root):
                return Located(path, OUTSIDE)
            name = target.relative_to(root).as_posix()
            if not _is_text(name):  # reached by a link
                return Located(path, "is not a usable path: its name is not in UTF-8")
            if not target.exists():
                return Located(name, ABSENT)
            return Located(name, "" if target.is_file() else NOT_A_FILE)
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL character, a circle of links
            return Located(path, f"is not a usable path: {error}")


def filesystem(location: str) -> Any:
    """The fsspec file system of a URL with one of PROTOCOLS; a process has one for all calls.

    Its settings come from the environment. Raises UserError for another protocol, a package that is missing, and
    settings that can't be right; what goes wrong when it is used is put into words by `remote_errors`.
    """
    import fsspec

    _check_protocol(location)
    protocol = location.split("://", 1)[0]
    try:
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        raise UserError(f"{location} needs {PROTOCOLS[protocol]}.") from error
    except Exception as error:  # each store has exceptions of its own, in packages that may be absent
        raise UserError(
            f"{location} cannot be opened: {_one_line(error)}. Set the credentials in the environment, as the "
            "store's own tools read them."
        ) from error


@contextmanager
def remote_errors(location: str, *, media: bool = False) -> Iterator[None]:
    """Turns what goes wrong in a store into one sentence: VideoError for one media file, else UserError."""
    try:
        yield
    except (UserError, VideoError):
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        if media:
            raise VideoError(location, _why_unreadable(error)) from error
        raise UserError(
            f"{location} {_why_unreadable(error)}; check the address and your rights to it."
        ) from error
    except Exception as error:  # each store has exceptions of its own, in packages that may be absent
        if not is_url(location) or isinstance(error, ValueError):  # of a table that is read meanwhile
            raise
        raise UserError(
            f"{location} cannot be read: {_one_line(error)}. Check the address, the credentials and the network, "
            "then run again: what is done is kept."
        ) from error


def _is_text(name: str) -> bool:
    """Whether a file's name is in UTF-8, so that a table can hold it."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def _why_unreadable(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return ABSENT
    return NOT_A_FILE if isinstance(error, IsADirectoryError) else f"cannot be read: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".!")[:300]


def _check_protocol(location: str) -> None:
    found = _URL.match(location)
    protocol = found.group(1) if found else ""
    if protocol not in PROTOCOLS or found is None or found.group(2) == "::" or "::" in location:
        raise UserError(
            f"{location} is not a place that data are read from; give a local folder, or a URL that begins with "
            f"{', '.join(f'{name}://' for name in PROTOCOLS)}."
        )
