"""What all published extractors share: cutting into batches, precision, and checks of what goes in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.published.weights import Weights

Videos = np.ndarray | Tensor
Precision = Literal["float32", "bfloat16"]


class PublishedExtractor(ABC):
    """Clips to feature vectors by one published network.

    name: of the extractor, as results state it; `_other_weights` is appended where the file is not the published
        one, and `_bfloat16` where features are not computed in float32
    sha256: of the weights file; verified: whether that is the published file, None where no hash of it is known
    dim: length D of a feature vector
    media: "video": one vector per clip, features (N, D); "frame": one per frame, (N T, D)
    min_frames, max_frames: clips that the network reads; max_frames None: any longer clip
    batch_size: clips at once; features do not depend on it but for rounding
    """

    title: ClassVar[str]
    media: ClassVar[Literal["video", "frame"]]
    min_frames: int = 1
    max_frames: int | None = None

    def __init__(
        self,
        net: nn.Module,
        weights: Weights,
        dim: int,
        device: str | torch.device = "cpu",
        *,
        batch_size: int = 8,
        precision: Precision = "float32",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self.weights, self.sha256, self.verified = weights, weights.sha256, weights.verified
        self.name = self.title + ("_other_weights" if weights.verified is False else "")
        self.name += "" if precision == "float32" else f"_{precision}"
        self.dim, self.device, self.batch_size, self.precision = (
            dim,
            torch.device(device),
            batch_size,
            precision,
        )
        self._net = net.to(self.device)

    def features(self, videos: Videos) -> np.ndarray:
        """uint8 (N, T, H, W, 3) to float32 (N, D), or (N T, D) for single frames.

        Raises ValueError for another dtype or shape and for clips of a length that the network does not read, and
        UserError where the network gives values that are not finite.
        """
        return self._batched(videos, self._features_of, self.dim)

    @abstractmethod
    def prepare(self, videos: Tensor) -> Tensor:
        """uint8 (N, T, H, W, 3) on the device to the network's input; the class says how."""

    @abstractmethod
    def _features_of(self, x: Tensor) -> Tensor:
        """The network's input to features (M, D)."""

    def _batched(self, videos: Videos, read: Callable[[Tensor], Tensor], dim: int) -> np.ndarray:
        clips = self._check(videos)
        count = len(clips) * (clips.shape[1] if self.media == "frame" else 1)
        if not count:
            return np.empty((0, dim), np.float32)
        # Outputs stay on the device till the end, so that a GPU computes while the next batch is sent.
        outputs = torch.cat([self._read(part, read) for part in clips.split(self.batch_size)])
        if outputs.shape != (count, dim):
            raise UserError(
                f"{self.weights.path} gives outputs of shape {tuple(outputs.shape)} where {self.title} has "
                f"{(count, dim)}: it is another network; name the published file."
            )
        values = outputs.cpu().numpy()
        wrong = int((~np.isfinite(values)).any(axis=1).sum())
        if wrong:
            raise UserError(
                f"{self.name} gives values that are not finite for {wrong} of {count} {self.media}s: the weights in "
                f"{self.weights.path} are damaged, or {self.precision} does not suffice."
            )
        return values

    @torch.inference_mode()
    def _read(self, videos: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        if self.device.type == "cuda" and not videos.is_cuda:
            videos = videos.contiguous().pin_memory()
        x = self.prepare(videos.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return read(x).float()

    def _check(self, videos: Videos) -> Tensor:
        x = torch.as_tensor(videos)
        if x.dtype != torch.uint8 or x.ndim != 5 or x.shape[-1] != 3:
            raise ValueError(f"videos are {x.dtype} {tuple(x.shape)}, expected uint8 (N, T, H, W, 3)")
        num = x.shape[1]
        if num < self.min_frames or (self.max_frames is not None and num > self.max_frames):
            wanted = (
                f"{self.min_frames}" if self.max_frames == self.min_frames else f"at least {self.min_frames}"
            )
            raise ValueError(f"{self.title} reads clips of {wanted} frames, not of {num}")
        return x
