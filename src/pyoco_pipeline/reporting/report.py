"""What a report is made of. Every part but the title may be missing; the page then says so."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ReportClip:
    """One clip to watch: an encoded file in memory with its caption.

    readback: attribute -> what a reader network, that doesn't know the caption, saw in the clip
    asked:    attribute -> what the caption asked for; where both are known the page marks hits and misses
    """

    caption: str
    media: bytes
    mime: str  # "video/mp4", "image/webp", "image/png" or "image/gif"
    readback: Mapping[str, Any] | None = None
    asked: Mapping[str, Any] | None = None

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        caption: str,
        readback: Mapping[str, Any] | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> ReportClip:
        """Read a file that `write_video` wrote; its suffix says the type."""
        mime = mimetypes.guess_type(Path(path).name)[0] or "image/webp"
        return cls(caption, Path(path).read_bytes(), mime, readback, asked)


@dataclass(frozen=True)
class Report:
    """The parts of a report.

    run:             facts on the run, shown as they stand; nested mappings become tables, and numbers under
                     keys in `_s` are durations in seconds: {"env": "base", "wall_time_s": {"ingest": 3.2}}
    metrics:         the content of metrics.json
    history:         rows of the training history: stage, step, loss, ...
    config:          the run's parameters; secrets are masked
    captions:        facts on the captions, in the manner of `run`
    ingest:          `kept` (a count), `quarantined` (rows with their reasons), and other facts
    cascade:         facts on each of its stages, in their order, where there are several; `cascade_sheet` is a picture
                     (PNG) of what they made of the same prompts
    prior:           a sentence on the noise prior, `covariance` its (T, T) matrix
    """

    title: str
    run: Mapping[str, Any] = field(default_factory=dict)
    videos: Sequence[ReportClip] = ()
    real_videos: Sequence[ReportClip] = ()
    metrics: Mapping[str, Any] | None = None
    history: Sequence[Mapping[str, Any]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    captions: Mapping[str, Any] = field(default_factory=dict)
    ingest: Mapping[str, Any] = field(default_factory=dict)
    cascade: Sequence[Mapping[str, Any]] = ()
    cascade_sheet: bytes | None = None
    prior: str = ""
    covariance: np.ndarray | None = None
