"""One segment of a media file to scored clips: what the decoder's process runs, so it imports little."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from pyoco_pipeline.data.clips import Clip
from pyoco_pipeline.data.cutting import CutOptions, cut_image, cut_video
from pyoco_pipeline.data.filters import perceptual_hash, score

# row_id, path, start, end, split, captions: list[str], and the other columns of its first row.
Segment = dict[str, Any]


class MediaFiles(Protocol):
    """Of a source what is needed here: `local_file(path)` gives a file to decode; VideoError where it can't."""

    @property
    def media(self) -> Literal["video", "image"]: ...
    def local_file(self, path: str) -> AbstractContextManager[Path]: ...


def cut_segment(source: MediaFiles, segment: Segment, cut: CutOptions) -> list[Clip]:
    """The clips of one segment, with their scores. Raises VideoError."""
    with source.local_file(str(segment["path"])) as path:
        clips = (cut_image if source.media == "image" else cut_video)(path, segment, cut)
    return [scored(clip) for clip in clips]


def scored(clip: Clip) -> Clip:
    """The clip with its scores, and with a perceptual hash, of its own pictures where it came without one."""
    phash = perceptual_hash(clip.video) if clip.phash is None else clip.phash
    return replace(clip, scores=clip.scores | score(clip.video), phash=phash)
