"""The protocol: which clips are compared with which, by what, and what is recorded beside every number.

Real clips of the reference's training split are drawn by the seed into two disjoint sets: the reference, and
as many held-out clips as were generated. The held-out clips are measured exactly as the generated ones, which
gives the floor: what a perfect generator would score at this count.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import CLASSES, MIN_FRAMES
from pyoco_pipeline.evaluation.extractors import Digits3D, Lite0
from pyoco_pipeline.evaluation.frechet import distance_of_statistics
from pyoco_pipeline.evaluation.inception_score import inception_score
from pyoco_pipeline.evaluation.scores import caption_accuracy, clip_consistency, whole_caption_accuracy
from pyoco_pipeline.evaluation.settings import MIN_CLIPS, EvaluateSettings, MetricName
from pyoco_pipeline.evaluation.statistics import FeatureStatistics

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
METRICS: tuple[MetricName, ...] = get_args(MetricName)
DIGITS_METRICS = ("fvd_digits3d", "is_digits3d", "caption_accuracy")
DIGITS_KIND = "moving_digits"
REFERENCE_SPLIT = "train"
MIN_CLIPS_PER_SPLIT = 100  # of the inception score: smaller splits cannot show all classes


def evaluate_clips(
    generated: ClipStore,
    reference: ClipStore,
    settings: EvaluateSettings,
    device: str | torch.device = "cpu",
    *,
    digits3d_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Measure generated clips against real ones; the result can be written as JSON.

    generated: all its splits are used; reference: only its training split. digits3d_folder: Digits3D's
    weights, by default those of the package. Metrics that do not apply to the clips are in `refused` with the
    reason. Raises UserError when the two stores hold clips of different shape or rate, when either holds too
    few clips, and when a metric that does not apply was asked for by name.
    """
    _check_comparable(generated, reference)
    held_out, kept = split_reference(reference, sum(generated.manifest.counts.values()), settings)
    refused = _refusals(generated, reference)
    if settings.metrics == "auto":
        wanted = [name for name in METRICS if name not in refused]
    else:
        wanted = list(settings.metrics)
        refused = {name: reason for name, reason in refused.items() if name in wanted}
        if refused:
            raise UserError("; ".join(f"evaluate.metrics: {n}: {r}" for n, r in refused.items()))

    digits = Digits3D(digits3d_folder, device) if set(wanted) & set(DIGITS_METRICS) else None
    lite = Lite0(device) if set(wanted) - set(DIGITS_METRICS) else None
    all_frames = "temporal_consistency" in wanted
    comparison = _Comparison(
        fake=_measure(generated.clips(), digits, lite, settings, all_frames=all_frames),
        held_out=_measure(_chosen(reference, held_out), digits, lite, settings, all_frames=all_frames),
        real=_measure(
            _chosen(reference, kept),
            digits if "fvd_digits3d" in wanted else None,
            lite if "fid_lite0" in wanted else None,
            settings,
            all_frames=False,
        ),
        digits=digits,
        lite=lite,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "metrics": {name: comparison.entry(name) for name in wanted},
        "refused": refused,
        "generated_sha256": generated.manifest.sha256,
        "reference_sha256": reference.manifest.sha256,
        "seed": settings.seed,
    }


def _check_comparable(generated: ClipStore, reference: ClipStore) -> None:
    first, second = generated.manifest, reference.manifest
    sizes = sorted({(shard.height, shard.width) for shard in reference.shards(REFERENCE_SPLIT)})
    if len(sizes) > 1:
        raise UserError(
            f"{reference.folder} has clips of {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}, and a distance needs "
            "one: evaluate against clips that were ingested without ingest.buckets."
        )
    for what in ("num_frames", "height", "width", "fps"):
        a, b = getattr(first, what), getattr(second, what)
        if a != b:
            raise UserError(
                f"{generated.folder} has {what} {a}, but {reference.folder} has {b}: a distance between them "
                "would measure that difference. Ingest or generate clips with the same frames, size and fps."
            )


