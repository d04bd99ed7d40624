"""From a source of captioned rows to a folder of clips, whatever the source."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from pyoco_pipeline.data.clips import CaptionedClip, Clip, Manifest, write_clips
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)


class ClipSource(Protocol):
    """Rows with captions, and the clips of a row.

    `captions()` has at least row_id, path, caption, start, end, split, path_problem; `read(rows)` gives per row its
    clips, or the VideoError that says why its file can't be used.
    """

    @property
    def kind(self) -> str: ...
    @property
    def fps(self) -> float: ...
    def captions(self) -> pd.DataFrame: ...
    def read(self, rows: Sequence[Mapping[Any, Any]]) -> Iterator[list[Clip] | VideoError]: ...


def write_source(
    folder: Path,
    source: ClipSource,
    captions: pd.DataFrame,
    shape: tuple[int, int, int],
    max_bad_share: float,
) -> Manifest:
    """Write the clips of all rows into `folder`, and the rows that could not be used into its quarantine.csv.

    shape: (frames, height, width). Raises UserError when more than `max_bad_share` of the rows are bad, one bad row
    excepted, and when no clip is left.
    """
    quarantine: list[tuple[str, str, str]] = []
    manifest = write_clips(
        folder, _clips(source, captions, quarantine), kind=source.kind, shape=shape, fps=source.fps
    )
    with (folder / "quarantine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("row_id", "path", "reason"), *quarantine])
    share = len(quarantine) / max(1, len(captions))
    unread = f"{len(quarantine)} of {len(captions)} rows could not be read"
    listed = "; ".join(f"{row} ({reason})" for row, _, reason in quarantine[:5]) or "none"
    if not manifest.counts:
        raise UserError(f"{unread}, and no clip is left. First: {listed}. Mend them, or give other videos.")
    if share > max_bad_share and len(quarantine) > 1:
        raise UserError(
            f"{unread}, more than the share {max_bad_share:g} of ingest.video_folder.max_bad_share. "
            f"First: {listed}. Mend or drop them, or raise the share."
        )
    if quarantine:
        logger.warning("%d of %d rows are in quarantine.csv beside the clips", len(quarantine), len(captions))
    return manifest


def _clips(
    source: ClipSource, captions: pd.DataFrame, quarantine: list[tuple[str, str, str]]
) -> Iterator[CaptionedClip]:
    rows = captions.to_dict("records")
    for row, made in zip(rows, source.read(rows), strict=True):
        if isinstance(made, VideoError):
            quarantine.append((str(row["row_id"]), str(row["path"]), made.reason))
            logger.warning("%s: %s", row["row_id"], made)
            continue
        for clip in made:
            yield CaptionedClip(clip, str(row["caption"]), str(row["split"]))
