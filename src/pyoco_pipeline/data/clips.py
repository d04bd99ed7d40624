"""Clips on disk: Parquet shards of raw frames beside a manifest that says what they are.

A shard holds clips of one split, size and number of frames; an image is a clip of one frame. The order of a store is
that of its shards' names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyoco_pipeline.errors import UserError, in_one_line

SHARD_ROWS = 1024
GROUP_BYTES = 8 << 20  # of a row group: what is read at once
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


def write_clips(
    folder: Path,
    clips: Iterable[CaptionedClip],
    *,
    kind: str,
    shape: tuple[int, int, int],
    fps: float,
    sizes: Sequence[tuple[int, int]] = (),
    dtype: str = "uint8",
    channels: int = 3,
    compression: str = "none",
    latents_of: str | None = None,
    autoencoder: dict[str, Any] | None = None,
) -> Manifest:
    """Stream clips into `folder` and return its manifest; memory does not grow with their number.

    shape: (frames, height, width) that every clip must have, except that its size may be one of `sizes` too, and that
    it may be an image; another shape or dtype is a ValueError. compression: a codec of Parquet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, dtype=dtype, channels=channels, compression=compression)
    known = {shape[1:], *sizes}
    waiting: dict[tuple[str, tuple[int, ...]], list[CaptionedClip]] = {}
    numbers: dict[str, int] = {}
    shards: list[Shard] = []

    def flush(key: tuple[str, tuple[int, ...]]) -> None:
        name = shard_name(key[0], key[1][0] == 1 < shape[0])
        numbers[name] = numbers.get(name, -1) + 1
        shards.append(writer.write(f"{name}-{numbers[name]:05d}.parquet", waiting.pop(key)))

    for item in clips:
        video = item.clip.video
        if video.shape[0] not in (1, shape[0]) or video.shape[1:3] not in known:
            raise ValueError(
                f"clip {item.clip.clip_id} is {video.dtype} {video.shape}, expected {dtype} {(*shape, channels)}"
            )
        key = item.split, video.shape[:3]
        waiting.setdefault(key, []).append(item)
        if len(waiting[key]) == SHARD_ROWS:
            flush(key)
    for key in list(waiting):
        flush(key)
    empty = Manifest(kind, *shape, fps=fps, counts={}, sha256="", dtype=dtype, channels=channels)
    return write_manifest(folder, replace(empty, latents_of=latents_of, autoencoder=autoencoder), shards)


def join_clips(folder: Path, parts: Sequence[Path]) -> Manifest:
    """Move the clips of several folders of one kind and shape into `folder`, in the order of the folders."""
    manifests = [ClipStore(part).manifest for part in parts]
    numbers: dict[str, int] = {}
    shards: list[Shard] = []
    for part, manifest in zip(parts, manifests, strict=True):
        for shard in manifest.shards:
            name = shard_name(shard.split, shard.frames == 1 < manifest.num_frames)
            numbers[name] = numbers.get(name, -1) + 1
            shards.append(replace(shard, file=f"{name}-{numbers[name]:05d}.parquet"))
            (part / shard.file).rename(folder / shards[-1].file)
    return write_manifest(folder, replace(manifests[0], counts={}, images=0, sha256="", shards=()), shards)


def shard_name(split: str, is_image: bool) -> str:
    """What the names of a split's shards begin with."""
    return f"images-{split}" if is_image else split


def write_manifest(folder: Path, empty: Manifest, shards: Iterable[Shard]) -> Manifest:
    """Complete a manifest with the shards that lie in `folder`, and write it there."""
    ordered = tuple(sorted(shards, key=lambda shard: shard.file))
    digest = hashlib.sha256()
    counts: dict[str, int] = {}
    images = 0
    for shard in ordered:
        for part in pq.read_table(folder / shard.file, columns=["sha256"])["sha256"].to_pylist():
            digest.update(part)
        if shard.frames == empty.num_frames:
            counts[shard.split] = counts.get(shard.split, 0) + shard.rows
        else:
            images += shard.rows
    manifest = replace(empty, counts=counts, images=images, sha256=digest.hexdigest(), shards=ordered)
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


class ShardWriter:
    """Writes shards into `folder`; what it writes is a function of the clips alone."""

    def __init__(
        self, folder: Path, *, dtype: str = "uint8", channels: int = 3, compression: str = "none"
    ) -> None:
        self.folder, self.dtype, self.channels, self.compression = folder, dtype, channels, compression

    def write(self, file: str, clips: Sequence[CaptionedClip]) -> Shard:
        """Write clips of one split and size; the file is either whole or not there."""
        first = clips[0]
        shape = (*first.clip.video.shape[:3], self.channels)
        for item in clips:
            video = item.clip.video
            if video.shape != shape or video.dtype != self.dtype:
                raise ValueError(
                    f"clip {item.clip.clip_id} is {video.dtype} {video.shape}, expected {self.dtype} {shape}"
                )
        pixels = [np.ascontiguousarray(item.clip.video).tobytes() for item in clips]
        rows = [_row(item, data) for item, data in zip(clips, pixels, strict=True)]
        table = pa.Table.from_pylist(rows, schema=_schema(len(pixels[0])))
        group_rows = write_table(self.folder / file, table, self.compression)
        return Shard(file, first.split, len(clips), group_rows, *shape[:3])


def write_table(path: Path, table: pa.Table, compression: str) -> int:
    """Write a table of clips, aside and then in place; returns the rows of a row group, some GROUP_BYTES."""
    clip_bytes = table.schema.field("video").type.byte_width
    group_rows = max(1, min(SHARD_ROWS, GROUP_BYTES // clip_bytes))
    aside = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(
            table,
            aside,
            compression=compression,
            row_group_size=group_rows,
            use_dictionary=["split"],
            write_statistics=False,
        )
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return group_rows


def _schema(clip_bytes: int) -> pa.Schema:
    return pa.schema(
        [
            ("clip_id", pa.string()),
            ("split", pa.string()),
            ("caption", pa.string()),
            ("other_captions", pa.list_(pa.string())),
            ("attributes", pa.string()),  # JSON object of strings
            ("fps", pa.float64()),
            *((name, pa.float32()) for name in SCORES),
            ("phash", pa.uint64()),
            ("sha256", pa.binary(32)),
            ("video", pa.binary(clip_bytes)),  # (T, H, W, C) in C order, little-endian
        ]
    )


def _row(item: CaptionedClip, pixels: bytes) -> dict[str, Any]:
    digest = hashlib.sha256()
    for part in (item.clip.clip_id, item.split, item.caption, *item.other_captions):
        digest.update(part.encode() + b"\0")
    digest.update(pixels)
    return {
        "clip_id": item.clip.clip_id,
        "split": item.split,
        "caption": item.caption,
        "other_captions": list(item.other_captions),
        "attributes": json.dumps(item.clip.attributes, sort_keys=True),
        "fps": item.clip.fps,
        **{name: item.clip.scores.get(name) for name in SCORES},
        "phash": item.clip.phash,
        "sha256": digest.digest(),
        "video": pixels,
    }


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
