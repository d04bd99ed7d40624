"""Sampling of captioned clips, stage by stage."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.datasets.folder import FolderWriter
from pyoco_pipeline.pipelines.generate.shares import write_shares
from pyoco_pipeline.pipelines.generate.user_clips import user_clips


def check_cascade(
    generate: GenerateSettings, clips: Path, text_embeddings: Path, latents: Path, **models: Path
) -> list[dict[str, Any]]:
    """The stages that sample, before any does; an error where they don't fit together."""
    from pyoco_pipeline.cascade.plan import as_json, plan_cascade
    from pyoco_pipeline.data.embeddings import TextEmbeddings
    from pyoco_pipeline.data.latents import training_store
    from pyoco_pipeline.generation import CaptionEmbedder

    embeddings = TextEmbeddings(text_embeddings)
    plan = plan_cascade(models, generate, embeddings.encoder_sha256, training_store(clips, latents))
    CaptionEmbedder(embeddings).warn_of_long(generate.prompts or ())
    return as_json(plan)


def sample_clips(
    generate: GenerateSettings,
    cascade: list[dict[str, Any]],
    model: Path,
    clips: Path,
    text_embeddings: Path,
    latents: Path,
) -> FolderWriter:
    """Sample clips with the base stage and its own prior, kept losslessly as a folder of clips."""
    from pyoco_pipeline.data.clips import ClipStore

    given = (generate, cascade, model, clips, text_embeddings, latents)
    return _stage_writer("base", _write_base, *given, store=ClipStore(clips))


def _stage_writer(
    name: str,
    write: Any,
    generate: GenerateSettings,
    cascade: list[dict[str, Any]],
    model: Path,
    clips: Path,
    text_embeddings: Path,
    latents: Path,
    **more: Any,
) -> FolderWriter:
    """Writes the clips of a stage, by as many processes as there are to be; a note where it has no part."""
    from pyoco_pipeline.cascade.folders import write_none
    from pyoco_pipeline.cascade.plan import from_json
    from pyoco_pipeline.data.embeddings import TextEmbeddings
    from pyoco_pipeline.data.latents import training_store

    planned = {stage.name: stage for stage in from_json(cascade)}.get(name)
    if planned is None:
        return partial(write_none, stage=name)
    arguments = {
        "generate": generate,
        "planned": planned,
        "model": model,
        "trained": training_store(clips, latents),
        "embeddings": TextEmbeddings(text_embeddings),
        **more,
    }
    return partial(
        write_shares,
        write=write,
        count=generate.num_clips,
        batch_size=generate.batch_size if name == "base" else generate.later(name).batch_size,
        num_processes=_processes(generate, name),
        arguments=arguments,
    )


def _processes(generate: GenerateSettings, stage: str) -> Any:
    """Clips of the user are cut once, by one process."""
    return 1 if generate.video is not None and generate.video.stage == stage else generate.num_processes


def _write_base(
    folder: Path,
    *,
    places: range,
    generate: GenerateSettings,
    planned: Any,
    model: Path,
    store: Any,
    trained: Any,
    embeddings: Any,
) -> None:
    from pyoco_pipeline.data.clip_writing import write_clips
    from pyoco_pipeline.data.clips import CaptionedClip, Clip
    from pyoco_pipeline.data.latents import open_autoencoder
    from pyoco_pipeline.generation import Material, generate_clips

    autoencoder = open_autoencoder(trained)
    shape, fps = _pixels(planned, autoencoder), planned.fps or store.manifest.fps
    with ExitStack() as stack:
        material = None
        asked = prompts_to_sample(generate, store) if generate.video is None else []
        if generate.video is not None:
            given = stack.enter_context(user_clips(generate, shape, fps))
            asked = [(item.caption, item.clip.attributes) for item in given.clips()]
            material = Material(given.distinct(), generate.video.sigma, generate.video.keep_frames)
        asked = asked[places.start : places.stop]
        videos = generate_clips(
            model,
            generate,
            [caption for caption, _ in asked],
            embeddings,
            (planned.window, planned.height, planned.width),
            autoencoder,
            fps,
            material,
            places.start,
        )
        sampled = (
            CaptionedClip(Clip(f"generated-{i:06d}", video.numpy(), attributes), caption, "generated")
            for i, video, (caption, attributes) in zip(places, videos, asked, strict=True)
        )
        write_clips(folder, sampled, kind=store.manifest.kind, shape=shape, fps=fps)


