"""One decoded frame, or one image file, as the picture that a clip keeps.

Pictures are converted and shrunk in one step by libswscale with area averaging (the mean of the source pixels a
target pixel covers), accurate rounding and full chroma: without those two flags the result is about 1.5 grey levels
too dark.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from pyoco_pipeline.data.media import MAX_PIXELS, VideoError, check_readable, too_large

MAX_STRETCH = (
    64  # of a picture's aspect ratio to the target's, at most: it bounds what is scaled and cropped away
)
# Formats that Pillow decodes by itself; others start programs (EPS) or hold no pictures. MPO is opened as JPEG.
IMAGE_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA",
)  # fmt: skip

_AREA = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_ENLARGE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


UPRIGHT = (False, False, False)


class Scaler:
    """Turns the frames of one file into pictures; those of one size share libswscale's tables.

    turn: see `orientation`; pixel_aspect: width of a stored pixel over its height.
    """

    def __init__(self, turn: tuple[bool, bool, bool] = UPRIGHT, pixel_aspect: float = 1.0) -> None:
        self.turn, self.pixel_aspect = turn, pixel_aspect
        self._reformatter = VideoReformatter()
        self._plan = cache(_Plan)

    def covering(self, frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
        """uint8 (at least height, at least width, 3): the whole frame, upright, so large that it covers the target.

        Raises ValueError where the aspect ratios differ by more than MAX_STRETCH.
        """
        transpose, flip_x, flip_y = self.turn
        rows, columns = (width, height) if transpose else (height, width)
        plan = self._plan(frame.format.name, frame.width, frame.height, self.pixel_aspect, rows, columns)
        if plan.has_alpha:
            frame = _on_black(frame)
        rgb = self._reformatter.reformat(
            frame, plan.width, plan.height, "rgb24", interpolation=plan.interpolation, threads=1
        ).to_ndarray()
        rgb = rgb.swapaxes(0, 1) if transpose else rgb
        return rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1] if flip_x or flip_y else rgb


def cropped(picture: np.ndarray, height: int, width: int, crop: tuple[float, float] | None) -> np.ndarray:
    """(height, width, 3) of a picture that is as large or larger.

    crop: where the part lies, (down, right) in [0, 1); None: about the centre.
    """
    down, right = picture.shape[0] - height, picture.shape[1] - width
    if crop is None:
        top, left = down // 2, right // 2
    else:
        top, left = int(crop[0] * (down + 1)), int(crop[1] * (right + 1))
    return picture[top : top + height, left : left + width]


class _Plan:
    """How a stored picture of one format and size becomes one that covers (rows, columns), before it is turned."""

    def __init__(
        self, pixel_format: str, width: int, height: int, pixel_aspect: float, rows: int, columns: int
    ) -> None:
        stretch = (width * pixel_aspect / height) / (columns / rows)
        if not 1 / MAX_STRETCH <= stretch <= MAX_STRETCH:
            raise ValueError(
                f"its pictures of {width} × {height} pixels are too long or too flat for clips of {columns} × {rows}"
            )
        described = av.VideoFormat(pixel_format)
        self.has_alpha = described.has_palette or any(part.is_alpha for part in described.components)
        self.width = max(columns, round(columns * stretch))
        self.height = max(rows, round(rows / stretch))
        enlarging = self.width > width or self.height > height
        self.interpolation = int(_ENLARGE if enlarging else _AREA)


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then mirror x, then mirror y) that turn the stored picture into the shown one."""
    side_data: Any = frame.side_data
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    # Row-major 3x3 in 16.16 fixed point: x' = a x + c y, y' = b x + d y.
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def read_image(path: str | Path) -> np.ndarray:
    """The pixels of an image file, uint8 (height, width, 3), upright.

    The orientation of EXIF is applied, alpha is composited onto black, 16-bit grey and CMYK become 8-bit RGB, and of an
    animation the first picture is taken; colour profiles are not applied. Raises VideoError for a file that is no image
    of IMAGE_FORMATS, is damaged or cut short, has more than MAX_PIXELS, or pixels of another kind (32-bit numbers).
    """
    check_readable(path)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise too_large(path, image.width, image.height)
            image.load()
            rgb = _rgb(path, image)
            turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except VideoError:
        raise
    except Image.UnidentifiedImageError as error:
        raise VideoError(path, "is not an image: its data is in no known image format") from error
    except MemoryError as error:
        raise VideoError(path, "cannot be decoded: it needs more memory than there is") from error
    except Exception as error:  # what Pillow's decoders raise on damaged bytes is not listed anywhere
        raise VideoError(path, f"cannot be decoded: {str(error) or type(error).__name__}") from error
    return rgb if turn is None else np.asarray(Image.fromarray(rgb).transpose(turn))


def _rgb(path: str | Path, image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise VideoError(path, "has pixels of 32 bits, whose range is not known; convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _composited(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _on_black(frame: av.VideoFrame) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(_composited(frame.to_ndarray(format="rgba")), format="rgb24")


def _composited(rgba: np.ndarray) -> np.ndarray:
    wide = rgba.astype(np.uint16)
    return ((wide[..., :3] * wide[..., 3:] + 127) // 255).astype(np.uint8)
