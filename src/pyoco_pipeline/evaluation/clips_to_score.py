"""A folder of videos, of another system or real ones, as clips to score: one clip of consecutive frames per video."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.data.cutting import CutOptions, cut_video
from pyoco_pipeline.data.isolation import Isolated, IsolationError
from pyoco_pipeline.data.media import VideoError, decoder_errors, open_video_stream
from pyoco_pipeline.data.sources.base import draw, safe_name
from pyoco_pipeline.data.sources.video_folder import VideoFolderSource
from pyoco_pipeline.data.video import probe
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)

SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", ".m4v", ".mpg", ".mpeg", ".ogv", ".apng"}
KEY_FILE = "cut_from.json"
KIND = "video_folder"


@dataclass(frozen=True)
class ClipChoice:
    """Which clip of a video is scored.

    num_frames: consecutive frames as stored; shorter videos are discarded
    size: (height, width) that clips are covered and cropped to; None: that of most videos, others are discarded
    random_offset: the clip starts at a random frame, drawn by `seed` and the file's name; else at the first
    split: of the captions table; None: all of it. limit: videos that are drawn, by the seed
    """

    num_frames: int
    size: tuple[int, int] | None = None
    random_offset: bool = False
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    captions_file: str = "captions.csv"
    name_is_caption: bool = True  # where the folder holds no table
    timeout_s: float = 120.0


@dataclass
class Excluded:
    """Videos that are left out, with the reason of each."""

    files: dict[str, str] = field(default_factory=dict)

    def summary(self, shown: int = 20) -> dict[str, Any]:
        """Counts and the first reasons, for metrics.json."""
        return {"num": len(self.files), "files": dict(list(self.files.items())[:shown])}


@dataclass(frozen=True)
class _Look:
    """times_s: of the frames from the first one on, of the segment."""

    times_s: tuple[float, ...]
    fps: float
    size: tuple[int, int]


@dataclass(frozen=True)
class _Row:
    path: str
    caption: str
    start: float | None = None
    end: float | None = None


def is_clips_folder(folder: str | Path) -> bool:
    """Whether a folder holds clips as this project writes them, not videos."""
    return "://" in str(folder) or (Path(folder) / "manifest.json").is_file()


def cut_folder(folder: Path, choice: ClipChoice, into: Path) -> tuple[ClipStore, Excluded]:
    """Cut one clip out of every video below `folder` and write them to `into`, which must be empty or not there.

    Files that cannot be read, that are too short, or that have another size than most where a size is not given, are
    excluded, named, and logged. Raises UserError for a folder that is missing or holds no videos, and where none can
    be used.
    """
    rows = _rows(folder, choice)
    excluded = Excluded()
    with Isolated(timeout_s=choice.timeout_s, memory_mb=None) as isolated:
        looks = _look_at_all(folder, rows, choice, isolated, excluded)
        size = choice.size or _most_common([look.size for look in looks.values()])
        for row in rows:
            look = looks.get(row.path)
            if look is not None and choice.size is None and look.size != size:
                excluded.files[row.path] = f"is {_of(look.size)}, where most of the videos are {_of(size)}"
                del looks[row.path]
        usable = [row for row in rows if row.path in looks]
        _check_some(folder, usable, excluded)
        rates = [look.fps for look in looks.values()]
        write_clips(
            into,
            _clips(folder, usable, looks, replace(choice, size=size), isolated, excluded),
            kind=KIND,
            shape=(choice.num_frames, *size),
            fps=_most_common(rates),
        )
    store = ClipStore(into)
    if not store.manifest.counts:
        _check_some(folder, [], excluded)
    for path, reason in list(excluded.files.items())[:20]:
        logger.warning("%s is left out: it %s", folder / path, reason)
    if len(excluded.files) > 20:
        logger.warning("%s: %d videos are left out in all", folder, len(excluded.files))
    odd = sum(not same_rate(rate, store.manifest.fps) for rate in rates)
    if odd:
        logger.warning(
            "%s: %d videos have another frame rate than %.5g fps; their frames are taken as they are",
            *(folder, odd, store.manifest.fps),
        )
    return store, excluded


def kept_clips(folder: Path, choice: ClipChoice, into: Path) -> tuple[ClipStore, Excluded]:
    """As `cut_folder`, but clips that were cut before from the same files by the same choice are taken from `into`.

    Files are the same when names, sizes and times of change are.
    """
    import shutil

    key = json.loads(json.dumps({"choice": asdict(choice), "files": _listing(folder, _rows(folder, choice))}))
    try:
        content = json.loads((into / KEY_FILE).read_text())
        if content["key"] == key:
            store = ClipStore(into)
            store.check_whole()
            return store, Excluded(content["excluded"])
    except (OSError, ValueError, LookupError, TypeError, UserError):
        pass  # not there, left half-written, or damaged: cut anew
    shutil.rmtree(into, ignore_errors=True)
    store, excluded = cut_folder(folder, choice, into)
    (into / KEY_FILE).write_text(json.dumps({"key": key, "excluded": excluded.files}))
    return store, excluded


def same_rate(first: float, second: float) -> bool:
    """Whether two frame rates are one to within 1%, as 29.97 and 30 are."""
    return abs(first - second) <= 0.01 * max(first, second)


def caption_of_name(path: str) -> str:
    """What a file's name says: "a_red_ball-0003.mp4" is "a red ball"."""
    stem = re.sub(r"[-_ .]+\d+$", "", Path(path).stem)
    return re.sub(r"[_\s]+", " ", stem).strip()