def continue_clips(
    generate: GenerateSettings,
    cascade: list[dict[str, Any]],
    model: Path,
    clips: Path,
    text_embeddings: Path,
    latents: Path,
    *before: Path,
    name: str,
) -> FolderWriter:
    """The clips of the stages before, newest first, as this stage makes them; a note where it has no part."""
    given = (generate, cascade, model, clips, text_embeddings, latents)
    return _stage_writer(name, _write_later, *given, before=before)


def _write_later(
    folder: Path,
    *,
    places: range,
    generate: GenerateSettings,
    planned: Any,
    model: Path,
    before: tuple[Path, ...],
    trained: Any,
    embeddings: Any,
) -> None:
    from pyoco_pipeline.cascade.folders import is_none
    from pyoco_pipeline.cascade.sampling import continue_clips as sample
    from pyoco_pipeline.cascade.sampling import taken_fps, taken_shape
    from pyoco_pipeline.data.clip_writing import write_clips
    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.data.latents import open_autoencoder

    autoencoder = open_autoencoder(trained)
    newest: Any
    with ExitStack() as stack:
        if generate.video is not None and generate.video.stage == planned.name:
            shape, fps = taken_shape(model, autoencoder), taken_fps(model) or trained.manifest.fps
            newest = stack.enter_context(user_clips(generate, shape, fps))
        else:
            newest = ClipStore(next(path for path in before if not is_none(path)))
        write_clips(
            folder,
            sample(planned, model, newest, generate, embeddings, autoencoder, places),
            kind=trained.manifest.kind,
            shape=_pixels(planned, autoencoder),
            fps=planned.fps or trained.manifest.fps,
        )


def _pixels(stage: Any, autoencoder: Any) -> tuple[int, int, int]:
    """(frames, height, width) of what a stage makes, in pixels."""
    enlarged = autoencoder.downsampling if autoencoder else 1
    return stage.frames, enlarged * stage.height, enlarged * stage.width


def take_last(*stages: Path) -> FolderWriter:
    """The clips of the last stage, newest first; without a second copy of them on disk where that can be."""
    from pyoco_pipeline.cascade.folders import is_none, link_folder

    return partial(link_folder, source=next(folder for folder in stages if not is_none(folder)))


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


def write_stage_videos(generate: GenerateSettings, **stages: Path) -> FolderWriter:
    """What each stage made of the same prompts, as videos, and a sheet that shows them below each other."""
    from pyoco_pipeline.cascade.folders import existing, write_none
    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.reporting.cascade_sheet import cascade_sheet

    stores = {name: ClipStore(folder) for name, folder in existing(stages).items()}
    if len(stores) == 1:
        return partial(write_none, stage="cascade")  # generate's videos are all there is

    def write(folder: Path) -> None:
        for name, store in stores.items():
            _encode(folder / name, store=store, limit=generate.num_videos, suffix=generate.video_format)
        clips = {name: store.take(limit=_SHEET_CLIPS) for name, store in stores.items()}
        captions = [item.caption for item in next(iter(clips.values()))]
        shown = {name: [item.clip.video for item in items] for name, items in clips.items()}
        cascade_sheet(shown, captions).save(folder / "cascade.png")

    return write


_SHEET_CLIPS = 4


def _encode(folder: Path, *, store: Any, limit: int, suffix: str) -> None:
    from pyoco_pipeline.reporting.video_files import write_video

    folder.mkdir(parents=True, exist_ok=True)
    for item in store.take(limit=limit):
        write_video(folder / f"{item.clip.clip_id}.{suffix}", item.clip.video, store.manifest.fps)
