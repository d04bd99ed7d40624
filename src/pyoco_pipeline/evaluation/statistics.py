"""Mean and covariance of features in one pass (Chan, Golub and LeVeque, 1979), in float64."""

from __future__ import annotations

import numpy as np
import torch

Features = np.ndarray | torch.Tensor


class FeatureStatistics:
    """Streaming mean and covariance of `dim`-dimensional features; parts can be merged exactly."""

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}, expected at least 1")
        self.dim = dim
        self.count = 0
        self.mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))  # sum of (x - mean)(x - mean)^T

    def update(self, features: Features) -> FeatureStatistics:
        """Add features (N, dim). Raises ValueError for another shape or a value that is not finite."""
        batch = (
            features.detach().cpu().numpy() if isinstance(features, torch.Tensor) else np.asarray(features)
        )
        if batch.ndim != 2 or batch.shape[1] != self.dim:
            raise ValueError(f"features have shape {batch.shape}, expected (N, {self.dim})")
        batch = batch.astype(np.float64)
        if not np.isfinite(batch).all():
            raise ValueError(
                f"{(~np.isfinite(batch)).any(axis=1).sum()} of {len(batch)} features are not finite"
            )
        if len(batch):
            mean = batch.mean(axis=0)
            centred = batch - mean
            self._add(len(batch), mean, centred.T @ centred)
        return self

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Add what `other` has seen; the result is that of one pass over both."""
        if other.dim != self.dim:
            raise ValueError(f"statistics of {other.dim} dimensions cannot be merged into {self.dim}")
        self._add(other.count, other.mean, other._scatter)
        return self

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        if total == 0:
            return
        delta = mean - self.mean
        shift = delta * np.sqrt(self.count * count / total)
        self._scatter += scatter
        self._scatter += np.outer(shift, shift)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """(dim, dim) covariance divided by count - ddof. Raises ValueError with too few samples."""
        if self.count <= ddof:
            raise ValueError(
                f"a covariance with ddof={ddof} needs more than {ddof} samples, got {self.count}"
            )
        return self._scatter / (self.count - ddof)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The state as tensors for safetensors."""
        return {
            "count": torch.tensor(self.count),
            "mean": torch.from_numpy(self.mean.copy()),
            "scatter": torch.from_numpy(self._scatter.copy()),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> FeatureStatistics:
        """The inverse of `to_tensors`, exact."""
        statistics = cls(len(tensors["mean"]))
        statistics.count = int(tensors["count"])
        statistics.mean = tensors["mean"].numpy().copy()
        statistics._scatter = tensors["scatter"].numpy().copy()
        return statistics