def _rows(folder: Path, choice: ClipChoice) -> list[_Row]:
    if not folder.is_dir():
        raise UserError(
            f"The folder of videos {folder} is missing: correct evaluate.generated or evaluate.reference."
        )
    if (folder / choice.captions_file).is_file():
        rows = _listed(folder, choice)
    else:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        names = [p.relative_to(folder).as_posix() for p in files]
        rows = [_Row(name, caption_of_name(name) if choice.name_is_caption else "") for name in names]
    if not rows:
        raise UserError(
            f"The folder {folder} holds no videos to score: give one with files such as .mp4 or .avi, or a clips "
            "folder."
        )
    if choice.limit is not None and choice.limit < len(rows):
        rows = [rows[i] for i in np.random.default_rng(choice.seed).permutation(len(rows))]
    return rows


def _listed(folder: Path, choice: ClipChoice) -> list[_Row]:
    """One row a file of the captions table: of several captions or segments the seed draws one."""
    table = VideoFolderSource(folder, choice.captions_file, test_share=0).captions()
    split = choice.split if choice.split is not None and "test" in set(table["split"]) else None
    by_path: dict[str, list[_Row]] = {}
    for row in table.to_dict("records"):
        if split in (None, row["split"]):
            start, end = (None if np.isnan(row[name]) else float(row[name]) for name in ("start", "end"))
            by_path.setdefault(row["path"], []).append(_Row(row["path"], row["caption"] or "", start, end))
    return [
        same[int(draw(f"{choice.seed}\0row\0{path}") * len(same))] for path, same in sorted(by_path.items())
    ]


def _listing(folder: Path, rows: Sequence[_Row]) -> list[Any]:
    stats = [(folder / row.path).stat() if (folder / row.path).is_file() else None for row in rows]
    return [[asdict(row), s and s.st_size, s and s.st_mtime_ns] for row, s in zip(rows, stats, strict=True)]


def _look_at_all(
    folder: Path, rows: Sequence[_Row], choice: ClipChoice, isolated: Isolated, excluded: Excluded
) -> dict[str, _Look]:
    looks: dict[str, _Look] = {}
    for row in rows:
        if len(looks) == choice.limit:
            break
        try:
            look = isolated.call(look_at, str(folder / row.path), row.start, row.end)
        except (VideoError, IsolationError) as error:
            excluded.files[row.path] = error.reason
            continue
        if len(look.times_s) < choice.num_frames:
            excluded.files[row.path] = f"is too short: {len(look.times_s)} frames of {choice.num_frames}"
        else:
            looks[row.path] = look
    return looks


def look_at(path: str, start: float | None, end: float | None) -> _Look:
    """The times of the frames, by the file's packets, its rate and size. Raises VideoError."""
    info = probe(path)
    with decoder_errors(path):
        container, stream = open_video_stream(path)
        with container:
            packets = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
            tick = float(stream.time_base or 0)
    step = 1 / (info.fps or 25)
    if any(pts is None for pts in packets) or not tick:
        times = [k * step for k in range(len(packets))]
    else:
        ordered = sorted(pts for pts in packets if pts is not None)
        times = [(pts - ordered[0]) * tick for pts in ordered]
    inside = [t for t in times if t >= (start or 0) - step / 2 and (end is None or t < end - step / 2)]
    return _Look(tuple(inside), info.fps, (info.height, info.width))


def _clips(
    folder: Path,
    rows: Sequence[_Row],
    looks: dict[str, _Look],
    choice: ClipChoice,
    isolated: Isolated,
    excluded: Excluded,
) -> Iterator[CaptionedClip]:
    assert choice.size is not None
    options = CutOptions(choice.num_frames, (choice.size,), fps=1.0, stride=1, max_clips_per_row=1)
    for number, row in enumerate(rows):
        look = looks[row.path]
        last = len(look.times_s) - choice.num_frames
        offset = int(draw(f"{choice.seed}\0offset\0{row.path}") * (last + 1)) if choice.random_offset else 0
        name = f"{number:06d}-{safe_name(row.path)}"
        # A damaged end or packets that are no frames leave fewer frames than there are packets: half as far fits.
        for at in dict.fromkeys((offset, offset // 2)):
            try:
                clip = isolated.call(
                    cut_at, str(folder / row.path), name, row.path, look.times_s[at], options
                )
            except (VideoError, IsolationError) as error:
                excluded.files[row.path] = error.reason
            else:
                excluded.files.pop(row.path, None)
                yield CaptionedClip(clip, row.caption, choice.split or "generated")
                break


def cut_at(path: str, clip_id: str, name: str, start_s: float, options: CutOptions) -> Clip:
    """The clip that starts at a time. Raises VideoError."""
    segment = {"row_id": clip_id, "path": name, "start": start_s, "end": None}
    return cut_video(Path(path), segment, options)[0]


def _check_some(folder: Path, usable: Sequence[_Row], excluded: Excluded) -> None:
    if not usable:
        path, reason = next(iter(excluded.files.items()))
        raise UserError(
            f"None of the {len(excluded.files)} videos in {folder} can be scored; the first, {path}, {reason}."
        )


def _most_common(values: Sequence[Any]) -> Any:
    return max(Counter(values).items(), key=lambda item: (item[1], item[0]))[0] if values else (1, 1)


def _of(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
