"""WebDataset tars: the files <key>.mp4 and <key>.txt, side by side in a tar, are one captioned sample.

A key is a member's path up to the first dot of its last part. The tars are read by their headers, and of the
members only the captions; the path of a row says where in the tar its file begins, so that a sample is read at once:
`shard.tar#key.mp4@<byte of the file's data>+<size in bytes>`.
"""

from __future__ import annotations

import json
import logging
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO

import pandas as pd

from pyoco_pipeline.data.copies import check_size, temporary_copy
from pyoco_pipeline.data.sources.base import (
    Media,
    StoredSource,
    captions_table,
    check_share,
    split_by_hash,
)
from pyoco_pipeline.data.storage import remote_errors
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)

EXTENSIONS: dict[Media, tuple[str, ...]] = {
    "video": ("mp4", "webm", "mkv", "mov", "avi", "m4v", "gif"),
    "image": ("jpg", "jpeg", "png", "webp"),
}
MAX_CAPTION_BYTES = 1 << 20  # of a .txt or .json; a longer one is no caption
MAX_PATTERNS = 1_000_000  # that braces may stand for

_BLOCK = 512  # a tar's header
_HEADERS_BLOCK = 1 << 16  # what one request to a store reads of a tar's headers
_PATH = re.compile(r"(?P<tar>.+)#(?P<member>[^#]+)@(?P<start>\d+)\+(?P<size>\d+)")


@dataclass
class _Sample:
    key: str
    media: tuple[str, int, int] | None = None  # member, byte its data begin at, bytes
    caption: str | None = None
    problem: str = ""
    extensions: set[str] = field(default_factory=set)


class WebDatasetSource(StoredSource):
    """Captioned videos or images in tars below `root`.

    shards, test_shards: patterns of the tars: *, ?, ** and {0000..0012} or {a,b}; a tar that both name is a test tar.
        Without test_shards about `test_share` of the samples are test samples, by a hash of the tar's name and the key
    caption_field: key of <key>.json that holds the caption; None: <key>.txt is the caption
    """

    kind = "webdataset"

    def __init__(
        self,
        root: str | Path,
        *,
        shards: Sequence[str] = ("*.tar",),
        test_shards: Sequence[str] = (),
        media: Media = "video",
        caption_field: str | None = None,
        test_share: float = 0.1,
        max_copy_mb: float = 4096,
    ) -> None:
        super().__init__(root, media=media, max_copy_mb=max_copy_mb)
        self.shards = tuple(shards)
        self.test_shards = tuple(test_shards)
        self.caption_field = caption_field
        self.test_share = check_share(test_share)

    def captions(self) -> pd.DataFrame:
        """One row per sample, in the order of the tars' names; more columns: key.

        A damaged tar gives the samples before the damage and a row with a path_problem. Raises UserError where a
        pattern fits no tar.
        """
        self.check_root("the tars")
        tests = set(self._tars(self.test_shards))
        rows = []
        others: list[str] = []
        for tar in sorted(tests.union(self._tars(self.shards))):
            split = "test" if tar in tests else "train"
            for sample in self._samples(tar, others):
                name = f"{tar}/{sample.key}"
                if not tests:
                    split = split_by_hash(name, self.test_share)
                member, start, size = sample.media or (sample.key, 0, 0)
                path = f"{tar}#{member}@{start}+{size}" if member else tar
                rows.append((path, sample, split))
        if others:
            logger.warning(
                "%d members of tars below %s are no files <key>.<extension> and are passed over; one is %s",
                len(others),
                self.storage,
                others[0],
            )
        if not rows:
            raise UserError(f"The tars below {self.storage} hold no samples; give others.")
        return captions_table(
            [path for path, _, _ in rows],
            [sample.caption for _, sample, _ in rows],
            [split for _, _, split in rows],
            [sample.problem for _, sample, _ in rows],
            names=[sample.key or path for path, sample, _ in rows],
            key=[sample.key for _, sample, _ in rows],
        )

    def local_file(self, path: str) -> AbstractContextManager[Path]:
        """A copy of the sample's file; VideoError where it is too large, or no longer in the tar at its place."""
        found = _PATH.fullmatch(path)
        if not found or int(found["start"]) < _BLOCK:
            raise VideoError(path, "is not a file in a tar")
        check_size(path, int(found["size"]), self.max_bytes)
        return temporary_copy(
            self._member(path, found["tar"], int(found["start"]), int(found["size"])), found["member"]
        )

    def _member(self, path: str, tar: str, start: int, size: int) -> Iterator[bytes]:
        chunks = self.storage.part(tar, start - _BLOCK, size + _BLOCK, path)
        head = next(chunks, b"")
        try:
            same = tarfile.TarInfo.frombuf(head[:_BLOCK], "utf-8", "replace").size == size
        except tarfile.HeaderError:
            same = False
        if not same:
            raise VideoError(path, f"is not where it was: {tar} has changed since its samples were listed")
        yield head[_BLOCK:]
        yield from chunks

    def _tars(self, patterns: Sequence[str]) -> list[str]:
        names: list[str] = []
        for pattern in patterns:
            found = [name for one in expand_braces(pattern) for name in self._matching(one)]
            if not found:
                raise UserError(f"No tar below {self.storage} fits the pattern {pattern!r}.")
            names += found
        located = self.storage.locate_all(names)
        wrong = next((name for name in names if located[name].problem), None)
        if wrong is not None:
            raise UserError(f"The tar {self.storage.full(wrong)} {located[wrong].problem}.")
        return list(dict.fromkeys(names))

    def _matching(self, pattern: str) -> list[str]:
        return self.storage.glob(pattern) if re.search(r"[*?\[]", pattern) else [pattern]

    def _samples(self, tar: str, others: list[str]) -> Iterator[_Sample]:
        """Consecutive members of one key are a sample; what is damaged becomes a sample with a problem.

        others: gets the members that can't be of a sample.
        """
        sample: _Sample | None = None
        problem = ""
        try:
            with (
                self.storage.open(tar, block_size=_HEADERS_BLOCK) as file,
                remote_errors(self.storage.full(tar)),
            ):
                for key, extension, member, archive in _members(file):
                    if not key:
                        others.append(f"{tar}#{member.name}")
                        continue
                    if sample is not None and sample.key != key:
                        yield self._judged(sample)
                        sample = None
                    sample = sample or _Sample(key)
                    self._add(sample, extension, member, archive)
        except (tarfile.TarError, OSError, ValueError) as error:
            compressed = isinstance(error, tarfile.ReadError) and sample is None
            problem = f"is damaged, or {'compressed or ' if compressed else ''}no tar: {error}"
        if sample is not None:
            yield self._judged(sample)
        if problem:
            yield _Sample("", problem=problem)

    def _add(
        self, sample: _Sample, extension: str, member: tarfile.TarInfo, archive: tarfile.TarFile
    ) -> None:
        if extension in sample.extensions:
            sample.problem = f"has two files .{extension} in the tar"
        sample.extensions.add(extension)
        if extension in EXTENSIONS[self.media]:
            sample.media = sample.media or (member.name, member.offset_data, member.size)
        elif extension == ("txt" if self.caption_field is None else "json"):
            if member.size > MAX_CAPTION_BYTES:
                sample.problem = f"has a .{extension} of {member.size:,} bytes, which is no caption"
                return
            content = archive.extractfile(member)
            assert content is not None  # a regular file
            sample.caption, sample.problem = self._caption(content, sample.problem)

    def _caption(self, content: IO[bytes], problem: str) -> tuple[str | None, str]:
        text = content.read().decode("utf-8-sig", "replace")
        if self.caption_field is None:
            return text.strip() or None, problem
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            return None, "has a .json that is not JSON"
        value = entry.get(self.caption_field) if isinstance(entry, dict) else None
        if value is None or not isinstance(value, str):
            return None, problem
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), problem

    def _judged(self, sample: _Sample) -> _Sample:
        if sample.media is None and not sample.problem:
            sample.problem = f"has no file of {', '.join('.' + e for e in EXTENSIONS[self.media])} in the tar"
        return sample


