"""Reading frames out of video files.

A frame is chosen by time, so constant and variable frame rates are the same case.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from math import inf
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from pyoco_pipeline.data.media import VideoError, check_readable, decoder_errors, open_video_stream, unusable
from pyoco_pipeline.data.pictures import Scaler, cropped, orientation

__all__ = ["Video", "VideoError", "VideoInfo", "decode_frames", "probe"]

# A seek goes by decoding time, which runs ahead of the time a frame is shown by a few frames.
SEEK_MARGIN_S = 1.0


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself."""

    duration_s: float  # seconds from the first frame to the end of the last
    fps: float  # mean frames per second; 0 where the file does not say
    width: int  # pixels as shown, so after rotation
    height: int
    rotation: int  # degrees clockwise from the stored to the shown picture: 0, 90, 180 or 270
    aspect_ratio: float  # width over height of the shown picture, which pixels that are not square stretch


def probe(path: str | Path) -> VideoInfo:
    """The duration, rate, size and rotation of the first video stream; decodes one frame.

    Raises VideoError where `decode_frames` would fail at time 0.
    """
    with Video(path) as video:
        return video.info


def decode_frames(path: str | Path, times_s: Sequence[float], height: int, width: int) -> np.ndarray:
    """The frames that are shown at `times_s`, as uint8 (T, height, width, 3) RGB; see `Video.sample`.

    Raises VideoError for a file that cannot be read or that ends too early.
    """
    _check_times(times_s, height, width)
    if not len(times_s):
        return np.empty((0, height, width, 3), np.uint8)
    with Video(path) as video:
        return video.sample(times_s, height, width)


