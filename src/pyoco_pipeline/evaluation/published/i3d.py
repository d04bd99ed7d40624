"""I3D (Carreira and Zisserman, 2017) with pytorch-i3d's key names, for the FVD of VideoGPT and TATS."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyoco_pipeline.evaluation.published.base import PublishedExtractor
from pyoco_pipeline.evaluation.published.weights import Published, Weights, fill, load_state_dict
from pyoco_pipeline.evaluation.resize import bilinear

FILE = Published(
    "i3d_pretrained_400.pt",
    "TATS (tats/fvd, commit 03bbce1)",
    git_blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
)
LOGITS = 400  # classes of Kinetics-400
SIDE = 224
MIN_FRAMES = 9  # fewer leave less than the two time steps that are pooled last
# Of the batch norms in TATS's network; pytorch-i3d's own, for its own weights, has 1e-3.
TATS_EPS = 1e-5

# Channels of a block: 1x1; 1x1 and 3x3x3; 1x1 and 3x3x3; pool and 1x1.
_MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def _pad_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """TensorFlow's "same" padding with zeros: the odd element comes last."""
    pads: list[int] = []
    for length, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(k - s if length % s == 0 else k - length % s, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads) if any(pads) else x


class _Unit(nn.Module):
    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, *, eps: float, last: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        # At stride 1 the padding is the same on both sides, which the convolution does itself without a copy.
        padding = kernel // 2 if stride == 1 else 0
        self.conv3d = nn.Conv3d(c_in, c_out, kernel, stride, padding=padding, bias=last)
        if not last:
            self.bn = nn.BatchNorm3d(c_out, eps=eps)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1, 1):
            x = _pad_same(x, self.kernel, self.stride)
        x = self.conv3d(x)
        return x if self.last else F.relu(self.bn(x), inplace=True)


class _MaxPool(nn.Module):
    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # After a ReLU the zeros of the padding are the minimum, so padding by the pool itself is the same.
        if self.stride == (1, 1, 1):
            return F.max_pool3d(x, self.kernel, self.stride, tuple(k // 2 for k in self.kernel))
        return F.max_pool3d(_pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    def __init__(self, c_in: int, widths: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.b0 = _Unit(c_in, widths[0], eps=eps)
        self.b1a = _Unit(c_in, widths[1], eps=eps)
        self.b1b = _Unit(widths[1], widths[2], 3, eps=eps)
        self.b2a = _Unit(c_in, widths[3], eps=eps)
        self.b2b = _Unit(widths[3], widths[4], 3, eps=eps)
        self.b3a = _MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = _Unit(c_in, widths[5], eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(parts, dim=1)


class InceptionI3d(nn.Module):
    """RGB clips (N, 3, T, 224, 224) in [-1, 1], T of at least 9, to logits (N, 400), averaged over time.

    eps: of the batch norms, 1e-5 for the weights that TATS converted, 1e-3 for those of pytorch-i3d.
    """

    def __init__(self, eps: float = TATS_EPS, num_classes: int = LOGITS) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2, eps=eps)
        self.MaxPool3d_2a_3x3 = _MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = _Unit(64, 64, eps=eps)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3, eps=eps)
        self.MaxPool3d_3a_3x3 = _MaxPool((1, 3, 3), (1, 2, 2))
        for name in ("Mixed_3b", "Mixed_3c"):
            setattr(self, name, _Mixed(*_MIXED[name], eps))
        self.MaxPool3d_4a_3x3 = _MaxPool((3, 3, 3), (2, 2, 2))
        for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
            setattr(self, name, _Mixed(*_MIXED[name], eps))
        self.MaxPool3d_5a_2x2 = _MaxPool((2, 2, 2), (2, 2, 2))
        for name in ("Mixed_5b", "Mixed_5c"):
            setattr(self, name, _Mixed(*_MIXED[name], eps))
        self.logits = _Unit(1024, num_classes, eps=eps, last=True)

    def forward(self, x: Tensor) -> Tensor:
        for name, stage in self.named_children():  # in the order of definition
            if name != "logits":
                x = stage(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.logits(x).mean(dim=2).flatten(1)


class I3DTats(PublishedExtractor):
    """Averaged logits, 400-d, of a clip of at least 9 frames.

    Input: frames squashed to 224x224, bilinear about pixel centres without antialiasing, in [-1, 1]. The covariance
    of TATS's FVD is divided by N - 1: `statistics.covariance(ddof=1)`.
    """

    title: ClassVar[str] = "i3d_tats"
    media: ClassVar[Literal["video", "frame"]] = "video"
    min_frames = MIN_FRAMES

    def __init__(self, weights: Weights, device: str | torch.device = "cpu", **options: Any) -> None:
        net = InceptionI3d()
        fill(net, load_state_dict(weights), weights)
        if torch.device(device).type == "cuda":
            net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        super().__init__(net, weights, LOGITS, device, **options)

    def prepare(self, videos: Tensor) -> Tensor:
        n, t = videos.shape[:2]
        frames = bilinear(videos.flatten(0, 1), (SIDE, SIDE)).unflatten(0, (n, t))
        x = 2.0 * frames.transpose(1, 2) / 255.0 - 1.0
        layout = torch.channels_last_3d if x.is_cuda else torch.contiguous_format
        return x.contiguous(memory_format=layout)

    def _features_of(self, x: Tensor) -> Tensor:
        return self._net(x)
