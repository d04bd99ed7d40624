"""Latents on disk: a second store of the same clips, encoded once, for models that are trained in latent space.

<folder>/manifest.json, *.parquet     as clips are kept; `video` is (T, h, w, 2C) float16: the mean and the standard
                                      deviation of each frame's latents, unscaled
<folder>/vae                          the autoencoder itself, so that who has the latents can decode them
<folder>/none.json                    instead of all that where there is no autoencoder: models are of pixels

The standard deviation and not its logarithm, as in diffusers: half precision keeps it to 0.05%, of the logarithm of a
small one it leaves 1%.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyoco_pipeline.data.clip_writing import ShardWriter, write_manifest
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore, Manifest, Shard
from pyoco_pipeline.errors import UserError

if TYPE_CHECKING:
    from pyoco_pipeline.data.batches import Decode
    from pyoco_pipeline.models.autoencoder import Autoencoder, LatentScaling

_NONE = "none.json"
_AUTOENCODER = "vae"
_FRAMES = 64  # that go to the autoencoder at a time, which takes fewer at once where they are large


def write_latents(folder: Path, *, clips: Path | str, autoencoder: str | None) -> Manifest | None:
    """Encode every clip and image of the store `clips` with the autoencoder in folder `autoencoder`, into `folder`.

    Shard for shard, so that order, captions, splits and scores are the same; one shard is in memory at a time. With
    autoencoder None, it writes down that there is none.
    Raises UserError where the autoencoder can't be loaded, does not divide the clips' size, or gives latents that are
    not finite in float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if autoencoder is None:
        (folder / _NONE).write_text(json.dumps({"autoencoder": None}) + "\n")
        return None
    from pyoco_pipeline.models.autoencoder import load_autoencoder

    store, encoder = ClipStore(clips), load_autoencoder(autoencoder)
    for shard in store.manifest.shards:
        encoder.check_size(shard.height, shard.width)
    encoder.save(folder / _AUTOENCODER)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    writer = ShardWriter(folder, dtype="float16", channels=2 * encoder.channels)
    total = sum(store.manifest.counts.values()) + store.manifest.images
    streams = store.clips(), store.clips(images=True)
    with tqdm(total=total, desc="latents", unit="clip", disable=None) as bar:
        shards = [
            _encode_shard(shard, streams[shard.frames != store.manifest.num_frames], encoder, writer, bar)
            for shard in store.manifest.shards
        ]
    return write_manifest(folder, _manifest(store.manifest, encoder), shards)


