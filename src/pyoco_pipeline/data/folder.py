"""Clips of a fixed length and size, cut from the rows of a folder of captioned videos."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyoco_pipeline.data.clips import Clip
from pyoco_pipeline.data.sources import video_folder
from pyoco_pipeline.data.video import VideoError, decode_frames, probe
from pyoco_pipeline.errors import UserError


class VideoFolderSource(video_folder.VideoFolderSource):
    """A folder of captioned videos that cuts its own clips.

    num_frames, height, width: size of a clip; fps: frames per second at which a clip samples its video
    max_clips_per_row: most clips cut from one row
    """

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
        super().__init__(root, captions_file, test_share=test_share)
        self.num_frames = num_frames
        self.height = height
        self.width = width
        self.fps = fps
        self.max_clips_per_row = max_clips_per_row

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
        with self.local_file(name) as path:
            start = 0.0 if pd.isna(row["start"]) else float(row["start"])
            duration = probe(path).duration_s
            end = duration if pd.isna(row["end"]) else min(float(row["end"]), duration)
            count = self._count(path, start, end)
            times = start + np.arange(count * self.num_frames) / self.fps
            frames = decode_frames(path, times.tolist(), self.height, self.width)
        for k, video in enumerate(np.split(frames, count)):
            attributes = {"path": name, "start_s": f"{start + k * self.num_frames / self.fps:.3f}"}
            yield Clip(clip_id=f"{row['row_id']}-{k:03d}", video=video, attributes=attributes)

    def _count(self, path: Path, start: float, end: float) -> int:
        clip_s = self.num_frames / self.fps
        # Half a frame of slack: the last frame of a clip is taken at the beginning of its own interval.
        count = math.floor((end - start + 0.5 / self.fps) / clip_s)
        if count < 1:
            raise VideoError(
                path,
                f"is too short: its segment from {start:.2f} s has {max(0.0, end - start):.2f} s, but a clip "
                f"of {self.num_frames} frames at {self.fps:g} fps needs {clip_s:.2f} s",
            )
        return min(count, self.max_clips_per_row)
