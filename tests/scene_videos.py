"""Small videos of several scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import video_files as vf

COLOURS = [(200, 40, 40), (60, 120, 60), (120, 130, 230), (20, 40, 40)]


def scenes_of(*lengths: int):
    """A `picture` of `write_video`: a bright square drifts over one colour for each of the lengths, in frames."""
    ends = np.cumsum(lengths)

    def picture(k: int, height: int, width: int) -> np.ndarray:
        scene = int(np.searchsorted(ends, k, side="right"))
        shown = np.full((height, width, 3), COLOURS[scene % len(COLOURS)], np.uint8)
        shown[10:18, k % 40 : k % 40 + 8] = 230
        return shown

    return picture


def write_scenes(path: Path, *lengths: int, **options) -> Path:
    return vf.write_video(path, sum(lengths), picture=scenes_of(*lengths), **options)
