"""Writing of the clips that `data.clips` reads: whole shards, and the manifest that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyoco_pipeline.data.clips import SCORES, CaptionedClip, ClipStore, Manifest, Shard

SHARD_ROWS = 1024
GROUP_BYTES = 8 << 20  # of a row group: what is read at once


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
