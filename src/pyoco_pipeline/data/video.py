"""Reading frames out of video files.

A frame is chosen by time, so constant and variable frame rates are the same case. Pictures are converted and
shrunk in one step by libswscale with area averaging (the mean of the source pixels a target pixel covers),
accurate rounding and full chroma: without those two flags the result is about 1.5 grey levels too dark.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream

# Demuxers that read one self-contained video file. Playlists (hls, dash, concat) would open other files and
# addresses, and a text file would be drawn as a picture of text.
CONTAINERS = (
    "mov,mp4,m4a,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,gif,apng,ivf,nut,mxf,"
    "h264,hevc,m4v,mjpeg,yuv4mpegpipe,wtv,dv,obu,rm"
)
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # that an mp4 or mov file begins with

# A seek goes by decoding time, which runs ahead of the time a frame is shown by a few frames.
SEEK_MARGIN_S = 1.0

_AREA = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_ENLARGE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class VideoError(Exception):
    """One file that cannot be read as asked; `reason` completes the sentence that `path` begins."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself."""

    duration_s: float  # seconds from the first frame to the end of the last
    fps: float  # mean frames per second; 0 where the file does not say
    width: int  # pixels as shown, so after rotation
    height: int
    rotation: int  # degrees clockwise from the stored to the shown picture: 0, 90, 180 or 270


def probe(path: str | Path) -> VideoInfo:
    """The duration, rate, size and rotation of the first video stream; decodes one frame.

    Raises VideoError where `decode_frames` would fail at time 0.
    """
    with _opened(path) as (container, stream):
        _, first = next(_timed_frames(path, container, stream), (0.0, None))
        if first is None:
            raise _unusable(path, "holds no frames")
        transpose, flip_x, flip_y = _orientation(first)
        width, height = (first.height, first.width) if transpose else (first.width, first.height)
        quarter_turns = (1 if flip_x else 3) if transpose else (2 if flip_y else 0)
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(_duration_s(container, stream), float(rate or 0), width, height, 90 * quarter_turns)


def decode_frames(path: str | Path, times_s: Sequence[float], height: int, width: int) -> np.ndarray:
    """The frames that are shown at `times_s`, as uint8 (T, height, width, 3) RGB.

    The frame shown at t is the last one whose timestamp is not after t. `times_s` are seconds from the first
    frame, in ascending order. The picture is turned as its metadata says, brought to square pixels, shrunk by
    area averaging (enlarged bicubically) until it covers the target, and cropped about its centre. An alpha
    channel is composited onto black; where the decoder does not deliver one (VP8 and VP9) it is ignored. Grey
    and 10-bit pictures become 8-bit RGB without tone mapping.

    Decoding starts at the key frame before the first time and stops after the last. Raises VideoError for a
    file that cannot be read or that ends too early, and ValueError for times that are not ascending.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if times.ndim != 1 or not np.isfinite(times).all() or (times < 0).any() or (np.diff(times) < 0).any():
        raise ValueError("times_s must be finite, not negative and ascending")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be positive, not {height} and {width}")
    if not times.size:
        return np.empty((0, height, width, 3), np.uint8)
    if times[0] > SEEK_MARGIN_S:
        clip = _decode_from(path, times, height, width, seek_s=float(times[0]) - SEEK_MARGIN_S)
        if clip is not None:
            return clip
    clip = _decode_from(path, times, height, width, seek_s=0.0)
    if clip is None:
        raise _unusable(path, "holds no frames")
    return clip


def _decode_from(
    path: str | Path, times: np.ndarray, height: int, width: int, seek_s: float
) -> np.ndarray | None:
    """As `decode_frames`; None if no frame was found at or before the first time."""
    clip = np.empty((len(times), height, width, 3), np.uint8)
    filled = 0
    with _opened(path) as (container, stream):
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        # Containers round timestamps to their ticks, so half a tick late still counts as on time.
        tick = float(stream.time_base or 1 / av.time_base)
        tolerance = tick / 2 + 1e-6
        read = partial(_timed_frames, path, container, stream)
        frames = read()
        if seek_s > 0:
            origin, first = next(frames, (0.0, None))
            if first is None:
                raise _unusable(path, "holds no frames")
            try:
                container.seek(int((origin + seek_s) / tick), stream=stream)
            except av.error.FFmpegError:
                return None
            frames = read()
        else:
            origin = float("nan")

        shown: av.VideoFrame | None = None
        shown_at = step = 0.0
        for at, frame in frames:
            if np.isnan(origin):
                origin = at
            due = int(np.searchsorted(times, at - origin - tolerance, side="left"))
            if shown is None and due > 0:
                return None
            if due > filled and shown is not None:
                clip[filled:due] = _picture(shown, aspect, height, width)
                filled = due
            if filled == len(times):
                return clip
            step = at - origin - shown_at if shown is not None else 0.0
            shown, shown_at = frame, at - origin
        if shown is None:
            return None
        lasts = (shown.duration or 0) * tick or step
        end_s = shown_at + (lasts or 1 / float(stream.average_rate or 1))
        due = int(np.searchsorted(times, end_s + tolerance, side="left"))
        if due > filled:
            clip[filled:due] = _picture(shown, aspect, height, width)
            filled = due
        if filled < len(times):
            _raise_too_short(path, stream, end_s, float(times[-1]))
    return clip


def _raise_too_short(path: str | Path, stream: VideoStream, end_s: float, need_s: float) -> None:
    declared_s = _declared_duration_s(stream)
    if declared_s is not None and declared_s > need_s:
        raise VideoError(path, f"is cut short: its frames end at {end_s:.2f} s of {declared_s:.2f} s")
    raise VideoError(path, f"ends at {end_s:.2f} s, but the clip needs {need_s:.2f} s")


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The open container and its first real video stream; every FFmpeg failure becomes a VideoError."""
    _check_readable(path)
    try:
        container = av.open(
            str(Path(path).absolute()),
            options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise _unusable(path, "is not a video: its data is in no known video format") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise _unusable(path, "has no video stream")
        if streams[0].codec_context is None:
            raise _unusable(path, "cannot be decoded: its codec is not known")
        # Parallel work runs one file per process; frame threads would only delay the first frame.
        streams[0].codec_context.thread_count = 1
        try:
            yield container, streams[0]
        except av.error.FFmpegError as error:
            raise _unusable(path, f"cannot be decoded: {error.strerror}") from error
        except (ValueError, ArithmeticError, MemoryError, struct.error) as error:
            # Absurd sizes, times and side data of a damaged file surface as these.
            raise _unusable(path, f"cannot be decoded: {error}") from error


def _check_readable(path: str | Path) -> None:
    try:
        if not Path(path).exists():
            raise VideoError(path, "does not exist")
        if not Path(path).is_file():  # opening a named pipe would wait forever
            raise VideoError(path, "is not a regular file")
        with Path(path).open("rb") as file:
            if not file.read(1):
                raise VideoError(path, "is empty")
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror}") from error


