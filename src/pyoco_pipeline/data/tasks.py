"""The unit of ingest: some segments of one split in, shards and a record of what was left out, in a folder that is
whole or not there.

What a task writes is a function of the task alone, so that every executor writes the same bytes, and a killed ingest
goes on with the tasks that have no folder yet.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pyoco_pipeline.data.clip_writing import SHARD_ROWS, ShardWriter, shard_name
from pyoco_pipeline.data.clips import CaptionedClip, Clip, Shard
from pyoco_pipeline.data.cutting import CutOptions
from pyoco_pipeline.data.filters import FilterOptions, rejection
from pyoco_pipeline.data.isolation import Isolated, IsolationError
from pyoco_pipeline.data.media import VideoError
from pyoco_pipeline.data.segments import MediaFiles, Segment, cut_segment, scored
from pyoco_pipeline.errors import in_one_line

logger = logging.getLogger(__name__)

FORMAT = 1  # counts up when the same task would write something else
_LIMITS = ("file_timeout_s", "memory_mb")
FLUSH_BYTES = 128 << 20  # of pixels of one shape, held until they are a shard


class Source(Protocol):
    """Where captioned rows come from."""

    @property
    def kind(self) -> str: ...
    def captions(self) -> pd.DataFrame: ...


class FileSource(Source, MediaFiles, Protocol):
    """Rows of media files."""


@runtime_checkable
class RenderedSource(Source, Protocol):
    """Rows that are drawn; nothing about them can fail."""

    def read(self, rows: Sequence[Mapping[Any, Any]]) -> Iterator[list[Clip]]: ...


@dataclass(frozen=True)
class TaskOptions:
    """What decides a task's bytes, beside its segments.

    file_timeout_s: for decoding one segment; memory_mb: of the decoder. clip_model: folder of a CLIP model that scores
    captions.
    """

    cut: CutOptions
    filters: FilterOptions = field(default_factory=FilterOptions)
    clip_model: str | None = None
    compression: str = "none"
    file_timeout_s: float = 120.0
    memory_mb: int | None = 4096


@dataclass(frozen=True)
class Task:
    """Segments of one split from one source; `key` names what it writes into `work`."""

    number: int
    split: str
    is_image: bool
    source: FileSource | RenderedSource
    segments: tuple[Segment, ...]
    options: TaskOptions
    work: Path

    @cached_property
    def key(self) -> str:
        """A digest of all that decides the result, the files' sizes and times of change among it."""
        options = asdict(self.options)
        for limit in _LIMITS:  # what they stop is done again when they change: `read_record`
            del options[limit]
        content = {
            "format": FORMAT,
            "number": self.number,
            "split": self.split,
            "source": {"kind": self.source.kind, **vars(self.source)},
            "segments": self.segments,
            "options": options,
            "files": self._versions(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _versions(self) -> list[Any]:
        storage = getattr(self.source, "storage", None)
        if storage is None or not storage.is_local:
            return []
        names = {str(segment["path"]) for segment in self.segments}
        return [[name, *_version(Path(storage.root), name)] for name in sorted(names)]

    @property
    def folder(self) -> Path:
        return self.work / self.key


def _version(root: Path, name: str) -> tuple[int, int]:
    """Size and time of change of a file, or of the tar or table that it lies in."""
    for path in (root / name, root / name.partition("#")[0]):
        try:
            found = path.stat()
        except (OSError, ValueError):
            continue
        return found.st_size, found.st_mtime_ns
    return 0, 0


@dataclass(frozen=True)
class TaskRecord:
    """What a task wrote: shards, the segments that can't be used with the reason, the clips that filters left out."""

    segments: int
    clips: int
    shards: tuple[Shard, ...]
    quarantine: tuple[tuple[str, str, str], ...]  # row_id, path, reason
    left_out: tuple[tuple[str, str, str], ...]  # clip_id, path, reason
    rates: dict[str, int] = field(default_factory=dict)  # frames per second -> clips
    scenes_skipped: int = 0  # too short for a clip
    more_clips: int = 0  # that the segments had room for, beyond max_clips_per_row
    limits: tuple[float | None, ...] | None = None  # of time and memory, where a segment went beyond them


def read_record(task: Task) -> TaskRecord | None:
    """The record of a task that is done, and whose limits of time and memory, where they were met, are still those.

    None, with a warning, where it or a shard is damaged: the task is done again.
    """
    path = task.folder / "task.json"
    if not path.is_file():
        return None
    try:
        record = _parsed(path.read_text())
        whole = all((task.folder / shard.file).is_file() for shard in record.shards)
        for shard in record.shards if whole else ():
            path = task.folder / shard.file
            if pq.read_metadata(path).num_rows != shard.rows:
                raise ValueError(f"it has other clips than {shard.rows}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged (%s): what it is part of is done again.", path, in_one_line(error))
        return None
    return record if whole and record.limits in (None, _limits(task)) else None


def _parsed(text: str) -> TaskRecord:
    content = json.loads(text)
    for name, kind in (("shards", lambda shard: Shard(**shard)), ("quarantine", tuple), ("left_out", tuple)):
        content[name] = tuple(kind(row) for row in content[name])
    content["limits"] = content["limits"] and tuple(content["limits"])
    return TaskRecord(**content)


def run_task(task: Task) -> tuple[int, int]:
    """Do a task, unless it is done; returns its numbers of segments and of quarantined ones."""
    record = read_record(task)
    if record is None:
        aside = task.work / f".{task.key}-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            record = _write(task, aside)
            (aside / "task.json").write_text(json.dumps(asdict(record), indent=1) + "\n")
            shutil.rmtree(task.folder, ignore_errors=True)  # half of a task, or one that met other limits
            aside.replace(task.folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return record.segments, len(record.quarantine)


def _limits(task: Task) -> tuple[float | None, ...]:
    return tuple(getattr(task.options, limit) for limit in _LIMITS)


def _write(task: Task, folder: Path) -> TaskRecord:
    writer = ShardWriter(folder, compression=task.options.compression)
    waiting: dict[tuple[int, ...], list[CaptionedClip]] = {}
    shards: list[Shard] = []
    quarantine: list[tuple[str, str, str]] = []
    left_out: list[tuple[str, str, str]] = []
    rates = Counter[str]()
    skipped = more = 0
    limited = False

    def flush(shape: tuple[int, ...]) -> None:
        name = f"{shard_name(task.split, task.is_image)}-{task.number:05d}-{len(shards):03d}.parquet"
        shards.append(writer.write(name, waiting.pop(shape)))

    for segment, made in zip(task.segments, _clips(task), strict=True):
        path = str(segment["path"])
        if isinstance(made, VideoError | IsolationError):
            limited |= isinstance(made, IsolationError)
            quarantine.append((str(segment["row_id"]), path, made.reason))
            continue
        skipped += int(made[0].attributes.get("scenes_skipped", 0)) if made else 0
        more += int(made[0].attributes.get("more_clips", 0)) if made else 0
        for clip in _scored(task, segment, made):
            reason = rejection(clip.scores, task.options.filters)
            if reason:
                left_out.append((clip.clip_id, path, reason))
                continue
            if clip.fps is not None:
                rates[f"{clip.fps:.3f}"] += 1
            shape = clip.video.shape
            first, *others = segment["captions"]
            waiting.setdefault(shape, []).append(CaptionedClip(clip, first, task.split, tuple(others)))
            if len(waiting[shape]) >= min(SHARD_ROWS, max(1, FLUSH_BYTES // clip.video.nbytes)):
                flush(shape)
    for shape in list(waiting):
        flush(shape)
    return TaskRecord(
        segments=len(task.segments),
        clips=sum(shard.rows for shard in shards),
        shards=tuple(shards),
        quarantine=tuple(quarantine),
        left_out=tuple(left_out),
        rates=dict(rates),
        scenes_skipped=skipped,
        more_clips=more,
        limits=_limits(task) if limited else None,
    )


def _clips(task: Task) -> Iterator[list[Clip] | VideoError | IsolationError]:
    """Per segment its clips, or why there are none."""
    source, options = task.source, task.options
    if isinstance(source, RenderedSource):
        for clips in source.read(task.segments):
            yield [scored(clip) for clip in clips]
        return
    decoder = _decoder(options.file_timeout_s, options.memory_mb)
    for segment in task.segments:
        try:
            yield decoder.call(cut_segment, source, segment, options.cut)
        except (VideoError, IsolationError) as error:
            yield error


@lru_cache(maxsize=1)
def _decoder(timeout_s: float, memory_mb: int | None) -> Isolated:
    """The decoder of this process, for all its tasks: starting one takes as long as a hundred clips."""
    decoder = Isolated(timeout_s=timeout_s, memory_mb=memory_mb)
    atexit.register(decoder.close)
    return decoder


def _scored(task: Task, segment: Segment, clips: list[Clip]) -> list[Clip]:
    if task.options.clip_model is None or not clips:
        return clips
    scorer = _clip_scorer(task.options.clip_model)
    values = scorer.score([clip.video for clip in clips], [segment["captions"][0]] * len(clips))
    return [
        replace(clip, scores=clip.scores | {"clip_score": float(value)})
        for clip, value in zip(clips, np.asarray(values), strict=True)
    ]


@lru_cache(maxsize=1)
def _clip_scorer(folder: str) -> Any:
    from pyoco_pipeline.data.filters import ClipScorer

    return ClipScorer(folder)
