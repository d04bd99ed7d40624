"""Cutting clips out of a video or an image: which frames, of which shape, from which part of the picture.

What is cut is a function of the file, the segment and the options alone: draws are hashes, not random numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from pyoco_pipeline.data.clips import Clip
from pyoco_pipeline.data.filters import grid_hash, perceptual_hash, picture_grid
from pyoco_pipeline.data.media import VideoError, decoder_errors
from pyoco_pipeline.data.pictures import Scaler, cropped, read_image
from pyoco_pipeline.data.scenes import SceneOptions, video_scenes
from pyoco_pipeline.data.video import Video
from pyoco_pipeline.errors import UserError

Scenes = Sequence[tuple[float, float]]  # (start, end) in seconds
Crop = tuple[float, float] | None


@dataclass(frozen=True)
class CutOptions:
    """How clips are cut; UserError for options that make none.

    num_frames: of a clip
    sizes: (height, width) of the buckets; a clip goes to the one whose aspect ratio is nearest to its picture's
    fps: frames per second at which a clip samples its video
    stride: every n-th frame of the file instead, whatever the time between frames and fps; None: by fps
    octaves: a clip's rate is fps / 2**k, k drawn from 0 to octaves by what the video shows, so that copies of a file in
    several splits are cut into the same clips; where that does not fit, the next higher rate
    max_clips_per_row: the first ones are kept
    crop: of what stands out of the clip's shape; "random" is drawn for each clip and the same in all its frames
    scenes: how to find scene cuts, which no clip crosses; None: cuts are not looked for
    seed: of what is drawn
    """

    num_frames: int
    sizes: tuple[tuple[int, int], ...]
    fps: float
    stride: int | None = None
    octaves: int = 0
    max_clips_per_row: int = 64
    crop: Literal["centre", "random"] = "centre"
    scenes: SceneOptions | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_frames, self.max_clips_per_row) < 1:
            raise UserError(
                "num_frames and max_clips_per_row must be positive, not "
                f"{self.num_frames} and {self.max_clips_per_row}."
            )
        if not self.sizes or any(min(size) < 1 for size in self.sizes):
            raise UserError(f"sizes must hold at least one (height, width), each positive, not {self.sizes}.")
        if not 0 < self.fps < math.inf:
            raise UserError(f"fps must be positive, not {self.fps}.")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"stride must be positive, not {self.stride}.")
        if not 0 <= self.octaves <= 16 or (self.octaves and self.stride is not None):
            raise UserError(f"octaves is from 0 to 16, and 0 beside a stride, not {self.octaves}.")
        if self.crop not in ("centre", "random"):
            raise UserError(f"crop is centre or random, not {self.crop!r}.")


@dataclass(frozen=True)
class _Cut:
    """The frames of a clip, and the hash of all that they show, be it cropped away or not."""

    scene: int
    fps: float | None
    times_s: list[float]
    video: np.ndarray
    phash: int


class _Pictures:
    """The pictures of a clip in the making."""

    def __init__(self, video: Video, size: tuple[int, int], crop: Crop) -> None:
        self._video, self._size, self._crop = video, size, crop
        self._last: av.VideoFrame | None = None
        self._pictures: list[np.ndarray] = []
        self._wholes: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._pictures)

    def add(self, frame: av.VideoFrame) -> None:
        if frame is self._last:  # shown at several times
            self._pictures.append(self._pictures[-1])
            self._wholes.append(self._wholes[-1])
            return
        self._last = frame
        whole = self._video.covering(frame, *self._size)
        self._pictures.append(cropped(whole, *self._size, self._crop))
        self._wholes.append(whole)

    def cut(self, scene: int, fps: float | None, times_s: list[float]) -> _Cut:
        # Of all pictures at once, which is faster; those of a file may differ in size.
        sizes = groupby(self._wholes, key=lambda whole: whole.shape)
        grids = np.concatenate([picture_grid(np.stack(list(same))) for _, same in sizes])
        return _Cut(scene, fps, times_s, np.stack(self._pictures), grid_hash(grids))


def cut_video(path: Path, segment: Mapping[Any, Any], options: CutOptions) -> list[Clip]:
    """The consecutive clips of one segment of a video, not overlapping, from the start of the segment or of a scene.

    segment: `row_id`, `path` (as written in the table), `start` and `end` in seconds, NaN or None: of the video; an end
    after the end of the video means that. A clip is uint8 (num_frames, height, width, 3) of one of the sizes; `fps` is
    its own rate, `phash` is of the whole pictures, so that no crop hides a copy, and its attributes are the path and
    its start. With scene cuts, `scene` is its scene's number from 1, `scenes` how many there are, and `scenes_skipped`
    how many of those looked at were too short for a clip. `more_clips`, of the first clip: how many more there was room
    for beyond max_clips_per_row, at the full rate, by the length that the file says it has. All clips of a segment are
    given or none. Raises VideoError when the file cannot be read or there is no room for a clip.
    """
    start = max(0.0, _seconds(segment["start"], 0.0))
    with Video(path) as video:
        end = min(_seconds(segment["end"], math.inf), video.info.duration_s)
        scenes: Scenes = [(start, end)] if start < end else []
        if scenes and options.scenes is not None:
            scenes = video_scenes(video, options.scenes, start, end)
        size = nearest_size(video.info.aspect_ratio, options.sizes)
        crops = [_crop(_clip_id(segment, k), options) for k in range(options.max_clips_per_row)]
        cut = _by_time if options.stride is None else _by_stride
        cuts, more = cut(video, scenes, size, crops, options)
        if not cuts:
            raise VideoError(path, _no_room(start, end, scenes, options))
    clips = [_clip(segment, k, one, cuts, len(scenes), options) for k, one in enumerate(cuts)]
    if more:
        clips[0].attributes["more_clips"] = f"{more}"
    return clips


def cut_image(path: Path, segment: Mapping[Any, Any], options: CutOptions) -> list[Clip]:
    """The one clip of one frame that an image makes: uint8 (1, height, width, 3), without a rate.

    See `read_image` for what becomes RGB how. Raises VideoError when the file cannot be read.
    """
    rgb = read_image(path)
    height, width = nearest_size(rgb.shape[1] / rgb.shape[0], options.sizes)
    clip_id = _clip_id(segment, 0)
    with decoder_errors(path):
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        whole = Scaler().covering(frame, height, width)
    picture = np.ascontiguousarray(cropped(whole, height, width, _crop(clip_id, options)))
    phash = perceptual_hash(whole[None])
    return [Clip(clip_id, picture[None], {"path": str(segment["path"])}, phash=phash)]


def nearest_size(aspect_ratio: float, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) whose logarithm of width over height is nearest; the first of several."""
    return min(sizes, key=lambda size: round(abs(math.log(size[1] / size[0]) - math.log(aspect_ratio)), 9))