def _members(file: BinaryIO) -> Iterator[tuple[str, str, tarfile.TarInfo, tarfile.TarFile]]:
    """(key, extension in small letters, member, its archive) of a tar's members; no key: of no sample.

    Folders and WebDataset's own members, such as __index__, are none.
    """
    # Names in another encoding than UTF-8 stay apart as "caf\\xe9", which any file can hold.
    archive = tarfile.open(fileobj=file, mode="r:", errors="backslashreplace")  # noqa: SIM115
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # else it keeps all headers
        found = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", member.name)
        regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
        if member.isdir() or re.match(r"__[^/]*__($|/)", member.name):
            continue
        key, extension = (found.group(1), found.group(2).lower()) if found and regular else ("", "")
        yield key, extension, member, archive


def expand_braces(pattern: str) -> list[str]:
    """ "a{00..02}" as a00, a01, a02, and "{x,y}" as x, y, as shells do; UserError for too many."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found.group(1))
    if numbers:
        first, last = int(numbers.group(1)), int(numbers.group(2))
        if abs(last - first) >= MAX_PATTERNS:
            raise UserError(f"The pattern {pattern!r} stands for more than {MAX_PATTERNS:,} names.")
        width = len(numbers.group(1)) if numbers.group(1).startswith("0") else 0
        choices = [f"{k:0{width}d}" for k in range(min(first, last), max(first, last) + 1)]
    else:
        choices = found.group(1).split(",")
    before, after = pattern[: found.start()], expand_braces(pattern[found.end() :])
    if len(choices) * len(after) > MAX_PATTERNS:
        raise UserError(f"The pattern {pattern!r} stands for more than {MAX_PATTERNS:,} names.")
    return [before + choice + rest for choice in choices for rest in after]
