"""The ways of resizing that published metrics are defined by; a metric is not itself with another one.

All take frames as they are stored, uint8 (M, H, W, 3), and give float32 (M, 3, height, width) in [0, 255]. They
stretch to the size that is asked for; `cover_size` and `centre_crop` keep the aspect ratio.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Resize = Callable[[Tensor, tuple[int, int]], Tensor]


def to_channels_first(frames: Tensor) -> Tensor:
    """uint8 (M, H, W, 3) to float32 (M, 3, H, W)."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}, expected uint8 (M, H, W, 3)")
    return frames.permute(0, 3, 1, 2).float()


def bilinear(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear about pixel centres, without antialiasing: `interpolate(align_corners=False)`, as TATS's I3D."""
    x = to_channels_first(frames).contiguous()
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def bilinear_antialiased(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear about pixel centres, the triangle widened when shrinking, as PIL and torchvision do."""
    x = to_channels_first(frames).contiguous()
    return (
        x
        if x.shape[2:] == size
        else F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
    )


def bilinear_corners(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with the corner pixels on the corner pixels, without antialiasing, as Chainer's `resize_images`."""
    x = to_channels_first(frames).contiguous()
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def bilinear_tf1(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear about the top left corners, without antialiasing, as TensorFlow 1's `resize_bilinear`.

    Output pixel i reads position i * in / out. Rows and columns are mixed in TensorFlow's order.
    """
    x = to_channels_first(frames)
    (top, bottom, v), (left, right, u) = (_tf1_taps(x.shape[2 + k], size[k], x.device) for k in (0, 1))
    upper, lower = x[:, :, top], x[:, :, bottom]
    upper = upper[..., left] + (upper[..., right] - upper[..., left]) * u
    lower = lower[..., left] + (lower[..., right] - lower[..., left]) * u
    return upper + (lower - upper) * v[:, None]


def _tf1_taps(length: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    # The scale is rounded to float32 first, as TensorFlow does: in float64 some pixels differ.
    at = torch.arange(target, dtype=torch.float32, device=device) * float(np.float32(length / target))
    low = at.long()
    return low, (low + 1).clamp(max=length - 1), at - low


def pil_bicubic(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's bicubic with antialiasing, rounded to 8 bits as Pillow does, as CLIP and clean-fid's CLIP-FID."""
    to_channels_first(frames[:0])  # checks dtype and shape
    height, width = size
    images = frames.cpu().numpy()
    if images.shape[1:3] != size:
        images = np.stack(
            [
                np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
                for image in images
            ]
        )
    return torch.from_numpy(np.array(images)).to(frames.device).permute(0, 3, 1, 2).float()


RESIZES: dict[str, Resize] = {
    "bilinear": bilinear,
    "bilinear_antialiased": bilinear_antialiased,
    "bilinear_corners": bilinear_corners,
    "bilinear_tf1": bilinear_tf1,
    "pil_bicubic": pil_bicubic,
}


def cover_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The size whose short side is `side`, the long one rounded down, as torchvision's `Resize(side)`."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def centre_crop(x: Tensor, side: int) -> Tensor:
    """(..., H, W) to (..., side, side) about the centre; half a pixel is rounded to even, as torchvision does."""
    height, width = x.shape[-2:]
    if min(height, width) < side:
        raise ValueError(f"pictures of {height}x{width} cannot be cropped to {side}x{side}")
    top, left = round((height - side) / 2), round((width - side) / 2)
    return x[..., top : top + side, left : left + side]
