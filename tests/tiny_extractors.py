"""The smallest extractors that behave as the published ones do, in place of files of hundreds of megabytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.evaluation.published.base import PublishedExtractor
from pyoco_pipeline.evaluation.published.weights import Weights

DIM = 5
MEDIA = {
    "i3d_torchscript": "video",
    "i3d_tats": "video",
    "c3d_ucf101": "video",
    "inception_v3": "frame",
    "clip_vitb32": "frame",
    "videomae_ssv2": "video",
}


def given(*names: str) -> dict[str, dict[str, str]]:
    """`evaluate.extractors` of these; the fixture `tiny` opens them."""
    return {name: {"path": "tiny"} for name in names}


def use_tiny_extractors(monkeypatch: pytest.MonkeyPatch) -> dict[str, TinyExtractor]:
    """Extractors opened by name are tiny ones; those that are put in the mapping first come as they are."""
    opened: dict[str, TinyExtractor] = {}

    def open_tiny(name: str, *_: Any, **__: Any) -> TinyExtractor:
        return opened.setdefault(name, TinyExtractor(name))

    monkeypatch.setattr("pyoco_pipeline.evaluation.wanted.open_extractor", open_tiny)
    return opened


def videos(store: ClipStore, positions: Iterable[int]) -> np.ndarray:
    """(N, T, H, W, 3) of the clips at these positions, in stored order."""
    items = list(store.clips())
    return np.stack([items[i].clip.video for i in sorted(positions)])


class TinyExtractor(PublishedExtractor):
    """Random projections of frames of 4x4 pixels; counts the clips that it has read."""

    def __init__(self, title: str, *, verified: bool | None = True, seed: int = 0, **options: Any) -> None:
        self.title, self.media = title, MEDIA[title]
        torch.manual_seed(seed)
        weights = Weights(Path("tiny"), f"{seed:064x}", verified)
        super().__init__(nn.Linear(48, DIM), weights, DIM, **options)
        self.clips_read = 0
        self.broken = False

    def prepare(self, videos: Tensor) -> Tensor:
        self.clips_read += len(videos)
        small = nn.functional.adaptive_avg_pool2d(videos.flatten(0, 1).permute(0, 3, 1, 2).float(), 4)
        frames = small.flatten(1) / 255
        return frames if self.media == "frame" else frames.unflatten(0, videos.shape[:2]).mean(1)

    def _features_of(self, x: Tensor) -> Tensor:
        return self._net(x).tanh()

    def features(self, videos: Any) -> np.ndarray:
        features = super().features(videos)
        return np.full_like(features, np.nan) if self.broken else features

    def probabilities(self, videos: Any) -> np.ndarray:
        """Which of the three colours is the brightest; the other classes never are."""

        def read(x: Tensor) -> Tensor:
            colours = x.unflatten(1, (3, 16)).mean(2)
            return nn.functional.pad(60 * colours, (0, DIM - 3), value=-9).softmax(1)

        return self._batched(videos, read, DIM)

    def text_features(self, captions: Any) -> np.ndarray:
        return np.array([[len(c) % 7, c.count("e"), 1, -1, 2] for c in captions], np.float32)


def noise_store(
    folder: Path,
    num: int,
    *,
    split: str = "train",
    frames: int = 16,
    size: int = 8,
    fps: float = 25.0,
    seed: int = 0,
    per_video: int = 1,
    captions: tuple[str, ...] = ("a cat",),
    dtype: str = "uint8",
) -> ClipStore:
    """A store of random clips of as many videos as needed."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(num):
        level = rng.integers(40, 200, (1, 1, 1, 3))
        video = (level + rng.integers(0, 50, (frames, size, size, 3))).astype(dtype)
        clip = Clip(f"{i:05d}", video, {"path": f"v{i // per_video}.avi"})
        items.append(CaptionedClip(clip, captions[i % len(captions)], split))
    write_clips(folder, items, kind="video_folder", shape=(frames, size, size), fps=fps, dtype=dtype)
    return ClipStore(folder)
