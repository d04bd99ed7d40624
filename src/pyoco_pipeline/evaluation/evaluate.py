"""Which clips are compared with which, by what, and what is recorded beside every number.

Real clips of the reference's split are drawn by the seed into two disjoint sets: the reference, and as many held-out
clips as were generated. The held-out clips are measured exactly as the generated ones, which gives the floor: what a
perfect generator would score at this count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.evaluation.clips_to_score import (
    ClipChoice,
    Excluded,
    cut_folder,
    is_clips_folder,
    kept_clips,
)
from pyoco_pipeline.evaluation.comparison import Comparison, Side
from pyoco_pipeline.evaluation.conditions import check_comparable, drawn_clips, protocol_warnings
from pyoco_pipeline.evaluation.parallel import ClipSet, read_sets
from pyoco_pipeline.evaluation.protocols import PROTOCOLS, Protocol
from pyoco_pipeline.evaluation.readers import frame_positions
from pyoco_pipeline.evaluation.reference import (
    REFERENCE_SPLIT,
    ReferenceCache,
    positions_hash,
    select_reference,
    split_reference,
)
from pyoco_pipeline.evaluation.settings import METRICS, EvaluateSettings
from pyoco_pipeline.evaluation.wanted import (
    DIGITS_METRICS,
    Extractors,
    ReaderChoice,
    choose_readers,
    open_readers,
    wanted_metrics,
)
from pyoco_pipeline.launch import useful

__all__ = [
    "DIGITS_METRICS",
    "METRICS",
    "EvaluateSettings",
    "evaluate_clips",
    "evaluate_folders",
    "frame_positions",
    "split_reference",
]

SCHEMA_VERSION = 2


def evaluate_folders(
    generated_clips: str | Path,
    clips: str | Path,
    settings: EvaluateSettings,
    devices: Sequence[str] = ("cpu",),
    *,
    cache_folder: Path | None = None,
) -> dict[str, Any]:
    """Measure what the settings name, or else the pipeline's own clips; folders of videos are cut into clips first.

    devices: one process each, as `evaluate_clips` says. cache_folder: keeps what was read in the real clips, and the
    clips cut from a folder of real videos.
    See `evaluate_clips` for the result and the errors, and `clips_to_score` for which files are left out.
    """
    protocol = PROTOCOLS[settings.protocol] if settings.protocol else None
    split = _split(settings, protocol)
    num_frames = protocol.num_frames if protocol else settings.num_frames
    choice = ClipChoice(
        num_frames,
        seed=settings.seed,
        captions_file=settings.captions_file,
        timeout_s=settings.video_timeout_s,
    )
    excluded = {"generated": Excluded(), "reference": Excluded()}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=cache_folder, prefix=".cut-")))
        folder = settings.generated or generated_clips
        if is_clips_folder(folder) or settings.generated is None:
            generated = ClipStore(folder)
        else:
            generated, excluded["generated"] = cut_folder(Path(folder), choice, scratch / "generated")
        folder = settings.reference or clips
        if is_clips_folder(folder) or settings.reference is None:
            reference = ClipStore(folder)
        else:
            num_generated = sum(generated.manifest.counts.values())
            choice = replace(
                choice,
                num_frames=num_frames if protocol else generated.manifest.num_frames,
                size=generated.shape[1:],
                random_offset=True,
                split=split,
                limit=_limit(num_generated, protocol, settings),
                name_is_caption=False,
            )
            into = (cache_folder or scratch) / "reference_clips"
            reference, excluded["reference"] = kept_clips(Path(folder), choice, into)
        return evaluate_clips(
            generated, reference, settings, devices, cache_folder=cache_folder, excluded=excluded
        )


def _limit(num_generated: int, protocol: Protocol | None, settings: EvaluateSettings) -> int | None:
    """Real videos that are needed: those of the reference, and as many held-out ones as were generated."""
    num = protocol.num_reference if protocol else settings.max_reference_clips
    if num is None:
        return None
    return num + min(num_generated, protocol.num_generated if protocol else num_generated)


def _split(settings: EvaluateSettings, protocol: Protocol | None) -> str:
    return settings.reference_split or (protocol.split if protocol else REFERENCE_SPLIT)


def evaluate_clips(
    generated: ClipStore,
    reference: ClipStore,
    settings: EvaluateSettings,
    devices: Sequence[str] = ("cpu",),
    *,
    digits3d_folder: str | Path | None = None,
    cache_folder: Path | None = None,
    excluded: Mapping[str, Excluded] | None = None,
) -> dict[str, Any]:
    """Measure generated clips against real ones; the result can be written as JSON.

    generated: all its splits are used; reference: only the split that settings or protocol name. devices: with several,
    each reads a share of the clips in a process of its own (`launch.devices` lists them). digits3d_folder: Digits3D's
    weights, by default those of the package. cache_folder: see `ReferenceCache`. Metrics that do not apply to the clips
    are in `refused` with the reason. Raises UserError when the two stores hold clips of different shape or rate, when
    either holds too few clips, when a metric that does not apply was asked for by name, and when the clips are not
    those that the protocol asks for.
    """
    protocol = PROTOCOLS[settings.protocol] if settings.protocol else None
    split = _split(settings, protocol)
    num_frames = protocol.num_frames if protocol else generated.manifest.num_frames
    check_comparable(generated, reference, split, num_frames, settings)
    drawn = drawn_clips(generated, protocol, settings)
    num_generated = sum(generated.manifest.counts.values()) if drawn is None else len(drawn)
    selection = select_reference(reference, split, num_generated, protocol, settings)
    warnings = protocol_warnings(generated, reference, drawn, selection, protocol, settings)

    most = max(num_generated, len(selection.held_out), len(selection.kept))
    devices = useful(devices, most, settings.batch_size)
    # Where other processes read, this one needs the extractors' names and limits only.
    extractors = Extractors(settings, devices[0] if len(devices) == 1 else "cpu", digits3d_folder)
    wanted, refused = wanted_metrics(generated, reference, num_frames, extractors, protocol, settings)
    choices = _choices(wanted, reference, split, settings, selection.halves)
    fake, held_out, real = _read_sides(
        ClipSet(generated, None, drawn, num_frames, choices[0]),
        [
            ClipSet(reference, split, positions, num_frames, choice, settings.seed)
            for positions, choice in zip((selection.held_out, selection.kept), choices[1:], strict=True)
        ],
        extractors,
        devices,
        ReferenceCache(cache_folder),
    )
    comparison = Comparison(
        fake,
        held_out,
        real,
        readers=open_readers(choices[0], extractors),
        settings=settings,
        protocol=protocol,
        facts=_facts(generated, protocol, num_frames, settings),
        warnings=warnings,
        halves=selection.halves,
    )
    entries = {comparison.result_name(name): comparison.entry(name) for name in wanted}
    refused |= {n: entries.pop(n)["warning"] for n in list(entries) if entries[n]["value"] is None}
    left_out = {name: (excluded or {}).get(name, Excluded()).summary() for name in ("generated", "reference")}
    return {
        "schema_version": SCHEMA_VERSION,
        "metrics": entries,
        "refused": refused,
        "generated_sha256": generated.manifest.sha256,
        "reference_sha256": reference.manifest.sha256,
        "seed": settings.seed,
        "protocol": settings.protocol,
        "reference_split": split,
        "excluded": left_out,
    }


def _choices(
    wanted: Sequence[str], reference: ClipStore, split: str, settings: EvaluateSettings, halves: bool
) -> list[dict[str, ReaderChoice]]:
    """What is read in the generated, the held-out and the reference clips."""
    captioned = "clipsim" not in wanted or all(item.caption for item in reference.clips(split))
    keep, fps = settings.extrapolate, reference.manifest.fps
    return [
        choose_readers(wanted, settings, fps=fps, keep=True),
        choose_readers(wanted, settings, fps=fps, keep=keep and halves, captioned=captioned),
        choose_readers(wanted, settings, fps=fps, keep=keep, distances_only=True),
    ]


def _read_sides(
    generated: ClipSet,
    real: Sequence[ClipSet],
    extractors: Extractors,
    devices: Sequence[str],
    cache: ReferenceCache,
) -> list[Side]:
    """What is read in these sets; in real clips, what is kept is not read again."""
    readers = [open_readers(one.readers, extractors) for one in real]
    facts = [_facts_of_real(one, extractors.settings) for one in real]
    kept = [cache.find(f, r) for f, r in zip(facts, readers, strict=True)]
    missing = [
        replace(one, readers={name: choice for name, choice in one.readers.items() if name not in found})
        for one, found in zip(real, kept, strict=True)
    ]
    sides = read_sets([generated, *missing], extractors, devices)
    for side, found, f, r in zip(sides[1:], kept, facts, readers, strict=True):
        cache.keep(f, r, side.readings)
        side.readings |= found
    return sides


def _facts_of_real(clips: ClipSet, settings: EvaluateSettings) -> dict[str, Any]:
    """All that matters to what is read in them, but for the reader."""
    assert clips.positions is not None
    return {
        "data": clips.store.manifest.sha256,
        "split": clips.split,
        "protocol": settings.protocol,
        "num_frames": clips.num_frames,
        "count": len(clips.positions),
        "positions": positions_hash(clips.positions),
        "seed": settings.seed,
    }


def _facts(
    generated: ClipStore, protocol: Protocol | None, num_frames: int, settings: EvaluateSettings
) -> dict[str, Any]:
    manifest = generated.manifest
    return {
        "protocol": protocol.name if protocol else None,
        "seed": settings.seed,
        "frames": num_frames,
        "height": manifest.height,
        "width": manifest.width,
        "fps": manifest.fps,
        "frames_of_frame_distances": min(settings.fid_frames, num_frames),
    }