def _unusable(path: str | Path, reason: str) -> VideoError:
    """The error with `reason`, unless the likelier one is that the end of the file is missing."""
    if _is_cut_short(Path(path)):
        return VideoError(path, "is cut short: the end of the file is missing")
    return VideoError(path, reason)


def _is_cut_short(path: Path) -> bool:
    """Whether an mp4 or Matroska file announces more bytes than it has, or an mp4 lacks its index."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if head[:4] == b"\x1aE\xdf\xa3":
            segment = head.find(b"\x18\x53\x80\x67") + 4
            length = int.from_bytes(head[segment : segment + 8], "big") - (
                1 << 56
            )  # an 8-byte size, as written
            known = segment >= 4 and head[segment : segment + 1] == b"\x01" and length != (1 << 56) - 1
            return known and segment + 8 + length > size
        if head[4:8] not in MP4_BOXES:
            return False
        at, boxes = 0, set()
        while at < size:
            file.seek(at)
            header = file.read(16)
            if len(header) < 8:
                return True
            length = int.from_bytes(header[:4], "big")
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            if length < 8:  # 0: to the end of the file
                return length != 0
            boxes.add(header[4:8])
            at += length
        return at > size or b"moov" not in boxes


def _timed_frames(
    path: str | Path, container: InputContainer, stream: VideoStream
) -> Iterator[tuple[float, av.VideoFrame]]:
    """The decoded frames with their timestamps in seconds, in the order they are shown."""
    step = 1 / float(stream.average_rate or 25)
    at = -step
    for packet in container.demux(stream):
        if packet.is_corrupt:
            where = "" if packet.pts is None else f" at {float(packet.pts * packet.time_base):.2f} s"
            raise VideoError(path, f"is cut short: its data breaks off{where}")
        for frame in packet.decode():
            at = at + step if frame.time is None else float(frame.time)
            yield at, frame


def _duration_s(container: InputContainer, stream: VideoStream) -> float:
    """Seconds of video; where the stream does not say, its packets are read (not decoded) to the end."""
    declared = _declared_duration_s(stream)
    if declared is not None:
        return declared
    assert stream.time_base is not None
    container.seek(0)
    spans = [(p.pts, p.pts + (p.duration or 0)) for p in container.demux(stream) if p.pts is not None]
    if not spans:
        return (container.duration or 0) / av.time_base
    return float((max(end for _, end in spans) - min(start for start, _ in spans)) * stream.time_base)


def _declared_duration_s(stream: VideoStream) -> float | None:
    """The duration of this very stream: a container's own may be that of a longer sound track."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    try:  # Matroska: "00:00:05.280000000"
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except (KeyError, ValueError):
        return None


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then mirror x, then mirror y) that turn the stored picture into the shown one."""
    side_data: Any = frame.side_data
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    # Row-major 3x3 in 16.16 fixed point: x' = a x + c y, y' = b x + d y.
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _picture(frame: av.VideoFrame, pixel_aspect: float, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): the frame upright, covering the target, cropped about its centre."""
    transpose, flip_x, flip_y = _orientation(frame)
    stored_height, stored_width = (width, height) if transpose else (height, width)
    if any(component.is_alpha for component in frame.format.components) or frame.format.has_palette:
        frame = _on_black(frame)
    scale = max(stored_width / (frame.width * pixel_aspect), stored_height / frame.height)
    cover_width = max(stored_width, round(frame.width * pixel_aspect * scale))
    cover_height = max(stored_height, round(frame.height * scale))
    enlarging = cover_width > frame.width or cover_height > frame.height
    rgb = frame.reformat(
        cover_width, cover_height, "rgb24", interpolation=_ENLARGE if enlarging else _AREA
    ).to_ndarray()
    top, left = (cover_height - stored_height) // 2, (cover_width - stored_width) // 2
    rgb = rgb[top : top + stored_height, left : left + stored_width]
    rgb = rgb.swapaxes(0, 1) if transpose else rgb
    return rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _on_black(frame: av.VideoFrame) -> av.VideoFrame:
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    rgb = (rgba[..., :3] * rgba[..., 3:] + 127) // 255
    return av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")