def _refusals(generated: ClipStore, reference: ClipStore) -> dict[str, str]:
    refused = {}
    others = [s for s in (generated, reference) if s.manifest.kind != DIGITS_KIND]
    frames = generated.manifest.num_frames
    if others:
        kind = others[0].manifest.kind
        reason = f"Digits3D reads moving digits only, and {others[0].folder} holds clips of kind {kind}."
        refused = dict.fromkeys(DIGITS_METRICS, reason)
    elif frames < MIN_FRAMES:
        reason = f"Digits3D needs clips of at least {MIN_FRAMES} frames, and these have {frames}."
        refused = dict.fromkeys(DIGITS_METRICS, reason)
    elif missing := [k for k in CLASSES if k not in next(generated.clips()).clip.attributes]:
        refused["caption_accuracy"] = (
            f"The clips in {generated.folder} do not say their {', '.join(missing)}."
        )
    if frames < 2:
        refused["temporal_consistency"] = "A clip of one frame has no adjacent frames."
    return refused


def split_reference(
    reference: ClipStore, num_generated: int, settings: EvaluateSettings
) -> tuple[set[int], set[int]]:
    """Positions in the training split of the held-out real clips, and of the reference clips: disjoint."""
    total = reference.manifest.counts.get(REFERENCE_SPLIT, 0)
    if num_generated < MIN_CLIPS:
        raise UserError(
            f"{num_generated} generated clips are too few to evaluate: generate at least {MIN_CLIPS}, "
            "better hundreds."
        )
    if total < 2 * MIN_CLIPS:
        raise UserError(
            f"{reference.folder} holds {total} clips of split {REFERENCE_SPLIT!r}, and the comparison needs "
            f"at least {2 * MIN_CLIPS}: ingest more clips."
        )
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(total)
    num_held_out = min(num_generated, total // 2)
    files = _files(reference)
    if len(set(files)) > 1:
        # Neighbouring seconds of one video on both sides would make the floor that of near-duplicates.
        rank = {file: i for i, file in enumerate(rng.permutation(sorted(set(files))))}
        order = np.array(sorted(order, key=lambda position: rank[files[position]]))
        last_file = files[order[num_held_out - 1]]
        first = next((i for i, p in enumerate(order) if rank[files[p]] > rank[last_file]), None)
        if first is None or total - first < MIN_CLIPS:  # a file is then on both sides: `entry` says so
            first = num_held_out
    else:
        first = num_held_out
    kept = order[first : first + settings.max_reference_clips]
    return set(order[:num_held_out].tolist()), set(kept.tolist())


def _files(reference: ClipStore) -> list[str]:
    """The video that each training clip was cut from; rendered clips have none."""
    if reference.manifest.kind == DIGITS_KIND:
        return []
    return [item.clip.attributes.get("path", "") for item in reference.clips(REFERENCE_SPLIT)]


def _chosen(store: ClipStore, positions: set[int]) -> Iterator[CaptionedClip]:
    clips = islice(store.clips(REFERENCE_SPLIT), max(positions) + 1)
    return (item for i, item in enumerate(clips) if i in positions)


@dataclass
class _Measured:
    """What was extracted from one set of clips; memory grows by a few numbers per clip only."""

    num: int = 0
    video: FeatureStatistics = field(default_factory=lambda: FeatureStatistics(Digits3D.dim))
    frame: FeatureStatistics = field(default_factory=lambda: FeatureStatistics(Lite0.dim))
    probabilities: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in CLASSES})
    attributes: list[dict[str, str]] = field(default_factory=list)
    consistency: list[np.ndarray] = field(default_factory=list)

    def stacked(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(parts) for name, parts in self.probabilities.items()}


def _measure(
    clips: Iterable[CaptionedClip],
    digits: Digits3D | None,
    lite: Lite0 | None,
    settings: EvaluateSettings,
    *,
    all_frames: bool,
) -> _Measured:
    measured = _Measured()
    clips = iter(clips)
    while batch := list(islice(clips, settings.batch_size)):
        videos = np.stack([item.clip.video for item in batch])  # (N, T, H, W, 3)
        measured.num += len(videos)
        measured.attributes += [item.clip.attributes for item in batch]
        if digits:
            features = digits.features(videos)
            measured.video.update(features)
            for name, p in digits.probabilities_of(features).items():
                measured.probabilities[name].append(p)
        if lite:
            num_frames = videos.shape[1]
            seen = frame_positions(num_frames, settings.fid_frames)
            frames = lite.features(videos if all_frames else videos[:, seen])
            if all_frames:
                frames = frames.reshape(len(videos), num_frames, lite.dim)
                measured.consistency.append(clip_consistency(frames))
                frames = frames[:, seen].reshape(-1, lite.dim)
            measured.frame.update(frames)
    return measured


