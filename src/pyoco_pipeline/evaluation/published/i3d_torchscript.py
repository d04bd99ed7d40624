"""I3D as the TorchScript file of StyleGAN-V's FVD protocol (Skorokhodov et al., 2022)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.published.base import PublishedExtractor
from pyoco_pipeline.evaluation.published.i3d import LOGITS, MIN_FRAMES
from pyoco_pipeline.evaluation.published.weights import Published, Weights, read_bytes

FILE = Published(
    "i3d_torchscript.pt",
    "StyleGAN-V",
    sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
)


class I3DTorchScript(PublishedExtractor):
    """400-d outputs before the softmax, of a clip of at least 9 frames.

    Input: frames in [0, 255], of any size. The file itself squashes them to 224x224 and scales them to [-1, 1]:
    it is called with `rescale=True, resize=True, return_features=True`. Always in float32. The covariance of
    StyleGAN-V's FVD is divided by N: `statistics.covariance(ddof=0)`.
    """

    title: ClassVar[str] = "i3d_torchscript"
    media: ClassVar[Literal["video", "frame"]] = "video"
    min_frames = MIN_FRAMES

    def __init__(self, weights: Weights, device: str | torch.device = "cpu", **options: Any) -> None:
        if options.get("precision", "float32") != "float32":
            raise ValueError("the TorchScript file of I3D runs in float32 only")
        super().__init__(load_i3d_torchscript(weights), weights, LOGITS, device, **options)

    def prepare(self, videos: Tensor) -> Tensor:
        return videos.permute(0, 4, 1, 2, 3).float().contiguous()

    def _features_of(self, x: Tensor) -> Tensor:
        try:
            return self._net(x, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:  # what TorchScript raises for its own signature and shapes
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{self.weights.path} cannot be called as StyleGAN-V's I3D on clips of shape {tuple(x.shape)} "
                f"({lines[-1].strip()}): name i3d_torchscript.pt."
            ) from error


def load_i3d_torchscript(weights: Weights) -> nn.Module:
    """The file as a module in eval mode. TorchScript is code: load it only after its hash was checked.

    Raises UserError where it is cut short or no TorchScript file.
    """
    try:
        return torch.jit.load(read_bytes(weights), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{weights.path} cannot be read as TorchScript: it is cut short or another file; name i3d_torchscript.pt "
            "of StyleGAN-V."
        ) from error
