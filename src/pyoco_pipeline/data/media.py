"""Opening a media file, and what can be wrong with it: every failure is a VideoError."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

# Demuxers that read one self-contained video file. Playlists (hls, dash, concat) would open other files and
# addresses, and a text file would be drawn as a picture of text.
CONTAINERS = (
    "mov,mp4,m4a,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,gif,apng,ivf,nut,mxf,"
    "h264,hevc,m4v,mjpeg,yuv4mpegpipe,wtv,dv,obu,rm"
)
MAX_PIXELS = 1 << 26  # of one picture; 8K has 33 million. Beyond it a decoder's buffers would take gigabytes.
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # that an mp4 or mov file begins with
MAX_BOXES = 10_000  # that are looked at; a damaged file can hold millions


class VideoError(Exception):
    """One file that cannot be read as asked; `reason` completes the sentence that `path` begins."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def check_readable(path: str | Path) -> None:
    """Raise VideoError for a file that is absent, empty, not a regular file or may not be read."""
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


def open_video_stream(path: str | Path) -> tuple[InputContainer, VideoStream]:
    """The open container, to be closed by the caller, and its first real video stream, decoded by one thread."""
    try:
        container = av.open(
            str(Path(path).absolute()),
            options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise unusable(path, "is not a video: its data is in no known video format") from error
    try:
        return container, _video_stream(path, container)
    except BaseException:
        container.close()
        raise


def too_large(path: str | Path, width: int, height: int) -> VideoError:
    """The error of a picture of more than MAX_PIXELS."""
    return VideoError(path, f"is too large: {width} × {height} pixels, more than {MAX_PIXELS:,}")


@contextmanager
def decoder_errors(path: str | Path) -> Iterator[None]:
    """Make what PyAV and arithmetic on a damaged file's figures raise a VideoError."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise unusable(path, f"cannot be decoded: {error.strerror}") from error
    except MemoryError as error:
        raise VideoError(path, "cannot be decoded: it needs more memory than there is") from error
    except (ValueError, ArithmeticError, struct.error) as error:
        # Absurd sizes, times and side data of a damaged file surface as these.
        raise unusable(path, f"cannot be decoded: {error}") from error


def _video_stream(path: str | Path, container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise unusable(path, "has no video stream")
    context = streams[0].codec_context
    if context is None:
        raise unusable(path, "cannot be decoded: its codec is not known")
    # Parallel work runs one file per process; frame threads would only delay the first frame.
    context.thread_count = 1
    if context.width * context.height > MAX_PIXELS:
        raise too_large(path, context.width, context.height)
    options: Any = {"max_pixels": str(MAX_PIXELS)}
    context.options = options
    return streams[0]


def unusable(path: str | Path, reason: str) -> VideoError:
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
        for _ in range(MAX_BOXES):
            if at >= size:
                return at > size or b"moov" not in boxes
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
        return b"moov" not in boxes
