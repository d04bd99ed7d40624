"""Which real clips a comparison draws, and what was read in them, kept between runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.digits import KINDS
from pyoco_pipeline.data.sources.base import draw
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.protocols import Protocol
from pyoco_pipeline.evaluation.readers import Reader, Reading, from_tensors, to_tensors
from pyoco_pipeline.evaluation.settings import MIN_CLIPS, EvaluateSettings

logger = logging.getLogger(__name__)

REFERENCE_SPLIT = "train"
CACHE_VERSION = 1  # of what is read and how it is kept


@dataclass(frozen=True)
class Selection:
    """Positions of clips in a split. held_out: measured as the generated ones; kept: what distances refer to.

    halves: distances refer to both together, and their floor is that of one half to the other.
    """

    held_out: frozenset[int]
    kept: frozenset[int]
    halves: bool = False


def select_reference(
    reference: ClipStore,
    split: str,
    num_generated: int,
    protocol: Protocol | None,
    settings: EvaluateSettings,
) -> Selection:
    """The real clips of a comparison, drawn by the seed; UserError where there are too few."""
    if protocol is None:
        held_out, kept = split_reference(reference, num_generated, settings, split)
        return Selection(frozenset(held_out), frozenset(kept))
    videos = one_per_video(reference, split, settings.seed)
    if len(videos) < 2 * MIN_CLIPS:
        raise _too_few(reference, split, len(videos))
    order = np.random.default_rng(settings.seed).permutation(videos).tolist()
    num = min(protocol.num_reference or len(order), len(order))
    num_held_out = min(num_generated, len(order) - num)
    if num_held_out >= min(num_generated, len(order) // 2):
        return Selection(frozenset(order[num : num + num_held_out]), frozenset(order[:num]))
    return Selection(frozenset(order[: num // 2]), frozenset(order[num // 2 : num]), halves=True)


def one_per_video(reference: ClipStore, split: str, seed: int) -> list[int]:
    """Positions of one clip of every video, drawn by the seed; a clip without a path is a video of its own."""
    by_path: dict[str, list[int]] = {}
    for position, path in enumerate(_files(reference, split)):
        by_path.setdefault(path or f"\0{position}", []).append(position)
    if not by_path:
        return list(range(reference.manifest.counts.get(split, 0)))
    return [same[int(draw(f"{seed}\0clip\0{path}") * len(same))] for path, same in by_path.items()]


def split_reference(
    reference: ClipStore, num_generated: int, settings: EvaluateSettings, split: str = REFERENCE_SPLIT
) -> tuple[set[int], set[int]]:
    """Positions in a split of the held-out real clips, and of the reference clips: disjoint."""
    total = reference.manifest.counts.get(split, 0)
    if num_generated < MIN_CLIPS:
        raise UserError(
            f"{num_generated} generated clips are too few to evaluate: generate at least {MIN_CLIPS}, "
            "better hundreds."
        )
    if total < 2 * MIN_CLIPS:
        raise _too_few(reference, split, total)
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(total)
    num_held_out = min(num_generated, total // 2)
    files = _files(reference, split)
    if len(set(files)) > 1:
        # Neighbouring seconds of one video on both sides would make the floor that of near-duplicates.
        rank = {file: i for i, file in enumerate(rng.permutation(sorted(set(files))))}
        order = np.array(sorted(order, key=lambda position: rank[files[position]]))
        last_file = files[order[num_held_out - 1]]
        first = next((i for i, p in enumerate(order) if rank[files[p]] > rank[last_file]), None)
        if first is None or total - first < MIN_CLIPS:  # a file is then on both sides: the entry says so
            first = num_held_out
    else:
        first = num_held_out
    kept = order[first : first + settings.max_reference_clips]
    return set(order[:num_held_out].tolist()), set(kept.tolist())


def _too_few(reference: ClipStore, split: str, total: int) -> UserError:
    return UserError(
        f"{reference.folder} holds {total} clips of split {split!r}, and the comparison needs "
        f"at least {2 * MIN_CLIPS}: ingest more clips."
    )


def _files(reference: ClipStore, split: str) -> list[str]:
    """The video that each clip was cut from; rendered clips have none."""
    if reference.manifest.kind in KINDS.values():
        return []
    return [item.clip.attributes.get("path", "") for item in reference.clips(split)]


def chosen(
    store: ClipStore,
    split: str | None,
    positions: Collection[int] | None,
    num_frames: int,
    seed: int | None = None,
) -> Iterator[CaptionedClip]:
    """The clips at these positions, or all: `num_frames` of each, the first, or with a seed from a random one on."""
    if positions is not None and not positions:
        return
    first, last = (min(positions), max(positions)) if positions is not None else (0, None)
    for i, item in _clips_from(store, split, first):
        if positions is None or i in positions:
            yield _shortened(item, num_frames, seed)
        if i == last:
            return


def _clips_from(store: ClipStore, split: str | None, first: int) -> Iterator[tuple[int, CaptionedClip]]:
    """Position and clip, beginning with the shard that holds the clip at `first`: those before it are not read."""
    skipped = 0
    shards = store.shards(split)
    while shards and skipped + shards[0].rows <= first:
        skipped += shards.pop(0).rows
    rest = copy(store)
    rest.manifest = replace(store.manifest, shards=tuple(shards))
    yield from enumerate(rest.clips(split), skipped)


def _shortened(item: CaptionedClip, num_frames: int, seed: int | None) -> CaptionedClip:
    spare = len(item.clip.video) - num_frames
    if not spare:
        return item
    first = 0 if seed is None else int(draw(f"{seed}\0offset\0{item.clip.clip_id}") * (spare + 1))
    return replace(item, clip=replace(item.clip, video=item.clip.video[first : first + num_frames]))


class ReferenceCache:
    """Readings of real clips as safetensors in a folder; without a folder, nothing is kept.

    A file is named by a hash of all that decides its content, and holds those facts and a hash of its tensors. One that
    cannot be read or does not agree with them is read anew, with a warning.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def find(self, facts: Mapping[str, Any], readers: Mapping[str, Reader]) -> dict[str, Reading]:
        """What is kept of what these readers read in the clips of which `facts` are all that matters."""
        found = {name: self._load(self._key(facts, name, reader)) for name, reader in readers.items()}
        return {name: reading for name, reading in found.items() if reading is not None}

    def keep(
        self, facts: Mapping[str, Any], readers: Mapping[str, Reader], readings: Mapping[str, Reading]
    ) -> None:
        """Keep what was read, by the readers of the same names."""
        for name, reading in readings.items():
            self._save(self._key(facts, name, readers[name]), reading)

    @staticmethod
    def _key(facts: Mapping[str, Any], name: str, reader: Reader) -> str:
        details = {
            "version": CACHE_VERSION,
            **facts,
            "extractor": name,
            "name": reader.name,
            "sha256": reader.sha256,
            "frames_seen": getattr(reader, "num_frames", None),
            "arrays": sorted(getattr(reader, "arrays", ())),
            "features_kept": reader.keep,
        }
        return json.dumps(details, sort_keys=True)

    def _path(self, key: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def _load(self, key: str) -> Reading | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("key") != key or metadata.get("sha256") != _digest(tensors):
                raise ValueError("its content is not what it says")
            return from_tensors(tensors)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            logger.warning("%s cannot be used (%s): the real clips are read anew.", path, error)
            return None

    def _save(self, key: str, reading: Reading) -> None:
        path = self._path(key)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = to_tensors(reading)
        aside = path.with_suffix(f".{os.getpid()}.partial")  # several processes may keep the same
        safetensors.torch.save_file(tensors, aside, metadata={"key": key, "sha256": _digest(tensors)})
        aside.replace(path)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def positions_hash(positions: frozenset[int]) -> str:
    """Names a choice of clips."""
    return hashlib.sha256(json.dumps(sorted(positions)).encode()).hexdigest()
