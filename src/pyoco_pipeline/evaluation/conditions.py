"""What two sets of clips must have in common, and what a protocol asks of them."""

from __future__ import annotations

import numpy as np

from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.clips_to_score import same_rate
from pyoco_pipeline.evaluation.prompts import check_captions, read_prompts
from pyoco_pipeline.evaluation.protocols import Protocol
from pyoco_pipeline.evaluation.reference import Selection
from pyoco_pipeline.evaluation.settings import MIN_CLIPS, EvaluateSettings


def drawn_clips(
    generated: ClipStore, protocol: Protocol | None, settings: EvaluateSettings
) -> frozenset[int] | None:
    """Positions of the generated clips that are scored, None: all."""
    total = sum(generated.manifest.counts.values())
    if protocol is None or total <= protocol.num_generated:
        return None
    rng = np.random.default_rng(settings.seed)
    return frozenset(rng.choice(total, protocol.num_generated, replace=False).tolist())


def protocol_warnings(
    generated: ClipStore,
    reference: ClipStore,
    drawn: frozenset[int] | None,
    selection: Selection,
    protocol: Protocol | None,
    settings: EvaluateSettings,
) -> list[str]:
    """What must be said beside every value, where clips or prompts are not what the protocol asks for.

    drawn: of `drawn_clips`. Raises UserError where that is not allowed.
    """
    rates = generated.manifest.fps, reference.manifest.fps
    said: list[str | None] = []
    if not same_rate(*rates):
        said.append(
            f"videos of {rates[0]:.5g} and {rates[1]:.5g} frames per second are compared frame by frame"
        )
    if protocol is None:
        return [text for text in said if text is not None]
    num = sum(generated.manifest.counts.values()) if drawn is None else len(drawn)
    allow = settings.allow_fewer
    if protocol.prompts:
        if settings.prompts is None:
            raise UserError(
                f"Protocol {protocol.name} needs a table of the prompts that were generated for: set evaluate.prompts."
            )
        prompts = read_prompts(settings.prompts)
        captions = [item.caption for item in generated.clips()]
        total = max(len(captions), protocol.num_generated)
        said.append(check_captions(captions, prompts, total, place=str(generated.folder), allow_fewer=allow))
    place = str(settings.generated or generated.folder)
    said.append(
        protocol.check_count(num, protocol.num_generated, "generated clips", place, allow_fewer=allow)
    )
    real = len(selection.kept) + (len(selection.held_out) if selection.halves else 0)
    place = str(settings.reference or reference.folder)
    said.append(
        protocol.check_count(real, protocol.num_reference or 0, "real videos", place, allow_fewer=allow)
    )
    if num < MIN_CLIPS:
        raise UserError(f"{num} generated clips are too few to evaluate: generate at least {MIN_CLIPS}.")
    if selection.halves:
        said.append(
            "all real videos are in the reference, so the floor is the distance of one half of them to the other: "
            "that of fewer clips"
        )
    return [text for text in said if text is not None]


def check_comparable(
    generated: ClipStore, reference: ClipStore, split: str, num_frames: int, settings: EvaluateSettings
) -> None:
    """Raises UserError for clips of different shape or rate, or shorter than the frames that a protocol compares."""
    first, second = generated.manifest, reference.manifest
    sizes = sorted({(shard.height, shard.width) for shard in reference.shards(split)})
    if len(sizes) > 1:
        raise UserError(
            f"{reference.folder} has clips of {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}, and a distance needs "
            "one: evaluate against clips that were ingested without ingest.buckets."
        )
    for store in (generated, reference):
        if settings.protocol and store.manifest.num_frames < num_frames:
            raise UserError(
                f"{store.folder} has clips of {store.manifest.num_frames} frames, and protocol {settings.protocol} "
                f"compares {num_frames}: generate or ingest longer clips."
            )
    if not settings.protocol and first.num_frames != second.num_frames:
        raise _differ(generated, reference, "num_frames", first.num_frames, second.num_frames)
    for what in ("height", "width"):
        if getattr(first, what) != getattr(second, what):
            raise _differ(generated, reference, what, getattr(first, what), getattr(second, what))
    if not same_rate(first.fps, second.fps) and not settings.ignore_fps:
        raise _differ(generated, reference, "fps", first.fps, second.fps)


def _differ(generated: ClipStore, reference: ClipStore, what: str, a: float, b: float) -> UserError:
    hint = (
        " Where the rate that a file states means nothing, set evaluate.ignore_fps." if what == "fps" else ""
    )
    return UserError(
        f"{generated.folder} has {what} {a}, but {reference.folder} has {b}: a distance between them "
        f"would measure that difference. Ingest or generate clips with the same frames, size and fps.{hint}"
    )
