"""From what was read in generated and in real clips to the entries of metrics.json."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pyoco_pipeline.evaluation.confidence import bootstrap_interval, extrapolate, too_few_to_extrapolate
from pyoco_pipeline.evaluation.frechet import distance_of_statistics
from pyoco_pipeline.evaluation.inception_score import inception_score
from pyoco_pipeline.evaluation.kernel_distance import kernel_distance
from pyoco_pipeline.evaluation.metric_table import RESIZE, TABLE, Metric
from pyoco_pipeline.evaluation.protocols import Protocol
from pyoco_pipeline.evaluation.readers import Reader, Reading
from pyoco_pipeline.evaluation.scores import caption_accuracy, whole_caption_accuracy
from pyoco_pipeline.evaluation.settings import EvaluateSettings

logger = logging.getLogger(__name__)

MIN_CLIPS_PER_SPLIT = 100  # of the inception score: smaller splits cannot show all classes
Attributes = Sequence[Mapping[str, str]]


@dataclass
class Side:
    """One set of clips: what every extractor read, by the extractor's name in the table, and what the clips say."""

    num: int
    readings: dict[str, Reading]
    attributes: list[dict[str, str]] = field(default_factory=list)

    def merge(self, other: Side) -> Side:
        """Add the clips that come after; see `Reading.merge`."""
        self.num += other.num
        for key, reading in other.readings.items():
            self.readings[key].merge(reading)
        self.attributes += other.attributes
        return self


