"""Which metrics can be had from the clips and the extractors that are given, and the readers for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch

from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.digits import KINDS, Scene
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import MIN_FRAMES, NETS, frames_per_step, read_card
from pyoco_pipeline.evaluation.extractor_registry import open_extractor
from pyoco_pipeline.evaluation.extractors import Digits3D, Lite0
from pyoco_pipeline.evaluation.metric_table import TABLE
from pyoco_pipeline.evaluation.protocols import Protocol
from pyoco_pipeline.evaluation.published.base import PublishedExtractor
from pyoco_pipeline.evaluation.readers import ClipReader, DigitsReader, FrameReader, PixelReader, Reader
from pyoco_pipeline.evaluation.settings import METRICS, EvaluateSettings, ExtractorSettings, MetricName

DIGITS_METRICS = ("fvd_digits3d", "is_digits3d", "caption_accuracy")
ALL_METRICS: tuple[str, ...] = tuple(
    name for part in get_args(MetricName) for name in ([part] if isinstance(part, str) else get_args(part))
)


class Extractors:
    """The embedded extractors, loaded when asked for, and the published ones that the settings name."""

    def __init__(
        self, settings: EvaluateSettings, device: str | torch.device, digits3d_folder: str | Path | None
    ) -> None:
        if digits3d_folder is None and settings.digits3d:
            digits3d_folder = settings.digits3d.path
        self.settings, self.digits3d_folder, self._device = settings, digits3d_folder, device
        self.published: dict[str, PublishedExtractor] = {
            name: _open(name, options, device) for name, options in settings.extractors.items()
        }

    def own_precision(self) -> torch.autocast:
        """Leaves the autocast of the caller, such as a trainer's, which is not to change figures."""
        return torch.autocast(torch.device(self._device).type, enabled=False)

    @cached_property
    def digits3d(self) -> Digits3D:
        found = Digits3D(self.digits3d_folder, self._device)
        asked = self.settings.digits3d.sha256 if self.settings.digits3d else None
        if asked not in (None, found.sha256):
            raise UserError(
                f"{self.digits3d_folder} holds weights of sha256 {found.sha256}, but evaluate.digits3d.sha256 is "
                f"{asked}: correct either."
            )
        return found

    @cached_property
    def scene(self) -> Scene:
        """What Digits3D was trained to read, by its card."""
        return read_card(self.digits3d_folder)["scene"]

    @cached_property
    def lite0(self) -> Lite0:
        return Lite0(self._device)


def _open(name: str, options: ExtractorSettings, device: str | torch.device) -> PublishedExtractor:
    try:
        return open_extractor(
            name,
            options.path,
            device,
            expected_sha256=options.sha256,
            allow_other_weights=options.allow_other_weights,
            batch_size=options.batch_size,
            precision=options.precision,
        )
    except ValueError as error:  # such as a precision that a network does not run in
        raise UserError(f"evaluate.extractors.{name}: {error}.") from error


def wanted_metrics(
    generated: ClipStore,
    reference: ClipStore,
    num_frames: int,
    extractors: Extractors,
    protocol: Protocol | None,
    settings: EvaluateSettings,
) -> tuple[list[str], dict[str, str]]:
    """The metrics to compute, and those that were to be but do not apply, with the reason.

    Raises UserError where one of the latter was asked for by name, and where none is left of a protocol's.
    """
    if settings.metrics != "auto":
        asked: list[str] = list(settings.metrics)
    elif protocol is not None:
        asked = list(protocol.metrics)
    else:
        given = [name for name in ALL_METRICS if TABLE[name].extractor in extractors.published]
        asked = [*METRICS, *given, *(["motion_magnitude"] if given else [])]
    refused = _refusals(generated, reference, num_frames, extractors, asked)
    if settings.metrics != "auto" and refused:
        raise UserError("; ".join(f"evaluate.metrics: {n}: {r}" for n, r in refused.items()))
    wanted = [name for name in asked if name not in refused]
    if protocol is not None and not any(TABLE[name].extractor for name in wanted):
        raise UserError(
            f"None of the metrics of protocol {protocol.name} can be computed; " + "; ".join(refused.values())
        )
    return wanted, refused


