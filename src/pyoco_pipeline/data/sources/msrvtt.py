"""MSR-VTT (Xu et al. 2016): 10,000 clips with 20 sentences each, and their official splits.

The annotations' "start time" and "end time" are seconds of the original YouTube video. The files that were published
are already cut to that: loaders in use read video<N>.mp4 from its first frame to its last.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pyoco_pipeline.data.sources.base import (
    StoredSource,
    Validate,
    as_text,
    captions_table,
    draw,
    official_split,
)
from pyoco_pipeline.data.sources.tables import read_json, read_lines, read_table
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class _Video:
    id: str
    split: str | None
    start: float
    end: float
    category: int
    sentences: list[str | None] = field(default_factory=list)


class MSRVTTSource(StoredSource):
    """`annotations`: JSON files with "videos" and "sentences"; files are <one of `videos`>/<video_id>.mp4.

    sentences: which captions of a clip: all; first; or random, one drawn by a hash of (seed, video_id)
    validate_split: what becomes of the 497 clips of the validation split. There is no third split here, and what is
        published on MSR-VTT is measured on the 2,990 test clips, so validation clips are trained on by default
    test_list: ids of the test clips, for other splits such as 1k-A (Yu et al. 2018, "JSFusion"): every other clip is
        then trained on. A .txt with an id a line, or a .csv with the column video_id; where it has a column
        sentence, that is the caption of the test clip
    originals: the files are the whole original videos, to be cut at the annotations' times
    """

    kind = "msrvtt"

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: Sequence[str] = ("train_val_videodatainfo.json", "test_videodatainfo.json"),
        videos: Sequence[str] = ("TrainValVideo", "TestVideo"),
        sentences: Literal["all", "first", "random"] = "all",
        validate_split: Validate = "train",
        test_list: str | None = None,
        originals: bool = False,
        seed: int = 0,
        max_copy_mb: float = 4096,
    ) -> None:
        super().__init__(root, max_copy_mb=max_copy_mb)
        if not annotations or not videos:
            raise UserError("msrvtt needs at least one file of annotations and one folder of videos.")
        self.annotations = tuple(annotations)
        self.videos = tuple(folder.strip("/") for folder in videos)
        self.sentences = sentences
        self.validate_split = validate_split
        self.test_list = test_list
        self.originals = originals
        self.seed = seed

    def captions(self) -> pd.DataFrame:
        """A row for every clip and chosen sentence; more columns: category, original_start, original_end (seconds).

        Raises UserError for annotations that can't be read or contradict themselves, naming file and entry.
        """
        self.check_root("the videos and the annotations")
        videos: dict[str, _Video] = {}
        for name in self.annotations:
            self._read(name, videos)
        self._apply_test_list(videos)
        rows = [
            (video, sentence) for video in videos.values() if video.split for sentence in self._chosen(video)
        ]
        left_out = sum(video.split is None for video in videos.values())
        if left_out:
            logger.warning(
                "%d validation clips below %s are left out (validate_split)", left_out, self.storage
            )
        paths, problems = self._paths(videos)
        return captions_table(
            [paths[video.id] for video, _ in rows],
            [sentence for _, sentence in rows],
            [video.split or "" for video, _ in rows],
            [problems[video.id] for video, _ in rows],
            start=[video.start for video, _ in rows] if self.originals else None,
            end=[video.end for video, _ in rows] if self.originals else None,
            names=[video.id for video, _ in rows],
            category=[video.category for video, _ in rows],
            original_start=[video.start for video, _ in rows],
            original_end=[video.end for video, _ in rows],
        )

    def _read(self, name: str, videos: dict[str, _Video]) -> None:
        location = self.storage.full(name)
        content = read_json(self.storage, name)
        if not isinstance(content, dict) or not all(
            isinstance(content.get(key), list) for key in ("videos", "sentences")
        ):
            raise UserError(f'{location} is not of MSR-VTT: it lacks the lists "videos" and "sentences".')
        for number, entry in enumerate(content["videos"], start=1):
            place = f"Video {number} of {location}"
            video = _parse_video(entry, self.validate_split, place)
            if video.id in videos:
                raise UserError(f"{place} repeats the video_id {video.id!r}; give each annotation once.")
            videos[video.id] = video
        for number, entry in enumerate(content["sentences"], start=1):
            place = f"Sentence {number} of {location}"
            if not isinstance(entry, dict) or str(entry.get("video_id")) not in videos:
                raise UserError(f"{place} is of no video that the annotations list: {entry!r:.100}.")
            videos[str(entry["video_id"])].sentences.append(
                as_text(entry.get("caption"), f"{place}, caption,")
            )

    def _apply_test_list(self, videos: dict[str, _Video]) -> None:
        if self.test_list is None:
            return
        location = self.storage.full(self.test_list)
        sentences: dict[str, list[str | None]] = {}
        if self.test_list.lower().endswith(".txt"):
            ids = [line.removesuffix(".mp4") for _, line in read_lines(self.storage, self.test_list)]
        else:
            table = read_table(self.storage, self.test_list, ("video_id",), what="test list")
            ids = [str(value) for value in table["video_id"]]
            if "sentence" in table.columns:
                for row, (id_, text) in enumerate(zip(ids, table["sentence"], strict=True), start=1):
                    place = f"Row {row} of {location}, column sentence,"
                    sentences.setdefault(id_, []).append(as_text(text, place))
        unknown = [id_ for id_ in ids if id_ not in videos]
        if unknown:
            raise UserError(
                f"The test list {location} names {unknown[0]!r}, which the annotations do not list."
            )
        for video in videos.values():
            video.split = "train"
        for id_ in ids:
            videos[id_].split = "test"
            videos[id_].sentences = sentences.get(id_, videos[id_].sentences)

    def _chosen(self, video: _Video) -> list[str | None]:
        """A clip without sentences keeps a row without a caption, for the rules of captions to judge."""
        known = video.sentences or [None]
        if self.sentences == "all":
            return known
        k = int(draw(f"{self.seed}/{video.id}") * len(known)) if self.sentences == "random" else 0
        return [known[k]]

    def _paths(self, videos: dict[str, _Video]) -> tuple[dict[str, str], dict[str, str]]:
        """Of each clip, the first of the folders' files that is there."""
        candidates = {id_: [f"{folder}/{id_}.mp4" for folder in self.videos] for id_ in videos}
        located = self.storage.locate_all(path for tried in candidates.values() for path in tried)
        paths = {
            id_: next((path for path in tried if not located[path].problem), tried[0])
            for id_, tried in candidates.items()
        }
        return paths, {id_: located[path].problem for id_, path in paths.items()}


def _parse_video(entry: Any, validate: Validate, place: str) -> _Video:
    if not isinstance(entry, dict):
        raise UserError(f"{place} is {entry!r:.100}, not an object.")
    for key in ("video_id", "split"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise UserError(f"{place} has no text for {key!r}; its keys: {', '.join(map(str, entry))}.")
    start, end = (_seconds(entry.get(key), f"{place}, {key},") for key in ("start time", "end time"))
    category = entry.get("category", -1)
    return _Video(
        entry["video_id"],
        official_split(entry["split"], validate, place),
        start,
        end,
        category if isinstance(category, int) else -1,
    )


def _seconds(value: Any, place: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{place} is {value!r}, not a number of seconds.")
    return float(value)
