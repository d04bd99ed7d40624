"""From captioned rows to a folder of clips: tasks that any executor runs, and that a killed run goes on from."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from pyoco_pipeline.data.clip_writing import write_manifest, write_table
from pyoco_pipeline.data.clips import Manifest, Shard
from pyoco_pipeline.data.executors import run_tasks
from pyoco_pipeline.data.filters import duplicates
from pyoco_pipeline.data.ingest_html import write_report
from pyoco_pipeline.data.segments import Segment
from pyoco_pipeline.data.tasks import (
    FileSource,
    RenderedSource,
    Task,
    TaskOptions,
    TaskRecord,
    read_record,
    run_task,
)
from pyoco_pipeline.errors import UserError, is_full_disk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestOptions:
    """How rows become clips.

    segments_per_task: rows of one split that are cut together, and what a killed run does again at most per worker.
    max_bad_share: of the segments, that may be unusable. workers: processes, None: as many as cores; executor: inline
    runs in this process.
    """

    task: TaskOptions
    segments_per_task: int = 256
    max_bad_share: float = 0.2
    executor: Literal["inline", "processes", "ray"] = "processes"
    workers: int | None = None
    ray_address: str | None = None


def ingest_clips(
    folder: Path,
    work: Path,
    sources: Sequence[FileSource | RenderedSource],
    captions: pd.DataFrame,
    options: IngestOptions,
) -> Manifest:
    """Cut the clips of all rows of `captions` and put them into `folder`.

    folder: empty; beside the clips it gets quarantine.csv (segments that can't be used), left_out.csv (clips that
    filters left out), report.json and report.html. work: keeps what is done until all is. sources: those that the
    column `source` of the captions counts through; the first, without such a column.
    Raises UserError when more than max_bad_share of the segments are unusable, one excepted, when no clip is left, and
    when there is no room.
    """
    tasks = plan_tasks(sources, captions, options, work)
    try:
        _run(tasks, options)
        return _finish(folder, tasks, options, len(captions))
    except OSError as error:
        if is_full_disk(error):
            done = sum(read_record(task) is not None for task in tasks)
            raise UserError(
                f"no room left below {work} or {folder} ({error}): make room and run the same command again. "
                f"{done} of {len(tasks)} tasks are done and kept."
            ) from error
        raise


def write_ingested(folder: Path, work: Path, **what: Any) -> Callable[[], None]:
    """`ingest_clips`; returns what lets go of the finished tasks, to be called when `folder` is where it belongs."""
    ingest_clips(folder, work, **what)
    return partial(_forget, work)


def _forget(work: Path) -> None:
    for task in work.iterdir():
        shutil.rmtree(task, ignore_errors=True)


def plan_tasks(
    sources: Sequence[FileSource | RenderedSource], captions: pd.DataFrame, options: IngestOptions, work: Path
) -> list[Task]:
    """The tasks of a table: rows of one file and segment become one segment with several captions."""
    blocks: dict[tuple[int, str], list[Segment]] = {}
    known: dict[tuple[Any, ...], Segment] = {}
    for row in captions.to_dict("records"):
        place = int(row.get("source", 0))
        start, end = (None if pd.isna(row.get(name)) else float(row[name]) for name in ("start", "end"))
        key = (
            place,
            row["path"],
            start,
            end,
            row["split"],
            row["row_id"] if isinstance(sources[place], RenderedSource) else None,  # each is drawn anew
        )
        caption = "" if pd.isna(row["caption"]) else str(row["caption"])
        if key in known:
            if caption not in known[key]["captions"]:
                known[key]["captions"].append(caption)
            continue
        cells = {str(name): value for name, value in row.items()}
        known[key] = {**cells, "start": start, "end": end, "captions": [caption]}
        blocks.setdefault((place, str(row["split"])), []).append(known[key])
    tasks = []
    for (place, split), segments in blocks.items():
        source, size = sources[place], options.segments_per_task
        for number, first in enumerate(range(0, len(segments), size)):
            part = tuple(segments[first : first + size])
            is_image = getattr(source, "media", "video") == "image"
            tasks.append(Task(number, split, is_image, source, part, options.task, work))
    return tasks


def _run(tasks: Sequence[Task], options: IngestOptions) -> None:
    if not tasks:
        raise UserError("no caption is left to make a clip of: look at the captions' report, and mend them.")
    work = tasks[0].work
    work.mkdir(parents=True, exist_ok=True)
    keys = {task.key for task in tasks}
    for leftover in work.iterdir():  # of other data or settings, or of a killed run
        if leftover.name not in keys:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    records = [read_record(task) for task in tasks]
    todo = [task for task, record in zip(tasks, records, strict=True) if record is None]
    if len(todo) < len(tasks):
        logger.info("ingest: %d of %d tasks are done already", len(tasks) - len(todo), len(tasks))
    total = sum(len(task.segments) for task in tasks)
    bad = sum(len(record.quarantine) for record in records if record)
    results = run_tasks(
        run_task,
        todo,
        executor=options.executor,
        workers=options.workers,
        ray_address=options.ray_address,
    )
    try:
        with tqdm(total=total, initial=total - sum(len(t.segments) for t in todo), desc="ingest", unit="segment",
                  disable=None) as bar:  # fmt: skip
            for _, (segments, quarantined) in results:
                bar.update(segments)
                bad += quarantined
                _check_share(bad, total, tasks, options)
    finally:
        results.close()


def _finish(folder: Path, tasks: Sequence[Task], options: IngestOptions, num_rows: int) -> Manifest:
    records = [_record(task) for task in tasks]
    total = sum(record.segments for record in records)
    bad = sum(len(record.quarantine) for record in records)
    _check_share(bad, total, tasks, options)
    if not any(record.clips for record in records):
        raise UserError(
            f"{_unread(records, total)}, and no clip is left of {total} segments. {_first(records)} Mend them, or give "
            "other videos."
        )
    distance = options.task.filters.max_duplicate_distance
    repeats = {} if distance is None else _repeats(tasks, records, distance)
    shards: list[Shard] = []
    left_out = [row for record in records for row in record.left_out]
    folder.mkdir(parents=True, exist_ok=True)
    for task, record in zip(tasks, records, strict=True):
        for shard in record.shards:
            kept, dropped = _place(folder, task, shard, repeats.get(shard.file), options.task.compression)
            shards += [kept] if kept else []
            left_out += dropped
    cut = options.task.cut
    kinds = "+".join(dict.fromkeys(task.source.kind for task in tasks))
    rates = _rates(records)
    fps = cut.fps if cut.stride is None or not rates else max(rates, key=lambda rate: (rates[rate], rate))
    empty = Manifest(kinds, cut.num_frames, *_main_size(shards, cut.num_frames), fps, counts={}, sha256="")
    manifest = write_manifest(folder, empty, shards)
    quarantine = [row for record in records for row in record.quarantine]
    _write_csv(folder / "quarantine.csv", "row_id", quarantine)
    _write_csv(folder / "left_out.csv", "clip_id", left_out)
    report = _report(manifest, records, left_out, num_rows)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    write_report(folder, report, quarantine, left_out)
    if bad or left_out:
        logger.warning(
            "%d of %d segments can't be used and %d clips were left out: quarantine.csv and left_out.csv beside the "
            "clips say why", bad, total, len(left_out),
        )  # fmt: skip
    return manifest


def _record(task: Task) -> TaskRecord:
    record = read_record(task)
    assert record is not None, task.key
    return record


def _main_size(shards: Sequence[Shard], num_frames: int) -> tuple[int, int]:
    """The size of most clips, or of most images where there are no clips."""
    clips = [shard for shard in shards if shard.frames == num_frames] or list(shards)
    counts = Counter[tuple[int, int]]()
    for shard in clips:
        counts[shard.height, shard.width] += shard.rows
    return max(counts, key=lambda size: (counts[size], size))


def _rates(records: Sequence[TaskRecord]) -> Counter[float]:
    """How many clips there are of each frame rate."""
    rates = Counter[float]()
    for record in records:
        rates.update({float(rate): count for rate, count in record.rates.items()})
    return rates


def _repeats(tasks: Sequence[Task], records: Sequence[TaskRecord], distance: int) -> dict[str, np.ndarray]:
    """Per shard, which of its clips repeat an earlier one; of test and train the train clip goes.

    Images are compared with images alone: their hashes mean something else.
    """
    found: dict[str, np.ndarray] = {}
    for are_images in (False, True):
        shards = [
            (shard, task.folder / shard.file)
            for task, record in zip(tasks, records, strict=True)
            for shard in record.shards
            if task.is_image == are_images
        ]
        shards.sort(key=lambda pair: (pair[0].split != "test", pair[0].file))
        columns = [pq.read_table(path, columns=["phash"])["phash"].combine_chunks() for _, path in shards]
        if not columns:
            continue
        hashes = pa.concat_arrays(columns)
        known = hashes.is_valid().to_numpy(zero_copy_only=False)
        repeated = np.zeros(len(hashes), bool)
        repeated[known] = duplicates(hashes.drop_null().to_numpy(), distance)
        ends = np.cumsum([len(column) for column in columns])[:-1]
        parts = np.split(repeated, ends)
        found |= {shard.file: part for (shard, _), part in zip(shards, parts, strict=True)}
    return found


def _place(
    folder: Path, task: Task, shard: Shard, repeats: np.ndarray | None, compression: str
) -> tuple[Shard | None, list[tuple[str, str, str]]]:
    """Put a shard into `folder`, without the clips that repeat others; the task stays whole until all is in place."""
    source = task.folder / shard.file
    if repeats is None or not repeats.any():
        try:
            os.link(source, folder / shard.file)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, folder / shard.file)
        return shard, []
    table = pq.read_table(source)
    gone = table.filter(pa.array(repeats))
    paths = [json.loads(text).get("path", "") for text in gone["attributes"].to_pylist()]
    dropped = [(str(name), path, "is a near duplicate of another clip")
               for name, path in zip(gone["clip_id"].to_pylist(), paths, strict=True)]  # fmt: skip
    kept = table.filter(pc.invert(pa.array(repeats)))
    if not kept.num_rows:
        return None, dropped
    group_rows = write_table(folder / shard.file, kept, compression)
    return replace(shard, rows=kept.num_rows, group_rows=group_rows), dropped


def _write_csv(path: Path, name: str, rows: Sequence[tuple[str, str, str]]) -> None:
    table = pd.DataFrame(list(rows), columns=[name, "path", "reason"])
    table.to_csv(path, index=False, encoding="utf-8", errors="replace")


def _report(
    manifest: Manifest, records: Sequence[TaskRecord], left_out: Sequence[tuple[str, str, str]], num_rows: int
) -> dict[str, Any]:
    quarantine = [row for record in records for row in record.quarantine]
    sizes = Counter[str]()
    for shard in manifest.shards:
        sizes[f"{shard.frames}x{shard.height}x{shard.width}"] += shard.rows
    return {
        "captions": num_rows,
        "segments": sum(record.segments for record in records),
        "clips": manifest.counts,
        "images": manifest.images,
        "rates": {f"{rate:g}": count for rate, count in sorted(_rates(records).items())},
        "scenes_too_short": sum(record.scenes_skipped for record in records),
        "clips_beyond_max_clips_per_row": sum(record.more_clips for record in records),
        "sizes": dict(sorted(sizes.items())),
        "quarantine": dict(Counter(_reason_class(reason) for _, _, reason in quarantine).most_common()),
        "left_out": dict(Counter(_reason_class(reason) for _, _, reason in left_out).most_common()),
    }


def _reason_class(reason: str) -> str:
    """A reason without its own figures, so that equal ones are counted together."""
    return re.sub(r"\d[\d.,]*", "N", reason)


def _check_share(bad: int, total: int, tasks: Sequence[Task], options: IngestOptions) -> None:
    """UserError where too many segments are bad; one alone never is."""
    if bad > max(1, options.max_bad_share * total):
        records = [record for task in tasks if (record := read_record(task))]
        raise UserError(
            f"{_unread(records, total)}, more than the share {options.max_bad_share:g} of ingest.max_bad_share. "
            f"{_first(records)} Mend or drop them, or raise the share."
        )


def _unread(records: Sequence[TaskRecord], total: int) -> str:
    return f"{sum(len(record.quarantine) for record in records)} of {total} segments could not be used"


def _first(records: Sequence[TaskRecord]) -> str:
    rows = [row for record in records for row in (*record.quarantine, *record.left_out)][:5]
    return "First: " + ("; ".join(f"{name} ({reason})" for name, _, reason in rows) or "none") + "."
