"""Contact sheets: one row a clip, its caption at the left, its frames side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pyoco_pipeline.reporting.video_files import enlarge

_CAPTION_WIDTH = 240
_MARGIN = 12
_FONT_SIZE = 15
_LINE_HEIGHT = 20
_MAX_LINES = 6
_MIN_FRAME_SIDE = 72
_PAPER, _INK, _RULE = (255, 255, 255), (32, 36, 44), (222, 226, 232)


def contact_sheet(
    videos: np.ndarray,
    captions: Sequence[str],
    *,
    max_rows: int = 16,
    max_frames: int = 16,
    scale: int | None = None,
) -> Image.Image:
    """Lay out uint8 clips (N, T, H, W, 3) and their N captions as one picture.

    max_rows:   clips beyond it are left out
    max_frames: of longer clips, this many frames, evenly spaced from the first to the last
    scale:      whole enlargement factor; None makes frames at least 72 pixels wide
    Raises ValueError when captions and clips differ in number, or there are none.
    """
    if len(videos) != len(captions) or not len(videos):
        raise ValueError(
            f"expected as many captions as clips and at least one, got {len(captions)}, {len(videos)}"
        )
    videos = np.asarray(videos[:max_rows])
    num_frames = videos.shape[1]
    if num_frames > max_frames:
        videos = videos[:, np.linspace(0, num_frames - 1, max_frames).round().astype(int)]
    factor = scale or max(1, -(-_MIN_FRAME_SIDE // min(videos.shape[2:4])))
    videos = enlarge(videos, factor)
    _, shown, height, width, _ = videos.shape
    texts = [_wrapped(caption) for caption in captions[:max_rows]]
    row_heights = [max(height, len(lines) * _LINE_HEIGHT) + _MARGIN for lines in texts]
    left = _MARGIN + _CAPTION_WIDTH + _MARGIN
    size = (left + shown * (width + 2) - 2 + _MARGIN, sum(row_heights) + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for video, lines, row_height in zip(videos, texts, row_heights, strict=True):
        inner = row_height - _MARGIN
        text_top = top + (inner - len(lines) * _LINE_HEIGHT) // 2
        for number, line in enumerate(lines):
            draw.text((_MARGIN, text_top + number * _LINE_HEIGHT), line, fill=_INK, font=_font())
        for number, frame in enumerate(video):
            sheet.paste(Image.fromarray(frame), (left + number * (width + 2), top + (inner - height) // 2))
        top += row_height
        if top < size[1] - _MARGIN:
            draw.line((_MARGIN, top - _MARGIN // 2, size[0] - _MARGIN, top - _MARGIN // 2), fill=_RULE)
    return sheet


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own font has no Greek and no Cyrillic letters; matplotlib ships one that has.
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _FONT_SIZE)


def _wrapped(caption: str) -> list[str]:
    """Lines of at most `_CAPTION_WIDTH` pixels; longer words are broken, a seventh line is cut off."""
    lines = [""]
    for word in " ".join(caption.split()).split(" "):
        candidate = f"{lines[-1]} {word}".strip()
        if _font().getlength(candidate) <= _CAPTION_WIDTH:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if _font().getlength(lines[-1] + letter) > _CAPTION_WIDTH:
                lines.append("")
            lines[-1] += letter
        if len(lines) > _MAX_LINES:
            break
    if len(lines) > _MAX_LINES:
        return [*lines[: _MAX_LINES - 1], lines[_MAX_LINES - 1][:-1] + "…"]
    return lines
