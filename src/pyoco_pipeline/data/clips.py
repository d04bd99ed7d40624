"""Clips on disk: Parquet shards of raw frames beside a manifest that says what they are.

A shard holds clips of one split, size and number of frames; an image is a clip of one frame. The order of a store is
that of its shards' names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyoco_pipeline.errors import UserError, in_one_line

SCHEMA_VERSION = 2
SCORES = ("motion", "brightness", "letterbox", "clip_score")


@dataclass(frozen=True)
class Clip:
    """One clip as it is kept: `video` is (T, H, W, C), uint8 pixels or float16 latents.

    attributes: what is known beside the caption; fps: frames per second, None: the store's; scores: what filters judged
    by, among `SCORES`; phash: a 64-bit perceptual hash.
    """

    clip_id: str
    video: np.ndarray
    attributes: dict[str, str] = field(default_factory=dict)
    fps: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    phash: int | None = None


@dataclass(frozen=True)
class CaptionedClip:
    """A clip with its caption, its split and, where it has several captions, the others."""

    clip: Clip
    caption: str
    split: str
    other_captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """One file of a store: `rows` clips of one split and shape, in row groups of `group_rows`, the last one shorter."""

    file: str
    split: str
    rows: int
    group_rows: int
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of clips holds; `sha256` is over ids, captions, splits and pixels in stored order.

    num_frames: of the clips that are not images. height, width: of most clips, the others are in `shards`. images:
    counted apart. latents_of: sha256 of the clips whose latents these are. autoencoder: of latents, `folder`, `sha256`
    and what `data.latents` needs to scale them.
    """

    kind: str  # "moving_digits", "video_folder": what made the pixels
    num_frames: int
    height: int
    width: int
    fps: float
    counts: dict[str, int]  # split -> clips
    sha256: str
    dtype: str = "uint8"
    channels: int = 3
    images: int = 0  # beside the clips; of split train
    shards: tuple[Shard, ...] = ()
    latents_of: str | None = None
    autoencoder: dict[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION


class ClipStore:
    """Read a folder that `write_clips` made, on this machine or at an fsspec URL such as s3://bucket/clips.

    Raises UserError when the folder is not one, can't be read, or was written by another version of the format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.is_remote = "://" in str(folder)
        self.folder = folder if self.is_remote else Path(folder)
        try:
            content = json.loads(self.read_text("manifest.json"))
            version = content.get("schema_version")
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder} is not a folder of clips: it has no manifest.json. Run `ingest` anew."
            ) from error
        except (ValueError, AttributeError) as error:
            raise self._damaged("manifest.json", error) from error
        self._stamp = self._stamped()
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{self.folder}/manifest.json has schema version {version}, this version reads {SCHEMA_VERSION}. Run "
                "the pipeline that made it anew."
            )
        try:
            shards = tuple(Shard(**shard) for shard in content.pop("shards"))
            self.manifest = Manifest(**content, shards=shards)
        except (KeyError, TypeError) as error:
            raise self._damaged("manifest.json", error) from error
        self._known: set[str] = set()  # shards that were found to be what the manifest says

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width) of most clips."""
        return self.manifest.num_frames, self.manifest.height, self.manifest.width

    @property
    def unseen_split(self) -> str:
        """The split to show and to prompt from: "test", or "train" where there are no test clips."""
        return "test" if self.manifest.counts.get("test") else "train"

    @contextmanager
    def open_shard(self, shard: Shard) -> Iterator[pq.ParquetFile]:
        """The Parquet file of a shard, to be read within; a local one is mapped into memory, not read.

        UserError where it is missing, can't be read, or holds something else than the manifest says.
        """
        from pyoco_pipeline.data.storage import remote_errors

        try:
            with (
                remote_errors(str(self.folder)) if self.is_remote else nullcontext(),
                self._parquet(shard) as file,
            ):
                self._check(shard, file)
                yield file
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            raise self._damaged(shard.file, error) from error

    def check_whole(self) -> None:
        """UserError where a shard is missing, cut short or of other clips; all are opened, and no clip is read."""
        for shard in self.manifest.shards:
            with self.open_shard(shard):
                pass

    def _parquet(self, shard: Shard) -> pq.ParquetFile:
        if self.is_remote:
            # Parquet says which bytes it needs; reading ahead of it fetches four times as many.
            file = self._remote().open(f"{self.folder}/{shard.file}", "rb", cache_type="none")
            return pq.ParquetFile(file, pre_buffer=True)
        return pq.ParquetFile(Path(self.folder) / shard.file, memory_map=True)

    def _check(self, shard: Shard, file: pq.ParquetFile) -> None:
        if shard.file in self._known:
            return
        if file.metadata.num_rows != shard.rows:
            raise ValueError(f"it has {file.metadata.num_rows} rows, the manifest says {shard.rows}")
        clip_bytes = math.prod(self.clip_shape(shard)) * np.dtype(self.manifest.dtype).itemsize
        found = file.schema_arrow.field("video").type
        if found != pa.binary(clip_bytes):
            raise ValueError(f"its column video is {found}, clips are of {clip_bytes} bytes")
        self._known.add(shard.file)

    def _damaged(self, file: str, error: Exception) -> UserError:
        return UserError(
            f"{self.folder}/{file} can't be read as clips ({in_one_line(error)}): run the pipeline that made them "
            "again, `ingest` or `generate`."
        )

    def check_unchanged(self) -> None:
        """UserError where the folder was written anew since it was opened: what was read of it is of other clips."""
        if self._stamp != self._stamped():
            raise UserError(
                f"{self.folder} was written anew while it was read: start this run again, or ingest into another data "
                "folder (globals.yml: data)."
            )

    def _stamped(self) -> tuple[int, int] | None:
        if self.is_remote:
            return None
        try:
            found = (Path(self.folder) / "manifest.json").stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def clip_shape(self, shard: Shard) -> tuple[int, int, int, int]:
        """(frames, height, width, channels) of a shard's clips."""
        return shard.frames, shard.height, shard.width, self.manifest.channels

    def shards(self, split: str | None = None, *, images: bool = False) -> list[Shard]:
        """The shards of clips, or of the images beside them, of one split or of all."""
        frames = {1} - {self.manifest.num_frames} if images else {self.manifest.num_frames}
        return [s for s in self.manifest.shards if s.frames in frames and split in (None, s.split)]

    def clips(self, split: str | None = None, *, images: bool = False) -> Iterator[CaptionedClip]:
        """Stream the clips, or the images beside them, of one split or of all, in stored order."""
        for shard in self.shards(split, images=images):
            with self.open_shard(shard) as file:
                for batch in file.iter_batches(batch_size=shard.group_rows):
                    for row in batch.to_pylist():
                        clip = self._clip(row, self.clip_shape(shard))
                        yield CaptionedClip(clip, row["caption"], row["split"], tuple(row["other_captions"]))

    def _clip(self, row: dict[str, Any], shape: tuple[int, ...]) -> Clip:
        video = np.frombuffer(row["video"], self.manifest.dtype).reshape(shape)
        scores = {name: row[name] for name in SCORES if row[name] is not None}
        attributes = json.loads(row["attributes"])
        return Clip(row["clip_id"], video, attributes, row["fps"], scores, row["phash"])

    def videos(self, split: str | None = None, limit: int | None = None) -> np.ndarray:
        """(N, T, H, W, C) of one split in memory, at most `limit` clips."""
        return np.stack([item.clip.video for item in self.take(split, limit)])

    def take(self, split: str | None = None, limit: int | None = None) -> list[CaptionedClip]:
        """The first `limit` clips of a split as a list; UserError when there is none."""
        items: list[CaptionedClip] = []
        for item in self.clips(split):
            if limit is not None and len(items) >= limit:
                break
            items.append(item)
        if not items:
            raise self.empty(split)
        return items

    def empty(self, split: str | None) -> UserError:
        """The error of a split that has no clips."""
        return UserError(
            f"{self.folder} holds no clips of split {split!r}, only {self.manifest.counts}. Check the split "
            "column of the captions table or ingest's test_share."
        )

    def read_text(self, name: str) -> str:
        """A file of text beside the clips."""
        if self.is_remote:
            return self._remote().cat_file(f"{self.folder}/{name}").decode()
        return (Path(self.folder) / name).read_text(encoding="utf-8")

    def _remote(self) -> Any:
        from pyoco_pipeline.data.storage import filesystem

        return filesystem(str(self.folder))
