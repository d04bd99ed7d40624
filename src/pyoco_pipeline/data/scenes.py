"""Where a video cuts from one scene to the next, found by PySceneDetect in frames that `Video` decodes."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from av.video.reformatter import VideoReformatter

from pyoco_pipeline.data.media import decoder_errors
from pyoco_pipeline.data.video import Video
from pyoco_pipeline.errors import UserError

LONGER_SIDE = 256  # pixels of the pictures that are compared, as PySceneDetect's own default
CONTEXT_S = 1.0  # read before and after the part of interest: a detector judges a frame by its neighbours
THRESHOLDS = {"content": 27.0, "adaptive": 3.0}  # PySceneDetect's own


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are told apart.

    detector: "content" compares a frame's change in hue, saturation and brightness (0 to 255) with the threshold;
    "adaptive" compares it with the mean change of its neighbours, for shots in fast motion.
    threshold: above it a frame begins a scene; None: PySceneDetect's default, 27 (content) or 3 (adaptive, a ratio).
    min_scene_s: shorter scenes are left out, not joined to a neighbour: no scene holds a cut.
    """

    detector: Literal["content", "adaptive"] = "content"
    threshold: float | None = None
    min_scene_s: float = 0.5

    def __post_init__(self) -> None:
        if self.detector not in THRESHOLDS:
            raise UserError(f"The scene detector is {self.detector!r}; it can be {' or '.join(THRESHOLDS)}.")
        if self.threshold is not None and not self.threshold > 0:
            raise UserError(f"The threshold of scene cuts must be positive, not {self.threshold}.")
        if not self.min_scene_s >= 0:
            raise UserError(f"min_scene_s is a number of seconds from 0 up, not {self.min_scene_s}.")


def scene_bounds(
    path: str | Path, options: SceneOptions, start_s: float = 0.0, end_s: float | None = None
) -> list[tuple[float, float]]:
    """(start, end) in seconds of each scene between `start_s` and `end_s` (None: the end of the video), in order.

    A scene starts with the time of its first frame and ends with that of the next scene's first frame. Raises
    VideoError for a file that cannot be read, and UserError where PySceneDetect is not installed.
    """
    with Video(path) as video:
        return video_scenes(video, options, start_s, video.info.duration_s if end_s is None else end_s)


def video_scenes(
    video: Video, options: SceneOptions, start_s: float, end_s: float
) -> list[tuple[float, float]]:
    """As `scene_bounds`, of an open video."""
    cuts = [at for at in _cuts(video, options, start_s, end_s) if start_s < at < end_s]
    edges = [start_s, *cuts, end_s]
    return [
        (start, end) for start, end in pairwise(edges) if end - start >= options.min_scene_s and end > start
    ]


def _cuts(video: Video, options: SceneOptions, start_s: float, end_s: float) -> list[float]:
    from_s = max(0.0, start_s - CONTEXT_S)
    detector, number = _detector(options)
    times: list[float] = []
    found: list[Any] = []
    scaler, size = VideoReformatter(), None
    for at, frame in video.frames(from_s):
        if at < from_s:
            continue
        if at > end_s + CONTEXT_S:
            break
        if size is None:
            scale = min(1.0, LONGER_SIDE / max(frame.width, frame.height))
            size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        with decoder_errors(video.path):
            bgr = scaler.reformat(frame, *size, "bgr24", interpolation="AREA", threads=1).to_ndarray()
        found += detector.process_frame(number(len(times)), np.ascontiguousarray(bgr))
        times.append(at)
    if times:
        found += detector.post_process(number(len(times) - 1))
    return sorted({times[cut.frame_num] for cut in found})


def _detector(options: SceneOptions) -> tuple[Any, Any]:
    """A detector that reports every cut, and what makes its time code of a frame's number."""
    try:
        from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
    except ImportError as error:
        raise UserError(
            f'Scene cuts are found by a package that is not installed ({error}): pip install -e ".[scenes]".'
        ) from error
    threshold = THRESHOLDS[options.detector] if options.threshold is None else options.threshold
    # Its own minimum length would join a short scene to its neighbour, and a clip could then cross the cut.
    if options.detector == "adaptive":
        detector: Any = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=0)
    else:
        detector = ContentDetector(threshold=threshold, min_scene_len=0)
    rate = Fraction(25)  # of no account: frames are told apart by number, and `times` has their times
    return detector, lambda index: FrameTimecode(index, rate)
