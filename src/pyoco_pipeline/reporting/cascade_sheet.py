"""What each stage of a cascade made of the same prompts, below each other and at the same times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pyoco_pipeline.reporting.contact_sheet import contact_sheet
from pyoco_pipeline.reporting.video_files import enlarge

_BLANK = 255


def cascade_sheet(
    stages: Mapping[str, Sequence[np.ndarray]], captions: Sequence[str], *, columns: int = 15
) -> Image.Image:
    """Lay out the clips (T, H, W, 3) uint8 of every stage, in the order of `captions`, as one picture.

    Frames of one column are of one moment; where a stage has none there, the place is left blank. Every stage is
    enlarged to the size of the largest.
    """
    side = max(clip.shape[1] for clips in stages.values() for clip in clips)
    rows, texts = [], []
    for place, caption in enumerate(captions):
        for name, clips in stages.items():
            rows.append(enlarge(_at(clips[place], columns)[None], side // clips[place].shape[1])[0])
            texts.append(f"{name}: {caption}" if name == next(iter(stages)) else name)
    return contact_sheet(np.stack(rows), texts, max_rows=len(rows), max_frames=columns)


def _at(clip: np.ndarray, columns: int) -> np.ndarray:
    """The frames at `columns` evenly spaced moments from the first to the last."""
    moments = np.linspace(0, len(clip) - 1, columns)
    nearest = moments.round().astype(int)
    frames = clip[nearest].copy()
    if len(clip) < columns:
        frames[np.abs(moments - nearest) > 1e-6] = _BLANK
    return frames