def frame_positions(num_frames: int, num: int) -> np.ndarray:
    """At most `num` evenly spaced frames: the middles of as many equal parts."""
    num = min(num, num_frames)
    return np.floor((np.arange(num) + 0.5) * num_frames / num).astype(int)


@dataclass
class _Comparison:
    fake: _Measured
    held_out: _Measured
    real: _Measured
    digits: Digits3D | None
    lite: Lite0 | None

    def entry(self, name: MetricName) -> dict[str, Any]:
        """One metric with everything that is needed to read it."""
        make = {
            "fvd_digits3d": lambda: self._distance("video"),
            "fid_lite0": lambda: self._distance("frame"),
            "is_digits3d": self._inception_score,
            "caption_accuracy": self._caption_accuracy,
            "temporal_consistency": self._temporal_consistency,
        }
        entry = make[name]()
        extractor = self.digits if name in DIGITS_METRICS else self.lite
        assert extractor is not None
        counts = {
            "num_generated": self.fake.num,
            "num_held_out": self.held_out.num,
            "num_reference": self.real.num,
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
        }
        warnings = entry.pop("warnings", [])
        if self.held_out.num < self.fake.num:
            warnings.append(
                f"{self.fake.num} clips were generated but only {self.held_out.num} real ones could be held "
                "out, so the values of real clips are at another count: ingest more clips or generate fewer"
            )
        if self._files(self.held_out) & self._files(self.real):
            warnings.append(
                "held-out and reference clips are cut from the same videos, so the values of real clips are "
                "better than unseen videos would get: ingest more videos"
            )
        for text in warnings:
            logger.warning("%s: %s", name, text)
        return {**entry, **counts, **({"warning": "; ".join(warnings)} if warnings else {})}

    @staticmethod
    def _files(measured: _Measured) -> set[str]:
        return {attributes["path"] for attributes in measured.attributes if "path" in attributes}

    def _distance(self, what: Literal["video", "frame"]) -> dict[str, Any]:
        fake, held_out, real = (getattr(m, what) for m in (self.fake, self.held_out, self.real))
        fewest = min(fake.count, real.count)
        entry: dict[str, Any] = {
            "value": distance_of_statistics(fake, real),
            "floor": distance_of_statistics(held_out, real),
            "num_samples": fake.count,
        }
        if fewest <= fake.dim:
            entry["warnings"] = [
                f"{fewest} samples do not span the {fake.dim} feature dimensions: compare values at this "
                "very count only, and beside the floor"
            ]
        return entry

    def _inception_score(self) -> dict[str, Any]:
        splits = min(max(self.fake.num // MIN_CLIPS_PER_SPLIT, 1), 10)
        value, deviation = inception_score(self.fake.stacked()["digit"], splits)
        real, _ = inception_score(self.held_out.stacked()["digit"], min(splits, self.held_out.num))
        return {"value": value, "standard_deviation": deviation, "real": real, "splits": splits}

    def _caption_accuracy(self) -> dict[str, Any]:
        probabilities = self.fake.stacked()
        per_attribute = caption_accuracy(probabilities, self.fake.attributes)
        real = caption_accuracy(self.held_out.stacked(), self.held_out.attributes)
        return {
            **whole_caption_accuracy(probabilities, self.fake.attributes),
            "real": whole_caption_accuracy(self.held_out.stacked(), self.held_out.attributes)["value"],
            "attributes": {k: {**entry, "real": real[k]["value"]} for k, entry in per_attribute.items()},
        }

    def _temporal_consistency(self) -> dict[str, Any]:
        fake, real = np.concatenate(self.fake.consistency), np.concatenate(self.held_out.consistency)
        return {
            "value": float(fake.mean()),
            "standard_error": float(fake.std(ddof=1) / math.sqrt(len(fake))),
            "real": float(real.mean()),
        }
