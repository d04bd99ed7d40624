"""Sets of clips read by one process or by several: each takes whole batches in stored order, and parts are added up.

The batches are the same for any number of processes, so what a network reads in them is too, up to how its device
computes; statistics are merged in float64, and numbers per clip are joined in the order of the clips.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.evaluation.comparison import Side
from pyoco_pipeline.evaluation.readers import Reading, statistics_of
from pyoco_pipeline.evaluation.reference import chosen
from pyoco_pipeline.evaluation.settings import EvaluateSettings
from pyoco_pipeline.evaluation.wanted import Extractors, ReaderChoice, open_readers
from pyoco_pipeline.launch import launch, share


@dataclass(frozen=True)
class ClipSet:
    """Clips of a store, and what is to be read in each; without readers, only what the clips say.

    positions: in the split, None: all of it. seed: of the first frame, None: frame 0.
    """

    store: ClipStore
    split: str | None
    positions: frozenset[int] | None
    num_frames: int
    readers: Mapping[str, ReaderChoice]
    seed: int | None = None

    def __len__(self) -> int:
        if self.positions is not None:
            return len(self.positions)
        return sum(n for split, n in self.store.manifest.counts.items() if self.split in (None, split))

    def share(self, part: int, parts: int, batch_size: int) -> Iterator[CaptionedClip]:
        """The clips of one of `parts` consecutive shares of as many batches, to within one."""
        positions = range(len(self)) if self.positions is None else sorted(self.positions)
        mine = share(part, parts, len(positions), batch_size)
        wanted = frozenset(positions[mine.start : mine.stop])
        return chosen(self.store, self.split, wanted, self.num_frames, self.seed)


def read_sets(sets: Sequence[ClipSet], extractors: Extractors, devices: Sequence[str]) -> list[Side]:
    """What is read in every set, by one process per device; with one device, by these extractors in this process.

    Other processes open extractors of their own, as the settings of these say. Raises UserError for what
    `statistics_of` does, for clips that were written anew meanwhile, and for a process that is killed.
    """
    if len(devices) == 1:
        return [_read(one, 0, 1, extractors) for one in sets]
    first, *others = launch(_read_shares, devices, sets, extractors.settings, extractors.digits3d_folder)
    for other in others:
        for side, more in zip(first, other, strict=True):
            side.merge(more)
    return first


def _read_shares(
    part: int,
    parts: int,
    device: str,
    sets: Sequence[ClipSet],
    settings: EvaluateSettings,
    digits3d_folder: str | Path | None,
) -> list[Side]:
    extractors = Extractors(settings, device, digits3d_folder)
    return [_read(one, part, parts, extractors) for one in sets]


def _read(one: ClipSet, part: int, parts: int, extractors: Extractors) -> Side:
    one.store.check_unchanged()
    batch_size = extractors.settings.batch_size
    attributes: list[dict[str, str]] = []
    clips = _noting(one.share(part, parts, batch_size), attributes)
    readings: dict[str, Reading] = {}
    if one.readers:
        with extractors.own_precision():
            readings = statistics_of(clips, open_readers(one.readers, extractors), batch_size)
    else:
        deque(clips, maxlen=0)  # what they say is noted
    return Side(len(attributes), readings, attributes)


def _noting(clips: Iterator[CaptionedClip], attributes: list[dict[str, str]]) -> Iterator[CaptionedClip]:
    for item in clips:
        attributes.append(item.clip.attributes)
        yield item
