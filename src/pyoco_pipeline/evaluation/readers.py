"""One pass over clips: what each extractor reads is streamed into statistics and a few numbers per clip."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from pyoco_pipeline.data.clips import CaptionedClip
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.extractors import Digits3D, Lite0
from pyoco_pipeline.evaluation.published.base import PublishedExtractor
from pyoco_pipeline.evaluation.scores import clip_consistency, motion_magnitude
from pyoco_pipeline.evaluation.statistics import FeatureStatistics

KEPT_BYTES = 256 << 20  # of one set's features; more are only summed up
FEATURES = "features"


@dataclass
class Reading:
    """What one extractor reads in one set of clips. Parts can be merged exactly.

    count: clips; statistics: of their features; per_clip: name -> parts (n, ...) in the order of the clips, among them
    `features` (n, vectors of a clip, D) where they were asked for and fit in KEPT_BYTES
    """

    count: int = 0
    statistics: FeatureStatistics | None = None
    per_clip: dict[str, list[np.ndarray]] = field(default_factory=dict)
    features_dropped: bool = False

    def merge(self, other: Reading) -> Reading:
        """Add what `other` has read; statistics are those of one pass over both."""
        self.count += other.count
        if other.statistics is not None:
            self.statistics = self.statistics or FeatureStatistics(other.statistics.dim)
            self.statistics.merge(other.statistics)
        for name, parts in other.per_clip.items():
            self.per_clip.setdefault(name, []).extend(parts)
        self.features_dropped |= other.features_dropped
        self._limit()
        return self

    def stacked(self, name: str) -> np.ndarray:
        """(N, ...) of what is kept under a name."""
        return np.concatenate(self.per_clip[name])

    @property
    def features(self) -> np.ndarray | None:
        """(N, vectors of a clip, D), None where they were not kept."""
        return self.stacked(FEATURES) if FEATURES in self.per_clip else None

    def _limit(self) -> None:
        size = sum(part.nbytes for part in self.per_clip.get(FEATURES, ()))
        if self.features_dropped or size > KEPT_BYTES:
            self.per_clip.pop(FEATURES, None)
            self.features_dropped = True


class Reader(Protocol):
    """An extractor and what is taken from it. read: (n, vectors of a clip, D) features or None, and arrays (n, ...)."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str | None: ...
    @property
    def keep(self) -> bool:
        """Whether the features themselves are."""
        ...

    def read(
        self, videos: np.ndarray, captions: Sequence[str]
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray]]: ...