class Video:
    """An open video file, the first real video stream of it; a context manager that closes it.

    Every failure of the decoder, here and in the methods, is a VideoError.

    tolerance_s: containers round timestamps to their ticks, so half a tick late still counts as on time.
    """

    def __init__(self, path: str | Path) -> None:
        check_readable(path)
        self.path = path
        self._container, self._stream = open_video_stream(path)
        try:
            with decoder_errors(path):
                self._tick = float(self._stream.time_base or 1 / av.time_base)
                # Where a tick is a whole frame, as in AVI, nothing is rounded.
                rounds = self._tick * float(self._stream.average_rate or 0) < 0.9
                self.tolerance_s = self._tick / 2 * rounds + 1e-6
                self._frames = self._decoded()
                first = next(self._frames, None)
                if first is None:
                    raise unusable(path, "holds no frames")
                self._origin, frame = first
                aspect = self._stream.sample_aspect_ratio
                self._scaler = Scaler(orientation(frame), float(aspect) if aspect and aspect > 0 else 1.0)
                self._stored_size = frame.height, frame.width
                self._next: av.VideoFrame | None = frame  # None once the file has been read from
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @cached_property
    def info(self) -> VideoInfo:
        """What the file says about itself; where it has no duration, its packets are read (not decoded)."""
        with decoder_errors(self.path):
            duration = _declared_duration_s(self._stream)
            if duration is None:
                duration = self._measured_duration_s()
            rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
            (height, width), (transpose, flip_x, flip_y) = self._stored_size, self._scaler.turn
            aspect = width * self._scaler.pixel_aspect / height
            turns = (1 if flip_x else 3) if transpose else (2 if flip_y else 0)
            if transpose:
                height, width, aspect = width, height, 1 / aspect
            return VideoInfo(duration, rate, width, height, 90 * turns, aspect)

    def frames(self, from_s: float = 0.0) -> Iterator[tuple[float, av.VideoFrame]]:
        """(seconds from the first frame, frame), in the order shown: from the frame that is shown at `from_s`, or from
        an earlier one, to the end of the file. One such pass at a time."""
        if from_s > SEEK_MARGIN_S and self._seek(from_s - SEEK_MARGIN_S):
            frames = self._decoded()
            head = next(frames, None)
            # Without timestamps there is no telling where a seek has led to.
            known = head is not None and head[1].time is not None
            if head is not None and known and head[0] - self._origin <= from_s + self.tolerance_s:
                yield head[0] - self._origin, head[1]
                for at, frame in frames:
                    yield at - self._origin, frame
                return
        if self._next is None:
            self._reopen()
            self._frames = self._decoded()
        else:
            first, self._next = self._next, None
            yield 0.0, first
            del first  # a frame that is kept has its buffer kept from the decoder
        for at, frame in self._frames:
            yield at - self._origin, frame

    def first(self) -> av.VideoFrame:
        """The first frame. Ends a pass of `frames`."""
        return next(self.frames())[1] if self._next is None else self._next

    def covering(self, frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
        """A whole frame as uint8 (at least height, at least width, 3), see `Scaler.covering`."""
        with decoder_errors(self.path):
            return self._scaler.covering(frame, height, width)

    def sample(self, times_s: Sequence[float], height: int, width: int) -> np.ndarray:
        """The frames that are shown at `times_s`, see `frames_at`, as uint8 (T, height, width, 3) RGB.

        The picture is turned as its metadata says, brought to square pixels, shrunk by area averaging (enlarged
        bicubically) until it covers the target, and cropped about its centre. An alpha channel is composited onto
        black; where the decoder does not deliver one (VP8 and VP9) it is ignored. Grey and 10-bit pictures become
        8-bit RGB without tone mapping.
        """
        times = _check_times(times_s, height, width)
        clip = np.empty((len(times), height, width, 3), np.uint8)
        last = None
        for k, frame in enumerate(self.frames_at(times)):
            if frame is last:
                clip[k] = clip[k - 1]
            else:
                clip[k] = cropped(self.covering(frame, height, width), height, width, None)
            last = frame
        return clip

    def frames_at(self, times_s: Sequence[float] | np.ndarray) -> Iterator[av.VideoFrame]:
        """The frame that is shown at each of `times_s`, seconds from the first frame, in ascending order.

        The frame shown at t is the last one whose timestamp is not after t; one that is shown at several of the times
        comes as often. Decoding starts at the key frame before the first time and stops after the last. Raises
        VideoError where the file ends too early.
        """
        times = np.asarray(times_s, np.float64).tolist()
        if not times:
            return
        given = 0
        shown: av.VideoFrame | None = None
        shown_at = step = 0.0
        for at, frame in self.frames(times[0]):
            if shown is not None:
                until = bisect_left(times, at - self.tolerance_s)
                yield from repeat(shown, until - given)
                given = max(given, until)
                if given == len(times):
                    return
                step = at - shown_at
            shown, shown_at = frame, at
        assert shown is not None
        with decoder_errors(self.path):
            end_s = shown_at + self.lasts_s(shown, step)
        until = bisect_left(times, end_s + self.tolerance_s)
        yield from repeat(shown, until - given)
        if until < len(times):
            raise self.too_short(end_s, times[-1])

    def lasts_s(self, frame: av.VideoFrame, step_s: float) -> float:
        """Seconds for which the last frame is shown; `step_s`: from the one before it."""
        return (frame.duration or 0) * self._tick or step_s or 1 / float(self._stream.average_rate or 1)

    def too_short(self, end_s: float, need_s: float) -> VideoError:
        """The error of a file whose frames end at `end_s` although `need_s` is needed."""
        declared_s = _declared_duration_s(self._stream)
        if declared_s is not None and declared_s > need_s:
            return VideoError(
                self.path, f"is cut short: its frames end at {end_s:.2f} s of {declared_s:.2f} s"
            )
        return VideoError(self.path, f"ends at {end_s:.2f} s, but the clip needs {need_s:.2f} s")

    def _reopen(self) -> None:
        self._next = None
        self._container.close()
        self._container, self._stream = open_video_stream(self.path)

    def _measured_duration_s(self) -> float:
        """Seconds of video by its packets, read to the end and not decoded."""
        self._reopen()
        count, start, end = 0, inf, -inf
        for packet in self._container.demux(self._stream):  # not a list: that would hold the whole file
            count += packet.size > 0
            if packet.pts is not None:
                start, end = min(start, packet.pts), max(end, packet.pts + (packet.duration or 0))
        if start < end:
            return self._tick * (end - start)
        if self._container.duration:
            return self._container.duration / av.time_base
        return count / float(self._stream.average_rate or 25)

    def _decoded(self) -> Iterator[tuple[float, av.VideoFrame]]:
        with decoder_errors(self.path):
            yield from _timed_frames(self.path, self._container, self._stream)

    def _seek(self, to_s: float) -> bool:
        self._next = None
        try:
            self._container.seek(int((self._origin + to_s) / self._tick), stream=self._stream)
        except (av.error.FFmpegError, OverflowError):
            return False
        return True


def _check_times(times_s: Sequence[float], height: int, width: int) -> np.ndarray:
    times = np.asarray(times_s, dtype=np.float64)
    if times.ndim != 1 or not np.isfinite(times).all() or (times < 0).any() or (np.diff(times) < 0).any():
        raise ValueError("times_s must be finite, not negative and ascending")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be positive, not {height} and {width}")
    return times


def _timed_frames(
    path: str | Path, container: InputContainer, stream: VideoStream
) -> Iterator[tuple[float, av.VideoFrame]]:
    """The decoded frames with their timestamps in seconds, in the order they are shown."""
    step = 1 / float(stream.average_rate or 25)
    at = -step
    for packet in container.demux(stream):
        if packet.is_corrupt:
            where = (
                "" if packet.pts is None else f" at {max(0.0, float(packet.pts * packet.time_base)):.2f} s"
            )
            raise VideoError(path, f"is cut short: its data breaks off{where}")
        for frame in packet.decode():
            at = at + step if frame.time is None else float(frame.time)
            yield at, frame


def _declared_duration_s(stream: VideoStream) -> float | None:
    """The duration of this very stream: a container's own may be that of a longer sound track."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    try:  # Matroska: "00:00:05.280000000"
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except (KeyError, ValueError):
        return None