def _by_time(
    video: Video, scenes: Scenes, size: tuple[int, int], crops: Sequence[Crop], options: CutOptions
) -> tuple[list[_Cut], int]:
    """The clips, and for how many more there is room."""
    content = _content(video, size) if options.octaves else ""
    last_end = scenes[-1][1] if scenes else 0.0
    planned: list[
        tuple[int, int, list[float]]
    ] = []  # scene, frames at the full rate from one to the next, times
    more = 0
    for number, (start, end) in enumerate(scenes):
        # A frame of the next scene may be stamped half a tick late.
        length = ((end if end == last_end else end - video.tolerance_s) - start) * options.fps
        at = 0  # in frames at the full rate
        while len(planned) < options.max_clips_per_row:
            name = f"{content}-{start + at / options.fps:.3f}"
            drawn = int(_draw(options.seed, name, "rate") * (options.octaves + 1))
            fitting = [2**k for k in range(drawn, -1, -1) if at + _room(options.num_frames, 2**k) <= length]
            if not fitting:
                break
            step = fitting[0]
            planned.append(
                (number, step, [start + (at + step * k) / options.fps for k in range(options.num_frames)])
            )
            at += step * options.num_frames
        else:
            more += max(0, int((length - at + 0.5) // options.num_frames))
    frames = video.frames_at([time for _, _, times in planned for time in times])
    cuts = []
    for (number, step, times), crop in zip(planned, crops, strict=False):
        pictures = _Pictures(video, size, crop)
        for frame in islice(frames, options.num_frames):
            pictures.add(frame)
        cuts.append(pictures.cut(number, options.fps / step, times))
    return cuts, more


def _content(video: Video, size: tuple[int, int]) -> str:
    """What copies of a file have in common, whatever they are called: rates drawn by it make the same clips of them.

    Copies that were encoded again differ. Videos that begin with the same black picture share it where they last as
    many seconds.
    """
    picture = video.covering(video.first(), *size)
    return f"{hashlib.sha256(picture.tobytes()).hexdigest()}-{video.info.duration_s:.0f}"


def _room(num_frames: int, step: float) -> float:
    """What a clip needs; half a frame of slack, since its last frame is taken at the beginning of its interval."""
    return (num_frames - 0.5) * step


def _by_stride(
    video: Video, scenes: Scenes, size: tuple[int, int], crops: Sequence[Crop], options: CutOptions
) -> tuple[list[_Cut], int]:
    """The clips, and for how many more there is room."""
    assert options.stride is not None
    cuts: list[_Cut] = []
    scene = position = 0
    pictures, times = _Pictures(video, size, crops[0]), list[float]()
    at = step = 0.0
    frame: av.VideoFrame | None = None
    for now, frame in video.frames(scenes[0][0]) if scenes else ():
        step, at = now - at, now
        while scene < len(scenes) and at >= scenes[scene][1] - video.tolerance_s:
            scene, position, pictures, times = scene + 1, 0, _Pictures(video, size, crops[len(cuts)]), []
        if scene == len(scenes):
            return cuts, 0
        if at < scenes[scene][0] - video.tolerance_s:
            continue
        if position % options.stride == 0:
            pictures.add(frame)
            times.append(at)
        position += 1
        if len(pictures) == options.num_frames:
            cuts.append(pictures.cut(scene, _rate(video, times, options.stride), times))
            if len(cuts) == options.max_clips_per_row:
                return cuts, _more_by_stride(video, cuts[-1], scenes, options)
            pictures, times = _Pictures(video, size, crops[len(cuts)]), []
    if frame is not None:  # the file has ended before the segment
        end_s = at + video.lasts_s(frame, step)
        if end_s + options.stride * step < scenes[-1][1]:
            raise video.too_short(end_s, end_s)
    return cuts, 0


def _more_by_stride(video: Video, last: _Cut, scenes: Scenes, options: CutOptions) -> int:
    """For how many more clips there is room after the last one, at the file's nominal rate."""
    assert options.stride is not None
    (_, end), *later = scenes[last.scene :]
    at = last.times_s[-1] + options.stride / (video.info.fps or math.inf)
    lengths = [
        math.ceil((end - start - video.tolerance_s) * video.info.fps) for start, end in [(at, end), *later]
    ]
    one = options.num_frames * options.stride
    return sum(max(0, (frames + options.stride - 1) // one) for frames in lengths)


def _rate(video: Video, times_s: Sequence[float], stride: int) -> float | None:
    """Frames per second of a clip: that of the file over the stride, unless its timestamps say another."""
    nominal, count, lasts = video.info.fps / stride, len(times_s) - 1, times_s[-1] - times_s[0]
    if lasts <= 0 or (nominal > 0 and abs(count / nominal - lasts) <= 2 * video.tolerance_s):
        return nominal or None
    return count / lasts


def _no_room(start: float, end: float, scenes: Scenes, options: CutOptions) -> str:
    if options.stride is not None:
        need = f"a clip of {options.num_frames} frames {options.stride} apart needs more"
    else:
        needed_s = options.num_frames / options.fps
        need = f"a clip of {options.num_frames} frames at {options.fps:g} fps needs {needed_s:.2f} s"
    if options.scenes is not None and scenes:
        longest = max(after - before for before, after in scenes)
        return (
            f"has no scene that is long enough: the longest of {len(scenes)} has {longest:.2f} s, but {need}"
        )
    if options.scenes is not None and start < end:
        return f"has no scene of {options.scenes.min_scene_s:g} s or more"
    return f"is too short: its segment from {start:.2f} s has {max(0.0, end - start):.2f} s, but {need}"


def _clip(
    segment: Mapping[Any, Any], k: int, cut: _Cut, cuts: Sequence[_Cut], scenes: int, options: CutOptions
) -> Clip:
    attributes = {"path": str(segment["path"]), "start_s": f"{cut.times_s[0]:.3f}"}
    if options.scenes is not None:
        seen = scenes if len(cuts) < options.max_clips_per_row else cuts[-1].scene + 1
        skipped = seen - len({other.scene for other in cuts})
        attributes |= {"scene": f"{cut.scene + 1}", "scenes": f"{scenes}", "scenes_skipped": f"{skipped}"}
    return Clip(_clip_id(segment, k), cut.video, attributes, fps=cut.fps, phash=cut.phash)


def _clip_id(segment: Mapping[Any, Any], k: int) -> str:
    return f"{segment['row_id']}-{k:03d}"


def _crop(clip_id: str, options: CutOptions) -> Crop:
    if options.crop == "centre":
        return None
    return _draw(options.seed, clip_id, "down"), _draw(options.seed, clip_id, "right")


def _draw(seed: int, name: str, what: str) -> float:
    """Uniform in [0, 1): the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{what}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _seconds(value: Any, default: float) -> float:
    return default if value is None or math.isnan(value) else float(value)
