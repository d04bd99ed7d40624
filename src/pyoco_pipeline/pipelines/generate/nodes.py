"""Sampling of captioned clips."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.datasets.folder import FolderWriter


def sample_clips(
    generate: GenerateSettings, model: Path, clips: Path, text_embeddings: Path, latents: Path
) -> FolderWriter:
    """Sample clips with the model's own prior, kept losslessly as a folder of clips."""
    from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore, write_clips
    from pyoco_pipeline.data.embeddings import TextEmbeddings
    from pyoco_pipeline.data.latents import open_autoencoder, training_store
    from pyoco_pipeline.generation import generate_clips

    store, trained = ClipStore(clips), training_store(clips, latents)
    asked = prompts_to_sample(generate, store)
    captions, embeddings = [caption for caption, _ in asked], TextEmbeddings(text_embeddings)
    autoencoder, fps = open_autoencoder(trained), store.manifest.fps
    videos = generate_clips(model, generate, captions, embeddings, trained.shape, autoencoder, fps)
    sampled = (
        CaptionedClip(Clip(f"generated-{i:06d}", video.numpy(), attributes), caption, "generated")
        for i, (video, (caption, attributes)) in enumerate(zip(videos, asked, strict=True))
    )
    return partial(write_clips, clips=sampled, kind=store.manifest.kind, shape=store.shape, fps=fps)


def prompts_to_sample(generate: GenerateSettings, store: Any) -> list[tuple[str, dict[str, str]]]:
    """Captions to sample, with what is known of them: the user's, or those of test clips."""
    if generate.prompts is not None:
        asked: list[tuple[str, dict[str, str]]] = [(caption, {}) for caption in generate.prompts]
    else:
        asked = [
            (item.caption, item.clip.attributes)
            for item in store.take(store.unseen_split, generate.num_clips)
        ]
    return [asked[i % len(asked)] for i in range(generate.num_clips)]


def write_videos(generated_clips: Path, generate: GenerateSettings) -> tuple[FolderWriter, Any]:
    """Videos for people to watch, and a contact sheet of their frames."""
    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.reporting.contact_sheet import contact_sheet

    store = ClipStore(generated_clips)
    items = store.take(limit=generate.num_videos)
    sheet = contact_sheet(np.stack([item.clip.video for item in items]), [item.caption for item in items])
    return partial(_encode, store=store, limit=generate.num_videos, suffix=generate.video_format), sheet


def _encode(folder: Path, *, store: Any, limit: int, suffix: str) -> None:
    from pyoco_pipeline.reporting.video_files import write_video

    for item in store.take(limit=limit):
        write_video(folder / f"{item.clip.clip_id}.{suffix}", item.clip.video, store.manifest.fps)
