"""Clips as files to watch. They are lossy or re-coded: metrics are computed on the stored uint8 frames."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from pyoco_pipeline.errors import UserError

_WATCHABLE_SIDE = 192  # pixels: below it a clip is a stamp on today's screens


def watchable_scale(height: int, width: int) -> int:
    """The whole factor that brings the shorter side of a clip to about 192 pixels, at least 1."""
    return max(1, round(_WATCHABLE_SIDE / min(height, width)))


def enlarge(video: np.ndarray, scale: int) -> np.ndarray:
    """Repeat every pixel of (..., H, W, 3) `scale` times in both directions."""
    return video.repeat(scale, axis=-3).repeat(scale, axis=-2)


def write_video(path: str | Path, video: np.ndarray, fps: float, scale: int | None = None) -> Path:
    """Write uint8 frames (T, H, W, 3) as the suffix of `path` says: .mp4 or .webp.

    scale: whole enlargement factor; None picks one that makes the clip watchable.
    Raises UserError for any other suffix.
    """
    writers = {".mp4": write_mp4, ".webp": write_webp}
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise UserError(f"{path}: can't write {suffix or 'a file without suffix'}, expected .mp4 or .webp.")
    return writers[suffix](path, video, fps, scale)


def write_mp4(path: str | Path, video: np.ndarray, fps: float, scale: int | None = None) -> Path:
    """Write uint8 frames (T, H, W, 3) as H.264 in yuv420p, BT.709, which every browser plays.

    An even `scale` puts chroma samples on pixel borders, so that colours don't bleed. yuv420p has no
    odd sizes: there the last row or column comes twice.
    """
    import av
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    frames = _enlarged(video, scale)
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(_ready(path)), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "preset": "medium"}
        # Untagged small videos are taken for BT.601 by some players: convert to one matrix and say which.
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def write_webp(path: str | Path, video: np.ndarray, fps: float, scale: int | None = None) -> Path:
    """Write uint8 frames (T, H, W, 3) as a lossless animated WebP that loops for ever."""
    first, *rest = (Image.fromarray(frame) for frame in _enlarged(video, scale))
    duration_ms = round(1000 / fps)
    first.save(
        _ready(path),
        format="WEBP",
        save_all=True,
        append_images=rest,
        duration=duration_ms,
        loop=0,
        lossless=True,
        quality=60,  # the effort spent on size: lossless either way
        method=3,
    )
    return Path(path)


def _enlarged(video: np.ndarray, scale: int | None) -> np.ndarray:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or video.shape[0] == 0:
        raise ValueError(f"expected uint8 frames (T, H, W, 3), got {video.dtype} {video.shape}")
    return enlarge(video, watchable_scale(*video.shape[1:3]) if scale is None else scale)


def _ready(path: str | Path) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path)
