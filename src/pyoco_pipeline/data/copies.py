"""Copies, on this machine, of media that lie in an object store, a tar or a table."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError

_DESCRIPTORS = Path("/proc/self/fd")


def check_size(shown: str, size: int, max_bytes: int | None) -> None:
    """Raises VideoError for a file too large to be copied."""
    if max_bytes is not None and size > max_bytes:
        raise VideoError(shown, f"has {size:,} bytes; copies of up to {max_bytes:,} are made (max_copy_mb)")


class _LastCopy:
    """A file without a name, which the system frees when this process ends, even by a kill."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key = ""
        self._file: BinaryIO | None = None

    def open(self, key: str, chunks: Iterable[bytes], shown: str) -> int:
        """A file descriptor of its own of the copy called `key`; `chunks` are read when that is not the last one."""
        with self._lock:
            if self._file is None or self._key != key:
                self._drop()
                self._file, self._key = _nameless_copy(chunks, shown), key
            return os.dup(self._file.fileno())

    def _drop(self) -> None:
        self._key = ""
        if self._file is not None:
            self._file.close()
            self._file = None


_LAST = _LastCopy()


@contextmanager
def last_copy(key: str, chunks: Iterable[bytes], shown: str) -> Iterator[Path]:
    """The copy called `key` of a remote file, by a name that is gone afterwards; the process keeps the last one.

    key: changes when the file does; chunks: its bytes, read when it is not the last copy. Raises UserError where this
    machine has no room.
    """
    if not _DESCRIPTORS.is_dir():  # not Linux: nothing but a name leads to a file
        with temporary_copy(chunks, shown) as path:
            yield path
        return
    descriptor = _LAST.open(key, chunks, shown)
    name = Path(tempfile.gettempdir()) / f"pyoco_{os.getpid()}_{secrets.token_hex(8)}{_suffix(shown)}"
    try:
        name.symlink_to(_DESCRIPTORS / str(descriptor))
        yield name
    finally:
        name.unlink(missing_ok=True)
        os.close(descriptor)


def _nameless_copy(chunks: Iterable[bytes], shown: str) -> BinaryIO:
    with _room_for(shown), ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        file.writelines(chunks)
        file.flush()
        stack.pop_all()
        return cast(BinaryIO, file)


@contextmanager
def temporary_copy(chunks: Iterable[bytes], shown: str) -> Iterator[Path]:
    """A file of these bytes that is gone afterwards; UserError where this machine has no room for it."""
    handle, name = -1, ""
    try:
        with _room_for(shown):
            handle, name = tempfile.mkstemp(prefix="pyoco_", suffix=_suffix(shown))
            with os.fdopen(handle, "wb") as file:
                file.writelines(chunks)
        yield Path(name)
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


@contextmanager
def _room_for(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # the chunks' own errors are VideoError and UserError
        raise UserError(
            f"A copy of {shown} cannot be written into {tempfile.gettempdir()}: {error.strerror or error}. "
            "Free space there, or set TMPDIR to a folder with more."
        ) from error


def _suffix(shown: str) -> str:
    found = re.search(r"\.[A-Za-z0-9]{1,8}$", shown)
    return found.group() if found else ""