def _refusals(
    generated: ClipStore, reference: ClipStore, num_frames: int, extractors: Extractors, asked: Sequence[str]
) -> dict[str, str]:
    refused = {}
    if any(name in DIGITS_METRICS for name in asked):
        digits = _digits_refusals(generated, reference, num_frames, extractors.scene)
        refused = {name: reason for name, reason in digits.items() if name in asked}
    for name in asked:
        metric = TABLE[name]
        if metric.extractor in ("digits3d", "lite0", None):
            if num_frames < 2 and metric.array in ("consistency", "motion"):
                refused[name] = "A clip of one frame has no adjacent frames."
            continue
        if metric.extractor not in extractors.published:
            refused[name] = f"evaluate.extractors has no {metric.extractor}: give the path of its weights."
            continue
        extractor = extractors.published[metric.extractor]
        longest = extractor.max_frames or num_frames
        if not extractor.min_frames <= num_frames <= longest:
            exactly = extractor.min_frames == extractor.max_frames
            refused[name] = (
                f"{extractor.title} reads clips of {'' if exactly else 'at least '}{extractor.min_frames} frames, and "
                f"these have {num_frames}."
            )
        elif metric.array == "consistency" and num_frames < 2:
            refused[name] = "A clip of one frame has no adjacent frames."
        elif metric.array == "similarity" and not all(item.caption for item in generated.clips()):
            refused[name] = f"Some clips in {generated.folder} have no caption."
    return refused


def _digits_refusals(
    generated: ClipStore, reference: ClipStore, num_frames: int, scene: Scene
) -> dict[str, str]:
    others = [s for s in (generated, reference) if s.manifest.kind != KINDS[scene]]
    if others:
        kind = others[0].manifest.kind
        which = "moving digits only"
        if kind in KINDS.values():  # digits too, but of another scene
            which += f", and this one those of {scene} scenes (evaluate.digits3d gives another)"
        reason = f"Digits3D reads {which}, and {others[0].folder} holds clips of kind {kind}."
        return dict.fromkeys(DIGITS_METRICS, reason)
    stride = frames_per_step(reference.manifest.fps)
    if -(-num_frames // stride) < MIN_FRAMES:
        needed = (MIN_FRAMES - 1) * stride + 1
        reason = f"Digits3D needs clips of at least {needed} frames, and these have {num_frames}."
        return dict.fromkeys(DIGITS_METRICS, reason)
    if missing := [k for k in NETS[scene].classes if k not in next(generated.clips()).clip.attributes]:
        return {"caption_accuracy": f"The clips in {generated.folder} do not say their {', '.join(missing)}."}
    return {}


@dataclass(frozen=True)
class ReaderChoice:
    """What is taken from one extractor of the table, None for pixels: `readers.Reader` without the network.

    arrays: of numbers per clip; keep: the features themselves; stride: of the frames that it sees.
    """

    extractor: str | None
    arrays: tuple[str, ...] = ()
    keep: bool = False
    stride: int = 1


def choose_readers(
    wanted: Sequence[str],
    settings: EvaluateSettings,
    *,
    keep: bool,
    captioned: bool = True,
    distances_only: bool = False,
    fps: float,
) -> dict[str, ReaderChoice]:
    """Extractor's name in the table -> what these metrics need of it.

    keep: the features for intervals and extrapolation, where these are asked for; kernel distances keep theirs anyway.
    captioned: whether the clips have captions to compare with. distances_only: of the reference, which has no scores.
    fps: of the clips.
    """
    keep = keep and bool(settings.bootstrap or settings.extrapolate)
    choices: dict[str, ReaderChoice] = {}
    for key in dict.fromkeys(TABLE[name].extractor for name in wanted):
        metrics = [TABLE[name] for name in wanted if TABLE[name].extractor == key]
        kinds = {metric.kind for metric in metrics}
        arrays = tuple(
            sorted({m.array for m in metrics if m.array} - (set() if captioned else {"similarity"}))
        )
        if distances_only:
            if not kinds & {"frechet", "kernel"}:
                continue
            arrays = ()
        keeps = "kernel" in kinds or (keep and "frechet" in kinds)
        stride = frames_per_step(fps) if key == "digits3d" else 1
        choices[key or "pixels"] = ReaderChoice(key, arrays, keeps, stride)
    return choices


def open_readers(choices: Mapping[str, ReaderChoice], extractors: Extractors) -> dict[str, Reader]:
    """The readers of these choices, by the same names."""
    return {name: _reader(choice, extractors) for name, choice in choices.items()}


def _reader(choice: ReaderChoice, extractors: Extractors) -> Reader:
    fid_frames = extractors.settings.fid_frames
    if choice.extractor is None:
        return PixelReader()
    if choice.extractor == "digits3d":
        return DigitsReader(extractors.digits3d, choice.keep, choice.stride)
    if choice.extractor == "lite0":
        return FrameReader(extractors.lite0, fid_frames, choice.arrays, choice.keep)
    extractor = extractors.published[choice.extractor]
    if extractor.media == "frame":
        return FrameReader(extractor, fid_frames, choice.arrays, choice.keep)
    return ClipReader(extractor, choice.arrays, choice.keep)