@dataclass
class DigitsReader:
    """Every `stride`-th frame, so that digits move as far from one to the next as those of Digits3D's training."""

    extractor: Digits3D
    keep: bool = False
    stride: int = 1

    @property
    def name(self) -> str:
        return self.extractor.name

    @property
    def sha256(self) -> str:
        return self.extractor.sha256

    def read(self, videos: np.ndarray, captions: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        features = self.extractor.features(videos[:, :: self.stride])
        return features[:, None], self.extractor.probabilities_of(features)


@dataclass
class FrameReader:
    """Single frames: distances see `num_frames` of a clip, consistency and similarity see all."""

    extractor: Lite0 | PublishedExtractor
    num_frames: int
    arrays: Collection[str] = ()  # of consistency and similarity
    keep: bool = False

    @property
    def name(self) -> str:
        return self.extractor.name

    @property
    def sha256(self) -> str:
        return self.extractor.sha256

    def read(self, videos: np.ndarray, captions: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        num = videos.shape[1]
        seen = frame_positions(num, self.num_frames)
        frames = self.extractor.features(videos if self.arrays else videos[:, seen])
        frames = frames.reshape(len(videos), -1, frames.shape[-1])
        if not self.arrays:
            return frames, {}
        arrays = {}
        if "consistency" in self.arrays:
            arrays["consistency"] = clip_consistency(frames)
        if "similarity" in self.arrays:
            arrays["similarity"] = self._similarity(frames, captions)
        return frames[:, seen], arrays

    def _similarity(self, frames: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        text: Any = self.extractor
        return caption_similarity(frames, text.text_features(captions))


@dataclass
class ClipReader:
    """One vector of a whole clip, or class probabilities alone."""

    extractor: PublishedExtractor
    arrays: Collection[str] = ()
    keep: bool = False

    @property
    def name(self) -> str:
        return self.extractor.name

    @property
    def sha256(self) -> str:
        return self.extractor.sha256

    def read(
        self, videos: np.ndarray, captions: Sequence[str]
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        if "probabilities" in self.arrays:
            classifier: Any = self.extractor
            return None, {"probabilities": classifier.probabilities(videos)}
        return self.extractor.features(videos)[:, None], {}


@dataclass
class PixelReader:
    name: str = "luma_bt601"
    sha256: str | None = None
    keep: bool = False

    def read(self, videos: np.ndarray, captions: Sequence[str]) -> tuple[None, dict[str, np.ndarray]]:
        return None, {"motion": motion_magnitude(videos)}


def caption_similarity(frames: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Mean cosine of a clip's frames (N, T, D) with its caption (N, D), in [-1, 1]."""
    f, t = (
        x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        for x in (frames.astype(float), texts)
    )
    return np.einsum("ntd,nd->n", f, t) / f.shape[1]


def frame_positions(num_frames: int, num: int) -> np.ndarray:
    """At most `num` evenly spaced frames: the middles of as many equal parts."""
    num = min(num, num_frames)
    return np.floor((np.arange(num) + 0.5) * num_frames / num).astype(int)


def statistics_of(
    clips: Iterable[CaptionedClip], readers: Mapping[str, Reader], batch_size: int
) -> dict[str, Reading]:
    """What every reader reads in these clips, in one pass; memory grows by a few numbers per clip only.

    A part of the clips can be read by each process and the parts merged (`Reading.merge`). Raises UserError for clips
    that are not uint8 RGB and for features that are not finite.
    """
    readings = {key: Reading() for key in readers}
    clips = iter(clips)
    while batch := list(islice(clips, batch_size)):
        videos = np.stack([item.clip.video for item in batch])  # (N, T, H, W, 3)
        if videos.dtype != np.uint8 or videos.shape[-1] != 3:
            raise UserError(
                f"Clip {batch[0].clip.clip_id} is {videos.dtype} with {videos.shape[-1]} channels, but only "
                "pixels, uint8 RGB, can be scored: decode latents first."
            )
        captions = [item.caption for item in batch]
        for key, reader in readers.items():
            _add(readings[key], reader, videos, captions, batch)
    return readings


def _add(
    reading: Reading,
    reader: Reader,
    videos: np.ndarray,
    captions: Sequence[str],
    batch: Sequence[CaptionedClip],
) -> None:
    features, arrays = reader.read(videos, captions)
    reading.count += len(videos)
    for name, values in arrays.items():
        _check_finite(values, reader, batch)
        reading.per_clip.setdefault(name, []).append(values)
    if features is None:
        return
    _check_finite(features, reader, batch)
    dim = features.shape[-1]
    reading.statistics = reading.statistics or FeatureStatistics(dim)
    reading.statistics.update(features.reshape(-1, dim))
    if reader.keep and not reading.features_dropped:
        reading.per_clip.setdefault(FEATURES, []).append(features)
        reading._limit()


def _check_finite(values: np.ndarray, reader: Reader, batch: Sequence[CaptionedClip]) -> None:
    wrong = ~np.isfinite(values.reshape(len(batch), -1)).all(axis=1)
    if wrong.any():
        raise UserError(
            f"{reader.name} gives values that are not finite for clip {batch[int(wrong.argmax())].clip.clip_id} and "
            f"{int(wrong.sum()) - 1} more of its batch: check its weights."
        )


def to_tensors(reading: Reading) -> dict[str, torch.Tensor]:
    """A reading as tensors for safetensors."""
    tensors = {
        "count": torch.tensor(reading.count),
        "features_dropped": torch.tensor(reading.features_dropped),
    }
    if reading.statistics is not None:
        tensors |= {f"statistics.{k}": v for k, v in reading.statistics.to_tensors().items()}
    return tensors | {
        f"per_clip.{name}": torch.from_numpy(np.ascontiguousarray(reading.stacked(name)))
        for name in reading.per_clip
    }


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> Reading:
    """The inverse of `to_tensors`, exact."""

    def below(prefix: str) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }

    statistics = below("statistics.")
    return Reading(
        int(tensors["count"]),
        FeatureStatistics.from_tensors(statistics) if statistics else None,
        {name: [value.numpy()] for name, value in below("per_clip.").items()},
        bool(tensors["features_dropped"]),
    )
