"""Clips on disk: Parquet shards of raw uint8 frames beside a manifest that says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyoco_pipeline.errors import UserError

SHARD_ROWS = 1024
SCHEMA_VERSION = 1

_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
        ("attributes", pa.string()),  # JSON object of strings
        ("video", pa.binary()),  # (T, H, W, 3) uint8 in C order
    ]
)


@dataclass(frozen=True)
class Clip:
    """One clip as it is kept: `video` is (T, H, W, 3) uint8; `attributes` is what is known beside the caption."""

    clip_id: str
    video: np.ndarray
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionedClip:
    """A clip with its caption and its split, as a store holds it."""

    clip: Clip
    caption: str
    split: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of clips holds; `sha256` is over ids, captions, splits and pixels in stored order."""

    kind: str  # "moving_digits", "video_folder": what made the pixels
    num_frames: int
    height: int
    width: int
    fps: float
    counts: dict[str, int]  # split -> clips
    sha256: str
    schema_version: int = SCHEMA_VERSION


def write_clips(
    folder: Path, clips: Iterable[CaptionedClip], *, kind: str, shape: tuple[int, int, int], fps: float
) -> Manifest:
    """Stream clips into `folder` and return its manifest; memory does not grow with their number.

    shape: (frames, height, width) that every clip must have; a clip of another shape is a ValueError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    counts: dict[str, int] = {}
    rows: list[dict[str, object]] = []
    shard = 0
    for item in clips:
        video = item.clip.video
        if video.shape != (*shape, 3) or video.dtype != np.uint8:
            raise ValueError(
                f"clip {item.clip.clip_id} is {video.dtype} {video.shape}, expected uint8 {(*shape, 3)}"
            )
        pixels = np.ascontiguousarray(video).tobytes()
        for part in (item.clip.clip_id, item.split, item.caption):
            digest.update(part.encode() + b"\0")
        digest.update(pixels)
        counts[item.split] = counts.get(item.split, 0) + 1
        rows.append(
            {
                "clip_id": item.clip.clip_id,
                "split": item.split,
                "caption": item.caption,
                "attributes": json.dumps(item.clip.attributes, sort_keys=True),
                "video": pixels,
            }
        )
        if len(rows) == SHARD_ROWS:
            _write_shard(folder, shard, rows)
            rows, shard = [], shard + 1
    if rows:
        _write_shard(folder, shard, rows)
    manifest = Manifest(kind, *shape, fps=fps, counts=counts, sha256=digest.hexdigest())
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


def _write_shard(folder: Path, shard: int, rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    pq.write_table(table, folder / f"clips-{shard:05d}.parquet", compression="zstd", row_group_size=128)


class ClipStore:
    """Read a folder that `write_clips` made.

    Raises UserError when the folder is not one, or was written by another version of the format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise UserError(
                f"{self.folder} is not a folder of clips: it has no manifest.json. Run `ingest` anew."
            )
        content = json.loads(path.read_text())
        if content.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {content.get('schema_version')}, this version reads "
                f"{SCHEMA_VERSION}. Run the pipeline that made it anew."
            )
        self.manifest = Manifest(**content)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width) of every clip."""
        return self.manifest.num_frames, self.manifest.height, self.manifest.width

    @property
    def unseen_split(self) -> str:
        """The split to show and to prompt from: "test", or "train" where there are no test clips."""
        return "test" if self.manifest.counts.get("test") else "train"

    def clips(self, split: str | None = None, *, batch_size: int = 128) -> Iterator[CaptionedClip]:
        """Stream the clips of one split (or all) in stored order."""
        for path in sorted(self.folder.glob("clips-*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(batch_size=batch_size):
                for row in batch.to_pylist():
                    if split is None or row["split"] == split:
                        yield CaptionedClip(self._clip(row), row["caption"], row["split"])

    def _clip(self, row: dict[str, object]) -> Clip:
        pixels: bytes = row["video"]  # type: ignore[assignment]
        video = np.frombuffer(pixels, np.uint8).reshape(*self.shape, 3)
        return Clip(str(row["clip_id"]), video, json.loads(str(row["attributes"])))

    def videos(self, split: str | None = None, limit: int | None = None) -> np.ndarray:
        """(N, T, H, W, 3) uint8 of one split in memory, at most `limit` clips."""
        return np.stack([item.clip.video for item in self.take(split, limit)])

    def take(self, split: str | None = None, limit: int | None = None) -> list[CaptionedClip]:
        """The first `limit` clips of a split as a list; UserError when there is none."""
        items: list[CaptionedClip] = []
        for item in self.clips(split):
            if limit is not None and len(items) >= limit:
                break
            items.append(item)
        if not items:
            raise UserError(
                f"{self.folder} holds no clips of split {split!r}, only {self.manifest.counts}. Check the split "
                "column of the captions table or ingest.test_share."
            )
        return items