@dataclass
class Comparison:
    """Generated clips beside held-out and reference clips. halves: see `reference.Selection`.

    facts: what stands in every entry; warnings: what does too, of all metrics.
    """

    fake: Side
    held_out: Side
    real: Side
    readers: Mapping[str, Reader]
    settings: EvaluateSettings
    protocol: Protocol | None
    facts: dict[str, Any]
    warnings: list[str]
    halves: bool = False

    def entry(self, name: str) -> dict[str, Any]:
        """One metric with everything that is needed to read it."""
        metric = TABLE[name]
        key = metric.extractor or "pixels"
        make = {
            "frechet": self._frechet,
            "kernel": self._kernel,
            "inception_score": self._inception_score,
            "caption_accuracy": self._caption_accuracy,
            "clip_mean": self._clip_mean,
        }
        entry = make[metric.kind](metric, key)
        reader = self.readers[key]
        extractor: Any = getattr(reader, "extractor", None)
        warnings = entry.pop("warnings", []) + self._count_warnings() + self.warnings
        for text in warnings:
            logger.warning("%s: %s", name, text)
        return {
            **entry,
            "num_generated": self.fake.num,
            "num_held_out": self.held_out.num,
            "num_reference": self.real.num + (self.held_out.num if self.halves else 0),
            "extractor": reader.name,
            **({"extractor_sha256": reader.sha256} if reader.sha256 else {}),
            **({"extractor_verified": extractor.verified} if hasattr(extractor, "verified") else {}),
            **self.facts,
            "resize": RESIZE[metric.extractor],
            **({"warning": "; ".join(warnings)} if warnings else {}),
        }

    def result_name(self, name: str) -> str:
        """The metric's name, marked where its weights, precision or count are not those that it stands for."""
        extractor: Any = getattr(self.readers[TABLE[name].extractor or "pixels"], "extractor", None)
        title = getattr(extractor, "title", None)
        mark = "" if title is None else extractor.name.removeprefix(title)
        if self.protocol is None:
            return name + mark
        real = self.real.num + (self.held_out.num if self.halves else 0)
        fewest = [
            min(self.fake.num, self.protocol.num_generated) / self.protocol.num_generated,
            real / (self.protocol.num_reference or real),
        ]
        return name + mark + (f"_at_{min(self.fake.num, real)}" if min(fewest) < 1 else "")

    def _count_warnings(self) -> list[str]:
        warnings = []
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
        return warnings

    @staticmethod
    def _files(side: Side) -> set[str]:
        return {attributes["path"] for attributes in side.attributes if "path" in attributes}

    def _reference(self, key: str) -> Reading:
        if not self.halves:
            return self.real.readings[key]
        return Reading().merge(self.held_out.readings[key]).merge(self.real.readings[key])

    def _frechet(self, metric: Metric, key: str) -> dict[str, Any]:
        fake, held_out, half = (side.readings[key] for side in (self.fake, self.held_out, self.real))
        reference = self._reference(key)
        ddof = metric.ddof if self.protocol is None or self.protocol.ddof is None else self.protocol.ddof
        assert fake.statistics
        assert held_out.statistics
        assert half.statistics
        assert reference.statistics
        fewest = min(fake.statistics.count, reference.statistics.count)
        entry: dict[str, Any] = {
            "value": distance_of_statistics(fake.statistics, reference.statistics, ddof),
            "floor": distance_of_statistics(held_out.statistics, half.statistics, ddof),
            "num_samples": fake.statistics.count,
            "ddof": ddof,
            "warnings": [],
        }
        if fewest <= fake.statistics.dim:
            entry["warnings"].append(
                f"{fewest} samples do not span the {fake.statistics.dim} feature dimensions: compare values at this "
                "very count only, and beside the floor"
            )
        self._add_confidence(entry, fake, reference, ddof)
        return entry

    def _add_confidence(self, entry: dict[str, Any], fake: Reading, reference: Reading, ddof: int) -> None:
        settings = self.settings
        if settings.bootstrap and fake.features is None:
            entry["warnings"].append("no interval: the features of so many clips are not kept")
        elif settings.bootstrap:
            assert fake.features is not None
            assert reference.statistics is not None
            interval = bootstrap_interval(
                fake.features, reference.statistics, num=settings.bootstrap, ddof=ddof, seed=settings.seed
            )
            entry["interval"] = asdict(interval)
        if not settings.extrapolate:
            return
        if fake.features is None or reference.features is None:
            entry["warnings"].append("no extrapolation: the features of so many clips are not kept")
        elif reason := too_few_to_extrapolate(fake.features, reference.features):
            entry["warnings"].append(f"no extrapolation: {reason}")
        else:
            line = extrapolate(fake.features, reference.features, ddof=ddof, seed=settings.seed)
            entry["extrapolated"] = {
                k: list(v) if isinstance(v, tuple) else v for k, v in asdict(line).items()
            }

    def _kernel(self, metric: Metric, key: str) -> dict[str, Any]:
        first, second = self.fake.readings[key].features, self._reference(key).features
        held_out, half = self.held_out.readings[key].features, self.real.readings[key].features
        if first is None or second is None or held_out is None or half is None:
            return {"value": None, "warnings": ["not computed: the features of so many clips are not kept"]}
        flat = [x.reshape(-1, x.shape[-1]) for x in (first, second, held_out, half)]
        return {"value": kernel_distance(*flat[:2]).value, "floor": kernel_distance(*flat[2:]).value}

    def _inception_score(self, metric: Metric, key: str) -> dict[str, Any]:
        fake, real = (side.readings[key].stacked(metric.array) for side in (self.fake, self.held_out))
        if metric.extractor == "digits3d":
            splits = min(max(self.fake.num // MIN_CLIPS_PER_SPLIT, 1), 10)
        else:
            splits = min(self.protocol.num_splits if self.protocol else 10, self.fake.num)
            # Clips are often stored by class, and a split of few classes would score low.
            rng = np.random.default_rng(self.settings.seed)
            fake, real = fake[rng.permutation(len(fake))], real[rng.permutation(len(real))]
        value, deviation = inception_score(fake, splits)
        real_value, _ = inception_score(real, min(splits, self.held_out.num))
        entry: dict[str, Any] = {
            "value": value,
            "standard_deviation": deviation,
            "real": real_value,
            "splits": splits,
        }
        if metric.extractor != "digits3d" and self.fake.num < MIN_CLIPS_PER_SPLIT * splits:
            entry["warnings"] = [
                f"{self.fake.num} clips in {splits} splits cannot show all {fake.shape[1]} classes: the score is "
                "too low"
            ]
        return entry

    def _caption_accuracy(self, metric: Metric, key: str) -> dict[str, Any]:
        reader: Any = self.readers[key]
        fake, held_out = (
            {name: side.readings[key].stacked(name) for name in reader.extractor.classes}
            for side in (self.fake, self.held_out)
        )
        per_attribute = caption_accuracy(fake, self.fake.attributes)
        real = caption_accuracy(held_out, self.held_out.attributes)
        return {
            **whole_caption_accuracy(fake, self.fake.attributes),
            "real": whole_caption_accuracy(held_out, self.held_out.attributes)["value"],
            "attributes": {k: {**entry, "real": real[k]["value"]} for k, entry in per_attribute.items()},
        }

    def _clip_mean(self, metric: Metric, key: str) -> dict[str, Any]:
        fake = self.fake.readings[key].stacked(metric.array)
        entry = {
            "value": float(fake.mean()),
            "standard_error": float(fake.std(ddof=1) / math.sqrt(len(fake))),
        }
        if metric.array in self.held_out.readings[key].per_clip:
            entry["real"] = float(self.held_out.readings[key].stacked(metric.array).mean())
        return entry
