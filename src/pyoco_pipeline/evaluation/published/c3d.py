"""C3D (Tran et al., 2015), trained on Sports-1M and fine-tuned on UCF-101: TGAN2's port, for the inception score."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.published.base import PublishedExtractor, Videos
from pyoco_pipeline.evaluation.published.weights import (
    Published,
    Weights,
    fill,
    load_state_dict,
    read_bytes,
)
from pyoco_pipeline.evaluation.resize import bilinear_corners

FILE = Published("conv3d_deepnetA_ucf.npz", "TGAN2 (release v1.0)")
MEAN_FILE = "mean2.npz"  # of the same release; looked for beside the weights
CLASSES = 101  # of UCF-101
FEATURES = 4096
FRAMES = 16
SIDE = 112
_MEAN_SHAPE = (3, 16, 128, 171)
# TGAN2 cuts the mean at 8 in both directions, not about the centre of its 171 columns.
_MEAN_OFFSET = 8
_CONVOLUTIONS = {
    "conv1a": (3, 64),
    "conv2a": (64, 128),
    "conv3a": (128, 256),
    "conv3b": (256, 256),
    "conv4a": (256, 512),
    "conv4b": (512, 512),
    "conv5a": (512, 512),
    "conv5b": (512, 512),
}
_POOLED = ("conv1a", "conv2a", "conv3b", "conv4b", "conv5b")  # by 2 after these; the first over space only


class C3DNet(nn.Module):
    """BGR clips (N, 3, 16, 112, 112) in [0, 255] to logits (N, 101). mean: (3, 16, 112, 112), taken off first."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, (c_in, c_out) in _CONVOLUTIONS.items():
            setattr(self, name, nn.Conv3d(c_in, c_out, 3, padding=1))
        self.fc6 = nn.Linear(512 * 4 * 4, FEATURES)
        self.fc7 = nn.Linear(FEATURES, FEATURES)
        self.fc8 = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIDE, SIDE), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """Outputs (N, 4096) of fc7 after its ReLU."""
        x = x - self.mean
        for name in _CONVOLUTIONS:
            x = F.relu(getattr(self, name)(x), inplace=True)
            if name in _POOLED:
                # 7 pixels become 4: Chainer's pools cover the border.
                x = F.max_pool3d(x, (1 if name == "conv1a" else 2, 2, 2), ceil_mode=True)
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc8(self.features(x))


class C3DUcf101(PublishedExtractor):
    """fc7 features, 4096-d, and the class probabilities of UCF-101, of clips of exactly 16 frames.

    Input: frames squashed to 112x112, bilinear with aligned corners and without antialiasing, BGR in [0, 255], less
    the mean clip of Sports-1M (rows and columns 8 to 119 of its 128x171). TGAN2 scales uint8 by (x - 128) / 128 and
    undoes it here exactly; ports that scale by 255 give clips that are 1/255 brighter.

    weights: TGAN2's npz, with mean2.npz beside it, or a state dict (`conv1a.weight` ... `fc8.bias` and the mean clip
    as `mean` (3, 16, 128, 171)).
    """

    title: ClassVar[str] = "c3d_ucf101"
    media: ClassVar[Literal["video", "frame"]] = "video"
    min_frames = max_frames = FRAMES

    def __init__(self, weights: Weights, device: str | torch.device = "cpu", **options: Any) -> None:
        super().__init__(load_c3d(weights), weights, FEATURES, device, **options)

    def probabilities(self, videos: Videos) -> np.ndarray:
        """Softmax probabilities (N, 101), float32, for the inception score."""
        return self._batched(videos, lambda x: self._net(x).float().softmax(dim=1), CLASSES)

    def prepare(self, videos: Tensor) -> Tensor:
        n, t = videos.shape[:2]
        frames = bilinear_corners(videos.flatten(0, 1), (SIDE, SIDE)).unflatten(0, (n, t))
        return frames.flip(2).transpose(1, 2).contiguous()

    def _features_of(self, x: Tensor) -> Tensor:
        return self._net.features(x)  # type: ignore[operator]


def load_c3d(weights: Weights) -> C3DNet:
    """The network with the weights of a Chainer npz or a state dict.

    Raises UserError for a file that is cut short or of another network, and where the mean clip is missing.
    """
    if weights.path.suffix == ".npz":
        arrays = _read_npz(weights.path, read_bytes(weights))
        state = {_chainer_name(name): torch.from_numpy(value) for name, value in arrays.items()}
        mean_path = weights.path.with_name(MEAN_FILE)
        if not mean_path.is_file():
            raise UserError(
                f"{mean_path} is missing: put {MEAN_FILE} of TGAN2's release beside {weights.path.name}."
            )
        mean = _read_npz(mean_path, mean_path).get("mean")
    else:
        mean_path = weights.path
        state = load_state_dict(weights)
        tensor = state.pop("mean", None)
        mean = None if tensor is None else tensor.numpy()
    if mean is None or mean.size != np.prod(_MEAN_SHAPE):
        found = "no array 'mean'" if mean is None else f"a mean of shape {mean.shape}"
        raise UserError(
            f"{mean_path} holds {found}, expected {_MEAN_SHAPE}: take {MEAN_FILE} of TGAN2's release."
        )
    net = C3DNet()
    fill(net, state, weights)
    cut = slice(_MEAN_OFFSET, _MEAN_OFFSET + SIDE)
    net.mean.copy_(torch.from_numpy(mean.astype(np.float32).reshape(_MEAN_SHAPE)[:, :, cut, cut].copy()))
    return net


def _chainer_name(name: str) -> str:
    layer, _, parameter = name.rpartition("/")
    return f"{layer}.{ {'W': 'weight', 'b': 'bias'}.get(parameter, parameter) }"


def _read_npz(path: Path, file: Any) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
            if strange := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
                raise ValueError(f"{strange[0]} is no array")
            return arrays
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, KeyError) as error:
        first = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"{path} cannot be read as npz arrays ({first}): it is cut short or another file; download it anew."
        ) from error
