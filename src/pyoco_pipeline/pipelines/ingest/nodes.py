"""Captions in, validated by the catalog; clips, latents and text embeddings out."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pyoco_pipeline.config import FilterSettings, ImageSourceSettings, IngestSettings
from pyoco_pipeline.datasets.folder import FolderWriter

_CAPTIONS_AT_ONCE = 4096  # for the tokenizer
_log = logging.getLogger(__name__)


def list_captions(ingest: IngestSettings) -> pd.DataFrame:
    """One row per caption of a clip, video or image, with the number of tokens that the text encoder sees."""
    from pyoco_pipeline.models.text import load_tokenizer, text_encoder_folder

    tables = [source.captions() for source in _sources(ingest)]
    if len(tables) > 1:  # images have rows of their own behind those of the clips, and are trained on alone
        images = tables[1]
        left = images[images["split"] == "train"]
        if len(left) < len(images):
            _log.warning("%d test images of %d are left out", len(images) - len(left), len(images))
        tables[1] = left.assign(row_id="image-" + left["row_id"])
        tables = [table.assign(source=place) for place, table in enumerate(tables)]
    table = pd.concat(tables, ignore_index=True)
    tokenizer = load_tokenizer(text_encoder_folder(ingest.text_encoder))
    captions = table["caption"].fillna("").astype(str).tolist()
    num_tokens: list[int] = []
    for first in range(0, len(captions), _CAPTIONS_AT_ONCE):
        num_tokens += [len(ids) for ids in tokenizer(captions[first : first + _CAPTIONS_AT_ONCE]).input_ids]
    return table.assign(num_tokens=num_tokens, tokens_cut=[max(0, n - ingest.max_tokens) for n in num_tokens])


def cut_clips(captions: pd.DataFrame, ingest: IngestSettings, work: Path) -> FolderWriter:
    """The clips of all captions that passed validation; `work` keeps what is done when a run is stopped."""
    from pyoco_pipeline.data.ingest import IngestOptions, write_ingested

    executor = ingest.executor
    if executor == "auto":
        executor = "inline" if ingest.source == "moving_digits" and ingest.images is None else "processes"
    options = IngestOptions(
        _task_options(ingest),
        segments_per_task=ingest.segments_per_task,
        max_bad_share=ingest.max_bad_share,
        executor=executor,
        workers=ingest.workers,
        ray_address=ingest.ray_address,
    )
    return partial(write_ingested, work=work, sources=_sources(ingest), captions=captions, options=options)


def encode_latents(clips: Path, ingest: IngestSettings) -> FolderWriter:
    """The clips in the latent space of ingest.autoencoder; a note that there is none for models of pixels."""
    from pyoco_pipeline.data.latents import write_latents

    return partial(write_latents, clips=clips, autoencoder=ingest.autoencoder)


def embed_captions(captions: pd.DataFrame, ingest: IngestSettings, cache: Path) -> FolderWriter:
    """Token embeddings of the distinct captions, and of the empty one for guidance; `cache` keeps those of before."""
    import torch

    from pyoco_pipeline.data.embedding_cache import EmbeddingCache, write_cached_embeddings
    from pyoco_pipeline.models.text import TextEncoder, text_encoder_folder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return partial(
        write_cached_embeddings,
        captions=["", *sorted(set(captions["caption"]) - {""})],
        cache=EmbeddingCache(cache),
        encoder=TextEncoder(text_encoder_folder(ingest.text_encoder), ingest.max_tokens, device),
        name=ingest.text_encoder,
    )


def _sources(ingest: IngestSettings) -> list[Any]:
    """The source of clips and, where there is one, that of images."""
    if ingest.source == "moving_digits":
        from pyoco_pipeline.data.digits import MovingDigitsSource

        sources: list[Any] = [
            MovingDigitsSource(
                **ingest.moving_digits.model_dump(),
                num_frames=ingest.num_frames,
                height=ingest.height,
                width=ingest.width,
                fps=ingest.fps,
            )
        ]
    else:
        sources = [_file_source(ingest, "video")]
    return sources if ingest.images is None else [*sources, _file_source(ingest.images, "image")]


def _file_source(settings: IngestSettings | ImageSourceSettings, media: str) -> Any:
    from kedro.utils import find_kedro_project

    from pyoco_pipeline.data.sources import open_source
    from pyoco_pipeline.data.storage import resolve_root
    from pyoco_pipeline.errors import UserError

    options = getattr(settings, settings.source).model_dump()
    options["root"] = resolve_root(options["root"], find_kedro_project(Path.cwd()) or Path.cwd())
    if media == "image" and "test_share" in options:
        options["test_share"] = 0.0
    source = open_source(settings.source, **options)
    of_images_alone = isinstance(settings, IngestSettings) and settings.num_frames == 1
    if source.media != media and not of_images_alone:
        section, other = ("ingest.images", "ingest") if media == "image" else ("ingest", "ingest.images")
        raise UserError(
            f"{section}.{settings.source} has media={source.media}, and {section} takes {media}s: set media to "
            f"{media}, or move the section to {other}."
        )
    return source


def _task_options(ingest: IngestSettings) -> Any:
    from pyoco_pipeline.data.cutting import CutOptions
    from pyoco_pipeline.data.filters import FilterOptions
    from pyoco_pipeline.data.tasks import TaskOptions

    scenes = None
    if ingest.scenes is not None:
        from pyoco_pipeline.data.scenes import SceneOptions

        scenes = SceneOptions(**ingest.scenes.model_dump())
    filters: FilterSettings = ingest.filters
    return TaskOptions(
        cut=CutOptions(
            num_frames=ingest.num_frames,
            sizes=tuple(dict.fromkeys(((ingest.height, ingest.width), *ingest.buckets))),
            fps=ingest.fps,
            octaves=ingest.fps_octaves,
            stride=ingest.stride,
            max_clips_per_row=ingest.max_clips_per_row,
            crop=ingest.crop,
            scenes=scenes,
            seed=ingest.seed,
        ),
        filters=FilterOptions(**filters.model_dump(exclude={"clip_model"})),
        clip_model=filters.clip_model,
        compression=ingest.compression,
        file_timeout_s=ingest.file_timeout_s,
        memory_mb=ingest.decoder_memory_mb,
    )