def _encode_shard(
    shard: Shard, clips: Iterator[CaptionedClip], autoencoder: Autoencoder, writer: ShardWriter, bar: tqdm
) -> Shard:
    encoded: list[CaptionedClip] = []
    while len(encoded) < shard.rows:
        some = list(islice(clips, min(shard.rows - len(encoded), max(1, _FRAMES // shard.frames))))
        videos = torch.from_numpy(np.stack([item.clip.video for item in some]))
        for item, moments in zip(some, autoencoder.encode(videos).half().cpu(), strict=True):
            if not moments.isfinite().all():
                raise UserError(
                    f"clip {item.clip.clip_id} has latents that are not finite in float16: the autoencoder that "
                    "ingest.autoencoder names is broken, or not made for such pixels."
                )
            encoded.append(replace(item, clip=replace(item.clip, video=moments.numpy())))
        bar.update(len(some))
    return writer.write(shard.file, encoded)


def _manifest(pixels: Manifest, autoencoder: Autoencoder) -> Manifest:
    return replace(
        pixels,
        height=pixels.height // autoencoder.downsampling,
        width=pixels.width // autoencoder.downsampling,
        dtype="float16",
        channels=2 * autoencoder.channels,
        latents_of=pixels.sha256,
        autoencoder={
            "folder": _AUTOENCODER,
            "name": autoencoder.name,
            "sha256": autoencoder.sha256,
            "downsampling": autoencoder.downsampling,
            "shift": list(autoencoder.scaling.shift),
            "factor": list(autoencoder.scaling.factor),
        },
    )


def training_store(clips: Path | str, latents: Path | str) -> ClipStore:
    """What models are trained on and sampled as: the latents where there are some, else the clips.

    latents: what `write_latents` wrote; both on this machine or at a URL. Raises UserError where it is of other clips.
    """
    if _says_none(latents):
        return ClipStore(clips)
    store, pixels = ClipStore(latents), ClipStore(clips)
    if store.manifest.latents_of != pixels.manifest.sha256:
        raise UserError(
            f"{latents} holds the latents of other clips than those in {clips} (sha256 "
            f"{str(store.manifest.latents_of)[:12]}…, not {pixels.manifest.sha256[:12]}…): run `ingest` anew."
        )
    return store


def _says_none(latents: Path | str) -> bool:
    if "://" not in str(latents):
        return (Path(latents) / _NONE).is_file()
    from pyoco_pipeline.data.storage import filesystem

    return bool(filesystem(str(latents)).isfile(f"{latents}/{_NONE}"))


def autoencoder_sha256(store: ClipStore) -> str | None:
    """Of the autoencoder whose latents a store holds; None for pixels."""
    return store.manifest.autoencoder["sha256"] if store.manifest.autoencoder else None


def sample_channels(store: ClipStore) -> int:
    """Channels of what a model is trained on: of the pixels, or of the latents."""
    return store.manifest.channels // (2 if store.manifest.autoencoder else 1)


def open_autoencoder(
    store: ClipStore, *, slice_frames: int | None = None, tiling: bool = False
) -> Autoencoder | None:
    """The autoencoder that decodes a store's latents, from the store itself; None for pixels.

    Arguments as for `Autoencoder`. Raises UserError where it is not the one that encoded them any more.
    """
    known = store.manifest.autoencoder
    if known is None:
        return None
    from pyoco_pipeline.models.autoencoder import load_autoencoder

    with _local_folder(store, known["folder"]) as folder:
        autoencoder = load_autoencoder(folder, slice_frames=slice_frames, tiling=tiling)
    if autoencoder.sha256 != known["sha256"]:
        raise UserError(
            f"the autoencoder in {store.folder}/{known['folder']} is not the one that encoded the latents (sha256 "
            f"{autoencoder.sha256[:12]}…, not {known['sha256'][:12]}…): run `ingest` anew."
        )
    autoencoder.name = known["name"]
    return autoencoder


@contextmanager
def _local_folder(store: ClipStore, name: str) -> Iterator[Path]:
    """A folder of the store; within, a copy where the store is on another machine."""
    if not store.is_remote:
        yield Path(store.folder) / name
        return
    from pyoco_pipeline.data.storage import filesystem

    with TemporaryDirectory() as aside:
        filesystem(str(store.folder)).get(f"{store.folder}/{name}", str(Path(aside) / name), recursive=True)
        yield Path(aside) / name


def latent_decode(store: ClipStore) -> Decode | None:
    """`decode` of `ClipBatches` for this store: None for pixels."""
    known = store.manifest.autoencoder
    if known is None:
        return None
    from pyoco_pipeline.models.autoencoder import LatentScaling

    return partial(to_latents, scaling=LatentScaling(tuple(known["shift"]), tuple(known["factor"])))


def to_latents(stored: Tensor, generator: torch.Generator, scaling: LatentScaling) -> Tensor:
    """Stored moments (N, T, h, w, 2C) as scaled latents (N, C, T, h, w) float32: a sample of each posterior.

    generator: of the samples; with the same one of the CPU, they are the same on every device.
    """
    mean, std = stored.permute(0, 4, 1, 2, 3).float().chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator, device=generator.device)
    return scaling.apply(mean + std * noise.to(mean.device))
